"""The image autoencoder inside Open-Sora's, and frames as images.

A clip [B, C, T, H, W] is B * T images, in the order of its frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Fixed in the authors' code, whatever scaling factor the image autoencoder's own config names.
SPATIAL_SCALE = 0.18215

# The image autoencoder of the released model (SDXL's), for configs that only name where it came from.
OFFICIAL_SPATIAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}


class SpatialVAE(nn.Module):
    """The image autoencoder, frame by frame; its latents are scaled by 0.18215."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__()
        module = AutoencoderKL.from_config(dict(config))
        assert isinstance(module, AutoencoderKL)
        self.module = module

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] -> mean and standard deviation, each [N, C, h, w]"""
        posterior = self.module.encode(frames, return_dict=False)[0]
        return posterior.mean * SPATIAL_SCALE, posterior.std * SPATIAL_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, 3, H, W]"""
        # diffusers' annotation asks for a FloatTensor; any float tensor does.
        return self.module.decode(latents / SPATIAL_SCALE, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def draw(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of that shape, drawn on the generator's own device: a CPU seed is the same everywhere."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like)


def video_to_frames(video: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]"""
    return video.transpose(1, 2).flatten(0, 1)


def frames_to_video(frames: Tensor, batch: int) -> Tensor:
    """[B * T, C, H, W] -> [B, C, T, H, W]"""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
