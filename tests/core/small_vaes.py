"""An autoencoder of each kind for the tests of tiling and memory: with the fixtures' weights or random ones."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from fixture_sets import load_set
from torch import Tensor

from pab_core.autoencoders import VideoVAE, build_vae
from pab_core.demo.architecture import VAE

LATTE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 16,
}
LATTE_TEMPORAL: dict[str, Any] = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "latent_channels": 4,
    "layers_per_block": 2,
}
KINDS = ("open-sora", "demo", "latte", "latte-temporal", "open-sora-plan")


@cache
def small_vae(kind: str) -> VideoVAE:
    """Shared by all tests, which change nothing about it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind in ("open-sora", "open-sora-plan"):
            fixture = load_set("opensora_vae" if kind == "open-sora" else "opensora_plan_vae")
            vae = build_vae("stdit3" if kind == "open-sora" else kind, fixture.config)
            vae.load_state_dict(fixture.weights, strict=True)
        elif kind == "demo":
            vae = build_vae("stdit3", VAE)
        else:
            vae = build_vae("latte", LATTE if kind == "latte" else LATTE_TEMPORAL)
    return vae.eval()


def waves(vae: VideoVAE, num_frames: int, height: int, width: int) -> Tensor:
    """Smooth latents [1, Z, T', h, w] for so many pixels, alike everywhere: waves eight latent pixels long."""
    t, h, w = vae.latent_size(num_frames, height, width)
    phase = 2 * math.pi * torch.rand(4, 1, vae.latent_channels, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    time = 0.4 * torch.arange(t).view(1, 1, -1, 1, 1)
    y = 2 * math.pi / 8 * torch.arange(h).view(1, 1, 1, -1, 1)
    x = 2 * math.pi / 8 * torch.arange(w).view(1, 1, 1, 1, -1)
    crossing = torch.sin(x + y + phase[2]) + torch.sin(x - y + phase[3])
    return (torch.sin(y + phase[0] + time) + torch.sin(x + phase[1] - time) + crossing) / math.sqrt(2)
