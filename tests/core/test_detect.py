"""Which model a state dict is of: those at home here with their config, others by what they look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture_sets import fixture_root, read_json
from tiny_checkpoint import TRANSFORMER, VAE
from torch import nn

from pab_core.errors import PabError
from pab_core.loading import read_shapes
from pab_core.models.detect import check_family, detect, looks_like, looks_like_text_encoder, looks_like_vae
from pab_core.models.latte import LatteConfig, LatteT2V
from pab_core.models.open_sora_plan import OpenSoraPlanConfig, OpenSoraPlanT2V
from pab_core.models.stdit3 import STDiT3, STDiT3Config

Shapes = dict[str, tuple[int, ...]]
FAMILIES: dict[str, tuple[Any, Callable[[Any], nn.Module]]] = {
    "stdit3": (STDiT3Config, STDiT3),
    "latte": (LatteConfig, LatteT2V),
    "open-sora-plan": (OpenSoraPlanConfig, OpenSoraPlanT2V),
}


def shapes_of(build: Callable[[], nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def keys(*names: str, shape: tuple[int, ...] = (8, 8)) -> Shapes:
    return dict.fromkeys(names, shape)


@pytest.fixture(scope="module", params=FAMILIES)
def released(request: pytest.FixtureRequest) -> tuple[str, Shapes]:
    """A family and the shapes of its released model."""
    config, build = FAMILIES[request.param]
    return request.param, shapes_of(lambda: build(config()))


def test_the_released_models_with_their_configs(released: tuple[str, Shapes]):
    family, shapes = released
    found = detect(shapes)
    assert found.family == family
    config = FAMILIES[family][0]
    assert config.from_dict(found.config) == config()


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module."])
def test_a_prefix_and_other_parts_beside_it(released: tuple[str, Shapes], prefix: str):
    family, shapes = released
    others = keys("first_stage_model.decoder.conv_in.weight", "cond_stage_model.shared.weight")
    found = detect({prefix + key: shape for key, shape in shapes.items()} | others)
    assert (found.family, found.prefix) == (family, prefix)
    assert found.config == detect(shapes).config


@pytest.mark.parametrize(
    ("name", "family"), [("opensora", "stdit3"), ("latte", "latte"), ("opensora_plan", "open-sora-plan")]
)
def test_models_of_other_sizes(name: str, family: str):
    folder = fixture_root() / name
    shapes = read_shapes([folder / "weights.safetensors"])
    found = detect(shapes)
    assert found.family == family
    config, build = FAMILIES[family]
    given = config.from_dict(found.config)
    assert shapes_of(lambda: build(given)) == shapes
    if family == "stdit3":  # whose rotary frequencies and norms tell the heads; what trains only is not told
        written = config.from_dict(read_json(folder / "config.json"))
        assert given == replace(written, freeze_y_embedder=given.freeze_y_embedder)


@pytest.mark.parametrize(
    "changes", [{"qk_norm": False}, {"pred_sigma": False}, {"patch_size": [2, 4, 4]}, {"mlp_ratio": 2.0}, {"depth": 11}]
)
def test_variants_of_stdit3(changes: dict[str, Any]):
    config = STDiT3Config.from_dict(TRANSFORMER | changes)
    found = STDiT3Config.from_dict(detect(shapes_of(lambda: STDiT3(config))).config)
    assert found == config


def test_an_incomplete_transformer(released: tuple[str, Shapes]):
    family, shapes = released
    lacking = {"stdit3": "x_embedder.proj.weight"}.get(family, "proj_out.weight")
    with pytest.raises(PabError, match=rf"but it lacks {lacking}; the file is incomplete"):
        detect({key: shape for key, shape in shapes.items() if key != lacking})
    with pytest.raises(PabError, match="its tensors have shapes that such a model cannot have"):
        detect(shapes | {"x_embedder.proj.weight": (2,), "pos_embed.proj.weight": (2,)})
    # What no config depends on is for the check of the keys to tell.
    bias = {"stdit3": "final_layer.linear.bias"}.get(family, "proj_out.bias")
    assert detect({key: shape for key, shape in shapes.items() if key != bias}).family == family


# --- others -----------------------------------------------------------------------------------------------------------


def diffusers_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import diffusers

        return getattr(diffusers, name)(**options)

    return build


PUBLISHED = {
    "CogVideoX": diffusers_model("CogVideoXTransformer3DModel", num_layers=1),
    "Wan": diffusers_model("WanTransformer3DModel", num_layers=1),
    "HunyuanVideo": diffusers_model(
        "HunyuanVideoTransformer3DModel", num_layers=1, num_single_layers=1, num_refiner_layers=1
    ),
    "Mochi": diffusers_model("MochiTransformer3DModel", num_layers=2),
    "LTX-Video": diffusers_model("LTXVideoTransformer3DModel", num_layers=1),
    "FLUX": diffusers_model("FluxTransformer2DModel", num_layers=1, num_single_layers=1),
    "Stable Diffusion 3": diffusers_model("SD3Transformer2DModel", num_layers=1),
    "PixArt": diffusers_model("PixArtTransformer2DModel", num_layers=1),
    "Open-Sora-Plan 1.2 or Allegro": diffusers_model("AllegroTransformer3DModel", num_layers=1),
    "Stable Video Diffusion": diffusers_model("UNetSpatioTemporalConditionModel"),
    "the UNet of Stable Diffusion": diffusers_model("UNet2DConditionModel"),
}


@pytest.mark.parametrize("title", PUBLISHED)
def test_published_models_in_diffusers_layout(title: str):
    shapes = shapes_of(PUBLISHED[title])
    assert looks_like(shapes) == title
    with pytest.raises(PabError) as caught:
        detect(shapes)
    assert str(caught.value) == (
        f"These weights look like {title}; the transformers that can be run are those of Open-Sora 1.2 (STDiT3), "
        "Latte-1 and Open-Sora-Plan v1.1.0."
    )


STDIT = ("blocks.0.attn.qkv.weight", "blocks.0.attn_temp.qkv.weight", "blocks.0.cross_attn.kv_linear.weight")
STDIT3 = ("spatial_blocks.0.scale_shift_table", "temporal_blocks.0.scale_shift_table")
PLAN = ("transformer_blocks.0.scale_shift_table", "adaln_single.linear.weight")
FLUX = ("double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight", "txt_in.weight")


@pytest.mark.parametrize(
    ("title", "shapes"),
    [
        ("Open-Sora 1.0 (STDiT)", keys(*STDIT, "pos_embed_temporal", "y_embedder.y_embedding")),
        ("Open-Sora 1.1 (STDiT2)", keys(*STDIT, "fps_embedder.mlp.0.weight", "y_embedder.y_embedding")),
        ("Open-Sora 1.3", keys(*STDIT3, "x_embedder.proj.weight", "x_embedder_cond.proj.weight")),
        ("Open-Sora 2.0", keys(*FLUX, "cond_in.weight")),
        ("Open-Sora-Plan 1.3", keys(*PLAN) | keys("pos_embed.proj.weight", shape=(2304, 8, 2, 2))),
        ("Open-Sora-Plan 1.2 or Allegro", keys(*PLAN) | keys("pos_embed.proj.weight", shape=(2304, 4, 2, 2))),
        ("PixArt", keys(*PLAN) | keys("pos_embed.proj.weight", shape=(1152, 4, 2, 2))),
        ("PixArt", keys("blocks.0.cross_attn.kv_linear.weight", "y_embedder.y_embedding", "t_block.1.weight")),
        ("FLUX", keys(*FLUX, "guidance_in.in_layer.weight")),
        ("HunyuanVideo", keys(*FLUX, "txt_in.individual_token_refiner.blocks.0.norm1.weight")),
        ("Wan", keys("head.modulation", "blocks.0.ffn.0.weight")),
        ("Mochi", keys("t5_yproj.weight", "blocks.0.attn.qkv_x.weight")),
        ("LTX-Video", keys("patchify_proj.weight", *PLAN)),
        ("Stable Video Diffusion", keys("input_blocks.0.0.weight", "input_blocks.1.1.time_stack.0.attn1.to_q.weight")),
        ("the UNet of Stable Diffusion", keys("input_blocks.0.0.weight", "out.2.weight")),
        ("Stable Diffusion 3", keys("joint_blocks.0.context_block.attn.qkv.weight")),
    ],
)
def test_others_under_their_authors_names(title: str, shapes: Shapes):
    assert looks_like(shapes) == title
    whole = {f"model.diffusion_model.{key}": shape for key, shape in shapes.items()}
    assert looks_like(whole | keys("first_stage_model.decoder.conv_in.weight")) == title
    with pytest.raises(PabError, match="These weights look like"):
        detect(shapes)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_blocks_0_attn.lora_down.weight",
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "spatial_blocks.0.attn.qkv.lora_up.weight",
    ],
)
def test_a_lora(key: str):
    with pytest.raises(PabError, match="look like a LoRA, which goes on top of a model"):
        detect(keys(key, "spatial_blocks.0.attn.qkv.alpha"))


def text_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(num_layers=1, d_model=16, d_kv=8, d_ff=32, num_heads=2, vocab_size=20))


def test_text_encoders():
    shapes = shapes_of(text_encoder)
    assert looks_like(shapes) == looks_like_text_encoder(shapes) == "a T5 text encoder"
    decoder = keys("decoder.block.0.layer.0.SelfAttention.q.weight")
    assert looks_like_text_encoder(shapes | decoder) == "a T5 model with its decoder"
    bias = keys("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")
    assert looks_like_text_encoder(shapes | bias) == "a UMT5 text encoder"
    assert looks_like_text_encoder(keys("text_model.encoder.layers.0.self_attn.q_proj.weight")) == "a CLIP text encoder"
    assert looks_like_vae(shapes) == ""


def open_sora_vae() -> nn.Module:
    from pab_core.autoencoders.open_sora import OpenSoraVAE

    return OpenSoraVAE.from_config(VAE)


def plan_vae() -> nn.Module:
    from pab_core.autoencoders.open_sora_plan import CausalVAE

    return CausalVAE.from_config({"hidden_size": 32})


@pytest.mark.parametrize(
    ("title", "build"),
    [
        ("the VAE of Open-Sora 1.2", open_sora_vae),
        ("the VAE of Open-Sora-Plan", plan_vae),
        ("Latte's VAE with a temporal decoder", diffusers_model("AutoencoderKLTemporalDecoder")),
        ("the image VAE of Stable Diffusion", diffusers_model("AutoencoderKL")),
    ],
)
def test_vaes(title: str, build: Callable[[], nn.Module]):
    shapes = shapes_of(build)
    assert looks_like_vae(shapes) == looks_like(shapes) == title
    assert looks_like_text_encoder(shapes) == ""
    with pytest.raises(PabError, match=f"These weights look like {title}"):
        detect(shapes)


def test_a_model_that_nobody_knows():
    for shapes in ({}, keys("weight"), keys("a.b.c")):
        assert looks_like(shapes) == ""
        with pytest.raises(
            PabError, match="These weights are of a model that is not known here; the transformers that"
        ):
            detect(shapes)


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"architectures": ["STDiT3"], "model_type": "STDiT3"}, "stdit3"),
        ({"model_type": "STDiT3"}, "stdit3"),
        ({"_class_name": "LatteTransformer3DModel"}, "latte"),
        ({"_class_name": "LatteT2V"}, "latte"),
        ({"_class_name": "LatteT2V"}, "open-sora-plan"),
        ({"hidden_size": 1152}, "stdit3"),
    ],
)
def test_configs_that_fit(config: dict[str, Any], family: str):
    check_family(config, family)


@pytest.mark.parametrize(
    ("config", "family", "words"),
    [
        (
            {"architectures": ["STDiT2"]},
            "stdit3",
            r"is that of Open-Sora 1\.1 \(STDiT2\), where a transformer of Open-Sora",
        ),
        ({"_class_name": "LatteT2V"}, "stdit3", r"is that of Latte-1 or Open-Sora-Plan v1\.0 or v1\.1 \(LatteT2V\)"),
        ({"_class_name": "OpenSoraT2V"}, "open-sora-plan", r"is that of Open-Sora-Plan 1\.2 \(OpenSoraT2V\)"),
        (
            {"_class_name": "LatteTransformer3DModel"},
            "open-sora-plan",
            r"is that of Latte-1 \(LatteTransformer3DModel\)",
        ),
        (
            {"_class_name": "Dit42"},
            "latte",
            "is that of 'Dit42', which is not known here, where a transformer of Latte-1",
        ),
    ],
)
def test_configs_that_contradict(config: dict[str, Any], family: str, words: str):
    with pytest.raises(PabError, match=words):
        check_family(config, family, str(Path("x") / "config.json"))


def test_the_configs_of_the_fixtures_fit():
    for name, family in (("opensora", "stdit3"), ("latte", "latte"), ("opensora_plan", "open-sora-plan")):
        check_family(read_json(fixture_root() / name / "config.json"), family)
