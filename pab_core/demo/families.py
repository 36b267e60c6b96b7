"""The demo models of Latte's and Open-Sora-Plan's kind: their sizes, in the fields of the released checkpoints' files.

They share the first demo model's clips, captions, tokenizer and text encoder; see architecture.py for that one's sizes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .architecture import IMAGE_CHANNELS, LATENT_CHANNELS, MAX_TOKENS, TEXT_WIDTH, VAE
from .clip_source import HEIGHT, WIDTH

# What the released models' noise was trained with (arXiv 2006.11239), and diffusers' schedulers have as defaults.
TRAIN_STEPS, FIRST_BETA, LAST_BETA = 1000, 0.0001, 0.02
SPACE_FACTOR = 8


@dataclass(frozen=True)
class Family:
    """A demo model of one family."""

    name: str  # key of models.registry.ARCHITECTURES
    weights: Path  # where this package keeps its trained weights
    transformer: dict[str, Any]  # config.json
    vae: dict[str, Any]  # config.json, but for what the training fits
    scheduler: dict[str, Any]  # scheduler_config.json
    about: dict[str, Any]  # pab.json: what its clips are like; as models.registry says it of the model by name

    @property
    def frames(self) -> int:
        return self.about["num_frames"]

    @property
    def fps(self) -> int:
        return self.about["fps"]

    @property
    def latent_size(self) -> tuple[int, int, int, int]:
        """(C, T', h, w) of a clip."""
        time = 2 ** sum(map(bool, self.vae.get("encoder_temporal_downsample", ())))
        frames = (self.frames - 1) // time + 1
        return self.transformer["in_channels"], frames, HEIGHT // SPACE_FACTOR, WIDTH // SPACE_FACTOR


def _transformer(heads: int, head_width: int, blocks: int, channels: int) -> dict[str, Any]:
    return {
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": head_width,
        "caption_channels": TEXT_WIDTH,
        "in_channels": channels,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_single",
        "num_attention_heads": heads,
        "num_layers": blocks,
        "out_channels": channels,  # no learned variance: no sampler here uses it
        "patch_size": 2,
    }


def _scheduler(name: str) -> dict[str, Any]:
    betas = {"beta_start": FIRST_BETA, "beta_end": LAST_BETA, "beta_schedule": "linear"}
    return {"_class_name": name, "num_train_timesteps": TRAIN_STEPS, **betas, "prediction_type": "epsilon"}


def _about(**own: Any) -> dict[str, Any]:
    size = {"height": HEIGHT, "width": WIDTH, "guidance": 4.0}
    return own | size | {"max_tokens": MAX_TOKENS, "cleaning": "plain", "full_precision": True}


LATTE = Family(
    name="latte",
    weights=Path(__file__).with_name("weights_latte"),
    transformer=_transformer(6, 24, 4, IMAGE_CHANNELS)
    | {"_class_name": "LatteTransformer3DModel", "sample_size": WIDTH // SPACE_FACTOR},
    vae=VAE["vae_2d"]["config"] | {"scaling_factor": 0.18215},
    scheduler=_scheduler("DDIMScheduler") | {"clip_sample": False},
    about=_about(base="latte", title="the demo model of Latte's kind", num_frames=16, fps=8, steps=50),
)

# 29 frames are the most that Open-Sora-Plan's authors decode as one piece: a clip of 33 would have a seam in time.
OPEN_SORA_PLAN = Family(
    name="open-sora-plan",
    weights=Path(__file__).with_name("weights_plan"),
    transformer=_transformer(4, 32, 4, LATENT_CHANNELS)
    | {
        "_class_name": "LatteT2V",
        "sample_size": [HEIGHT // SPACE_FACTOR, WIDTH // SPACE_FACTOR],
        "video_length": 8,
    },
    # All norms have 32 groups. With one channel a group they would take away what tells a clip's colours, which at the
    # last norm before the pixels nothing could bring back; hence 64 channels, and only three levels of them.
    vae={
        "_class_name": "CausalVAEModel",
        "hidden_size": 64,
        "hidden_size_mult": [1, 1, 1],
        "z_channels": LATENT_CHANNELS,
        "embed_dim": LATENT_CHANNELS,
        "double_z": True,
        "num_res_blocks": 1,
        "resolution": 128,
        "attn_resolutions": [],
        "q_conv": "CausalConv3d",
        "encoder_conv_in": "Conv2d",
        "encoder_conv_out": "CausalConv3d",
        "encoder_attention": "AttnBlock3DFix",
        "encoder_mid_resnet": "ResnetBlock2D",
        "encoder_resnet_blocks": ["ResnetBlock2D"] * 3,
        "encoder_spatial_downsample": ["Downsample"] * 3,
        "encoder_temporal_downsample": ["TimeDownsampleRes2x"] * 2 + [""],
        "decoder_conv_in": "CausalConv3d",
        "decoder_conv_out": "CausalConv3d",
        "decoder_attention": "AttnBlock3DFix",
        "decoder_mid_resnet": "ResnetBlock2D",
        "decoder_resnet_blocks": ["ResnetBlock2D"] * 3,
        "decoder_spatial_upsample": ["SpatialUpsample2x"] * 3,
        "decoder_temporal_upsample": [""] + ["TimeUpsampleRes2x"] * 2,
    },
    scheduler=_scheduler("PNDMScheduler"),
    about=_about(
        base="open-sora-plan", title="the demo model of Open-Sora-Plan's kind", num_frames=29, fps=16, steps=30
    ),
)

FAMILIES = {family.name: family for family in (LATTE, OPEN_SORA_PLAN)}
