"""Which model a state dict is of, told by its keys and shapes alone.

The families that are at home here are recognised with the config that their shapes imply; of others, what they look
like, so that a message can say it. The telling keys are those of the released files, under the authors' names and under
those of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PabError

Shapes = Mapping[str, tuple[int, ...]]

ACCEPTED = "Open-Sora 1.2 (STDiT3), Latte-1 and Open-Sora-Plan v1.1.0"
# What may stand before every key of a file that also holds other parts, or that was saved from inside a wrapper.
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.", "net.")
_LORA = (".lora_A.weight", ".lora_B.weight", ".lora_up.weight", ".lora_down.weight", ".lora_A.default.weight")

# What it is, and the keys that tell it; the first that has all of them is taken. A key that ends in a dot stands for
# all that begin with it.
_OTHERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Open-Sora 1.3", ("spatial_blocks.0.scale_shift_table", "x_embedder_cond.")),
    ("Open-Sora 1.1 (STDiT2)", ("blocks.0.attn_temp.qkv.weight", "fps_embedder.")),
    ("Open-Sora 1.0 (STDiT)", ("blocks.0.attn_temp.qkv.weight",)),
    ("Open-Sora 2.0", ("double_blocks.0.img_attn.norm.key_norm.scale", "cond_in.")),
    ("HunyuanVideo", ("txt_in.individual_token_refiner.",)),
    ("HunyuanVideo", ("context_embedder.token_refiner.",)),
    ("FLUX", ("double_blocks.0.img_attn.norm.key_norm.scale",)),
    ("FLUX", ("single_transformer_blocks.0.attn.to_q.weight", "context_embedder.weight")),
    ("Wan", ("head.modulation",)),
    ("Wan", ("condition_embedder.time_embedder.", "patch_embedding.weight")),
    ("Mochi", ("t5_yproj.weight",)),
    ("Mochi", ("time_embed.pooler.",)),
    ("CogVideoX", ("patch_embed.text_proj.weight", "transformer_blocks.0.norm1.linear.weight")),
    ("CogVideoX", ("mixins.patch_embed.",)),
    ("LTX-Video", ("patchify_proj.weight",)),
    ("LTX-Video", ("proj_in.weight", "time_embed.emb.timestep_embedder.", "transformer_blocks.0.attn2.norm_q.weight")),
    ("Stable Diffusion 3", ("joint_blocks.0.context_block.",)),
    ("Stable Diffusion 3", ("pos_embed.pos_embed", "context_embedder.weight", "transformer_blocks.0.norm1_context.")),
    ("Open-Sora-Plan 1.5", ("transformer_blocks.0.0.", "patch_embed.proj.weight")),
    ("Stable Video Diffusion", ("input_blocks.0.0.weight", "input_blocks.1.1.time_stack.")),
    ("Stable Video Diffusion", ("down_blocks.0.attentions.0.temporal_transformer_blocks.",)),
    ("the UNet of Stable Diffusion", ("input_blocks.0.0.weight",)),
    ("the UNet of Stable Diffusion", ("down_blocks.0.resnets.0.time_emb_proj.weight", "time_embedding.")),
    ("PixArt", ("blocks.0.cross_attn.kv_linear.weight", "y_embedder.y_embedding")),
    ("DiT or the original, class-conditioned Latte", ("blocks.0.adaLN_modulation.1.weight", "y_embedder.")),
)
_TEXT_ENCODERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a UMT5 text encoder", ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",)),
    ("a T5 model with its decoder", ("encoder.block.0.layer.0.SelfAttention.q.weight", "decoder.block.0.")),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("a CLIP text encoder", ("text_model.encoder.layers.0.self_attn.q_proj.weight",)),
    ("a language model", ("model.layers.0.self_attn.q_proj.weight",)),
)
_VAES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the VAE of Open-Sora 1.2", ("spatial_vae.module.", "temporal_vae.")),
    ("the VAE of Open-Sora-Plan", ("decoder.conv_in.conv.weight", "decoder.up.0.block.0.conv1.conv.weight")),
    ("Latte's VAE with a temporal decoder", ("decoder.up_blocks.0.resnets.0.spatial_res_block.norm1.weight",)),
    ("the VAE of Wan", ("decoder.middle.0.residual.0.gamma",)),
    ("the VAE of HunyuanVideo or CogVideoX", ("decoder.conv_in.conv.weight", "decoder.up_blocks.0.")),
    ("the image VAE of Stable Diffusion", ("decoder.up_blocks.0.resnets.0.norm1.weight", "decoder.conv_in.weight")),
    ("the image VAE of Stable Diffusion", ("decoder.up.0.block.0.norm1.weight", "decoder.conv_in.weight")),
    ("a VAE", ("decoder.conv_in.",)),
    ("a VAE", ("encoder.conv_in.",)),
)

# `_class_name` or `architectures` of a config.json -> the families it can be of, and what it is.
_CLASSES: dict[str, tuple[tuple[str, ...], str]] = {
    "STDiT3": (("stdit3",), "Open-Sora 1.2"),
    "LatteTransformer3DModel": (("latte",), "Latte-1"),
    "LatteT2V": (("latte", "open-sora-plan"), "Latte-1 or Open-Sora-Plan v1.0 or v1.1"),
    "STDiT": ((), "Open-Sora 1.0"),
    "STDiT2": ((), "Open-Sora 1.1"),
    "OpenSoraT2V": ((), "Open-Sora-Plan 1.2"),
    "OpenSoraT2V_v1_3": ((), "Open-Sora-Plan 1.3"),
    "AllegroTransformer3DModel": ((), "Allegro"),
    "CogVideoXTransformer3DModel": ((), "CogVideoX"),
    "FluxTransformer2DModel": ((), "FLUX"),
    "HunyuanVideoTransformer3DModel": ((), "HunyuanVideo"),
    "LTXVideoTransformer3DModel": ((), "LTX-Video"),
    "MochiTransformer3DModel": ((), "Mochi"),
    "PixArtTransformer2DModel": ((), "PixArt"),
    "SD3Transformer2DModel": ((), "Stable Diffusion 3"),
    "UNet2DConditionModel": ((), "the UNet of Stable Diffusion"),
    "UNetSpatioTemporalConditionModel": ((), "Stable Video Diffusion"),
    "WanTransformer3DModel": ((), "Wan"),
    "T5EncoderModel": ((), "a T5 text encoder"),
    "AutoencoderKL": ((), "the image VAE of Stable Diffusion"),
    "AutoencoderKLTemporalDecoder": ((), "Latte's VAE with a temporal decoder"),
    "CausalVAEModel": ((), "the VAE of Open-Sora-Plan"),
    "VideoAutoencoderPipeline": ((), "the VAE of Open-Sora 1.2"),
}
_TITLES = {"stdit3": "Open-Sora 1.2", "latte": "Latte-1", "open-sora-plan": "Open-Sora-Plan v1.1.0"}


@dataclass(frozen=True)
class Detected:
    """A transformer that is at home here.

    `config` is for `from_dict` of the family's config; `prefix` stands before each of its keys.
    """

    family: str  # key of registry.ARCHITECTURES
    config: dict[str, Any]
    prefix: str = ""


def detect(shapes: Shapes) -> Detected:
    """The family of a transformer and the config that its shapes imply, for files that come without a config.json.

    What shapes cannot tell is as released: `input_sq_size` 512 of Open-Sora; 72 channels a head of Latte and
    Open-Sora-Plan (else 16 heads), their `sample_size` 64, and the `video_length` 17 of Open-Sora-Plan's model of 65
    frames, of which that of 221 frames (56) has the same shapes. Nor can they tell Open-Sora-Plan v1.0 from v1.1.

    Raises:
        PabError: a model of no family known here; it says what it looks like, and what is accepted.
    """
    for prefix in _PREFIXES:
        own = _without(prefix, shapes)
        for family, (signs, config) in _FAMILIES.items():
            if _has(own, signs) and not _first(own, _OTHERS[:1]):
                try:
                    return Detected(family, config(own), prefix)
                except KeyError as error:
                    raise PabError(
                        f"This looks like a transformer of {_TITLES[family]}, but it lacks {error.args[0]}; the file "
                        "is incomplete, fetch it again."
                    ) from None
                except (IndexError, ValueError, ZeroDivisionError):
                    raise PabError(
                        f"This looks like a transformer of {_TITLES[family]}, but its tensors have shapes that such a "
                        "model cannot have; the file is damaged or of another version, fetch it again."
                    ) from None
    other = looks_like(shapes)
    told = f"These weights look like {other}" if other else "These weights are of a model that is not known here"
    raise PabError(f"{told}; the transformers that can be run are those of {ACCEPTED}.")


def looks_like(shapes: Shapes) -> str:
    """What a state dict is of, for a message, such as "Wan" or "a LoRA"; empty where nothing tells."""
    if any(key.endswith(_LORA) for key in shapes):
        return "a LoRA, which goes on top of a model"
    for prefix in _PREFIXES:
        own = _without(prefix, shapes)
        for family, (signs, _) in _FAMILIES.items():
            if _has(own, signs) and not _first(own, _OTHERS[:1]):
                return f"the transformer of {_TITLES[family]}"
        found = _first(own, _OTHERS) or _plan_or_pixart(own)
        if found:
            return found
    return looks_like_text_encoder(shapes) or looks_like_vae(shapes)


def looks_like_text_encoder(shapes: Shapes) -> str:
    """Which text encoder these are the weights of; empty if of none that is known."""
    return next(filter(None, (_first(_without(prefix, shapes), _TEXT_ENCODERS) for prefix in _PREFIXES)), "")


def looks_like_vae(shapes: Shapes) -> str:
    """Which VAE these are the weights of; empty if of none that is known."""
    prefixes = (*_PREFIXES, "first_stage_model.", "vae.")
    return next(filter(None, (_first(_without(prefix, shapes), _VAES) for prefix in prefixes)), "")


def check_family(config: Mapping[str, Any], family: str, title: str = "config.json") -> None:
    """PabError where a config.json says that it is of another model than `family`, a key of registry.ARCHITECTURES.

    One that names no class passes: there is nothing to contradict.
    """
    names = [config.get("_class_name"), *(config.get("architectures") or ()), config.get("model_type")]
    name = next((name for name in names if isinstance(name, str)), None)
    if name is None or family in _CLASSES.get(name, ((), ""))[0]:
        return
    what = f"{_CLASSES[name][1]} ({name})" if name in _CLASSES else f"'{name}', which is not known here"
    raise PabError(
        f"{title} is that of {what}, where a transformer of {_TITLES.get(family, family)} is needed; the transformers "
        f"that can be run are those of {ACCEPTED}."
    )


# --- configs ----------------------------------------------------------------------------------------------------------


def _stdit3(shapes: Shapes) -> dict[str, Any]:
    hidden = shapes["spatial_blocks.0.scale_shift_table"][1]
    channels, *patch = shapes["x_embedder.proj.weight"][1:]
    qk_norm = "spatial_blocks.0.attn.q_norm.weight" in shapes
    head = shapes["spatial_blocks.0.attn.q_norm.weight"][0] if qk_norm else 2 * shapes["rope.freqs"][0]
    return {
        "hidden_size": hidden,
        "depth": _count(shapes, "spatial_blocks."),
        "num_heads": hidden // head,
        "mlp_ratio": shapes["spatial_blocks.0.mlp.fc1.weight"][0] / hidden,
        "patch_size": patch,
        "in_channels": channels,
        "pred_sigma": shapes["final_layer.linear.weight"][0] == 2 * channels * math.prod(patch),
        "caption_channels": shapes["y_embedder.y_proj.fc1.weight"][1],
        "model_max_length": shapes["y_embedder.y_embedding"][0],
        "qk_norm": qk_norm,
        "input_sq_size": 512,
    }


def _latte(shapes: Shapes) -> dict[str, Any]:
    hidden, channels, _, patch = shapes["pos_embed.proj.weight"]
    heads = hidden // 72 if hidden % 72 == 0 else 16
    return {
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
        "num_layers": _count(shapes, "transformer_blocks."),
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "sample_size": 64,
        "caption_channels": shapes["caption_projection.linear_1.weight"][1],
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
    }


def _open_sora_plan(shapes: Shapes) -> dict[str, Any]:
    return _latte(shapes) | {"sample_size": [64, 64], "video_length": 17}


_FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[Shapes], dict[str, Any]]]] = {
    "stdit3": (("spatial_blocks.0.scale_shift_table", "temporal_blocks.0.scale_shift_table"), _stdit3),
    "open-sora-plan": (
        (
            "transformer_blocks.0.scale_shift_table",
            "temporal_transformer_blocks.0.scale_shift_table",
            "caption_projection.y_embedding",
        ),
        _open_sora_plan,
    ),
    "latte": (
        ("transformer_blocks.0.scale_shift_table", "temporal_transformer_blocks.0.scale_shift_table"),
        _latte,
    ),
}


# --- keys -------------------------------------------------------------------------------------------------------------


def _plan_or_pixart(shapes: Shapes) -> str:
    """What PixArt's blocks without temporal ones among them belong to: they differ by their sizes only."""
    if not _has(shapes, ("transformer_blocks.0.scale_shift_table", "adaln_single.", "pos_embed.proj.weight")):
        return ""
    hidden, channels = shapes["pos_embed.proj.weight"][:2]
    if channels == 8:
        return "Open-Sora-Plan 1.3"
    return "Open-Sora-Plan 1.2 or Allegro" if hidden == 2304 else "PixArt"


def _without(prefix: str, shapes: Shapes) -> Shapes:
    if not prefix:
        return shapes
    return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}


def _has(shapes: Shapes, signs: tuple[str, ...]) -> bool:
    return all(any(key.startswith(sign) for key in shapes) if sign.endswith(".") else sign in shapes for sign in signs)


def _first(shapes: Shapes, table: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    return next((title for title, signs in table if _has(shapes, signs)), "")


def _count(shapes: Shapes, blocks: str) -> int:
    """How many blocks a list has: one more than the highest number after its name."""
    numbers = {key[len(blocks) :].split(".", 1)[0] for key in shapes if key.startswith(blocks)}
    return 1 + max(int(number) for number in numbers if number.isdecimal())
