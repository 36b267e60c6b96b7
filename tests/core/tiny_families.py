"""A tiny random checkpoint of each family, on disk like a released one, and random models of any size in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoint import TEXT, write_json, write_module, write_tiny_checkpoint, write_tokenizer
from torch import nn

from pab_core.autoencoders import build_vae
from pab_core.checkpoints import RELEASED, SAMPLERS
from pab_core.models.registry import ARCHITECTURES, model_spec
from pab_core.pipeline import Pipeline

LATTE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 8,
    "patch_size": 2,
    "norm_type": "ada_norm_single",
    "caption_channels": 16,
    "video_length": 4,
}
PLAN: dict[str, Any] = LATTE | {"sample_size": [8, 8], "video_length": 3}
LATTE_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 4, 4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 0.18215,
}
PLAN_VAE: dict[str, Any] = {"hidden_size": 32, "hidden_size_mult": [1, 1, 1, 1], "num_res_blocks": 1}
# As the released ones say; both authors' pipelines sample so.
DDIM: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
}
PNDM: dict[str, Any] = {"_class_name": "PNDMScheduler"}
ABOUT: dict[str, Any] = {"trained": False, "height": 32, "width": 48, "cleaning": "plain"}


def write_tiny_latte(folder: Path, seed: int = 0) -> Path:
    """4 frames of 48x32 pixels, 10 steps."""
    about = ABOUT | {"base": "latte", "num_frames": 4, "steps": 10}
    return _write(folder, "latte", LATTE, LATTE_VAE, DDIM, about, seed)


def write_tiny_plan(folder: Path, seed: int = 0) -> Path:
    """9 frames of 48x32 pixels, 10 steps, which are 19 calls of the model."""
    about = ABOUT | {"base": "open-sora-plan", "num_frames": 9, "steps": 10}
    return _write(folder, "open-sora-plan", PLAN, PLAN_VAE, PNDM, about, seed)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "stdit3": write_tiny_checkpoint,
    "latte": write_tiny_latte,
    "open-sora-plan": write_tiny_plan,
}


def random_pipe(family: str, config: dict[str, Any], dtype: torch.dtype = torch.float32, **about: Any) -> Pipeline:
    """A pipeline of the family's transformer alone, with random weights.

    about: what differs from the released model's spec.
    """
    architecture = ARCHITECTURES[family]
    parsed = architecture.read_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = architecture.build(parsed)
        randomise(transformer)
    spec = replace(model_spec(RELEASED[family]), depth=parsed.depth, trained=False, **about)
    return Pipeline(spec, transformer.to(dtype).eval(), None, None, SAMPLERS[family])


def randomise(transformer: nn.Module) -> None:
    """Weights large enough that every branch moves the result."""
    for name, parameter in transformer.named_parameters():
        if name != "rope.freqs":
            nn.init.normal_(parameter, std=0.1)


def _write(
    folder: Path,
    family: str,
    config: dict[str, Any],
    vae: dict[str, Any],
    scheduler: dict[str, Any],
    about: dict[str, Any],
    seed: int,
) -> Path:
    from transformers import T5Config, T5EncoderModel

    architecture = ARCHITECTURES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = architecture.build(architecture.read_config(config))
        randomise(transformer)
        write_module(folder / "transformer", config, transformer, "diffusion_pytorch_model.safetensors")
        write_module(folder / "vae", vae, build_vae(family, vae), "diffusion_pytorch_model.safetensors")
        write_module(folder / "text_encoder", TEXT, T5EncoderModel(T5Config.from_dict(TEXT)), "model.safetensors")
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "pab.json", about)
    return folder
