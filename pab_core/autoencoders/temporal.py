"""The causal 3D autoencoder that shrinks a sequence of frame latents in time; the second half of Open-Sora's VAE 1.2.

Module names follow the released checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PabError

ACTIVATIONS: dict[str, type[nn.Module]] = {"swish": nn.SiLU, "relu": nn.ReLU}


@dataclass(frozen=True)
class TemporalConfig:
    """Sizes of the temporal autoencoder; the defaults are those of the released model."""

    in_out_channels: int = 4
    latent_embed_dim: int = 4
    embed_dim: int = 4
    filters: int = 128
    num_res_blocks: int = 4
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    num_groups: int = 32
    activation_fn: str = "swish"

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise PabError(
                f"vae_temporal needs one temporal_downsample entry between each two channel_multipliers, but has "
                f"{len(self.temporal_downsample)} for {len(self.channel_multipliers)}; correct the VAE's config.json."
            )
        if self.activation_fn not in ACTIVATIONS:
            raise PabError(
                f"vae_temporal.activation_fn is '{self.activation_fn}'; only {' and '.join(ACTIVATIONS)} are known."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TemporalConfig:
        """Reads the ``vae_temporal`` section; absent sizes are the official ones, other keys are ignored."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        for name in ("channel_multipliers", "temporal_downsample"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)

    @property
    def level_filters(self) -> list[int]:
        return [self.filters * multiplier for multiplier in self.channel_multipliers]

    @property
    def time_factor(self) -> int:
        return 2 ** sum(self.temporal_downsample)


class CausalConv3d(nn.Module):
    """3D convolution that sees the present and the past only: all padding in time goes in front.

    The kernel is a cube of odd size; height and width are kept, T becomes T / time_stride (rounded up).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, time_stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        side = kernel // 2
        # The stride shortens the padding, so that the last output of a strided convolution ends on the last frame.
        self.padding = (side, side, side, side, kernel - time_stride, 0)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=(time_stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class ResidualBlock(nn.Module):
    """[B, in, T, h, w] -> [B, out, T, h, w]"""

    def __init__(self, in_channels: int, out_channels: int, config: TemporalConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation_fn]()
        self.norm1 = nn.GroupNorm(config.num_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, bias=False)
        self.norm2 = nn.GroupNorm(config.num_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, bias=False)
        self.conv3 = CausalConv3d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        update = self.conv1(self.act(self.norm1(x)))
        update = self.conv2(self.act(self.norm2(update)))
        return update + (x if self.conv3 is None else self.conv3(x))


def residual_stack(in_channels: int, out_channels: int, config: TemporalConfig) -> nn.Sequential:
    """The ``num_res_blocks`` blocks of one level; the first of them changes the width."""
    widths = [in_channels] + [out_channels] * config.num_res_blocks
    return nn.Sequential(*(ResidualBlock(a, b, config) for a, b in pairwise(widths)))


class TemporalEncoder(nn.Module):
    """[B, C, T, h, w] -> [B, 2 * latent_embed_dim, T / time_factor, h, w]"""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = config.level_filters
        self.conv_in = CausalConv3d(config.in_out_channels, config.filters, 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            residual_stack(a, b, config) for a, b in pairwise([config.filters, *widths])
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, time_stride=2) if halve else nn.Identity()
            for width, halve in zip(widths[:-1], config.temporal_downsample, strict=True)
        )
        self.res_blocks = residual_stack(widths[-1], widths[-1], config)
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.act = ACTIVATIONS[config.activation_fn]()
        self.conv2 = CausalConv3d(widths[-1], 2 * config.latent_embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = blocks(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        x = self.res_blocks(x)
        return self.conv2(self.act(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """[B, latent_embed_dim, T', h, w] -> [B, C, T' * time_factor, h, w]

    Levels are stored in the encoder's order (widest last) and run backwards.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = config.level_filters
        self.repeats = [2 if double else 1 for double in config.temporal_downsample]
        self.conv1 = CausalConv3d(config.latent_embed_dim, widths[-1], 3)
        self.res_blocks = residual_stack(widths[-1], widths[-1], config)
        self.block_res_blocks = nn.ModuleList(
            residual_stack(a, b, config) for a, b in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, 3) if double else nn.Identity()
            for width, double in zip(widths[1:], config.temporal_downsample, strict=True)
        )
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.act = ACTIVATIONS[config.activation_fn]()
        self.conv_out = CausalConv3d(widths[0], config.in_out_channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.res_blocks(self.conv1(z))
        for level in range(len(self.block_res_blocks) - 1, -1, -1):
            x = self.block_res_blocks[level](x)
            if level > 0:
                x = self.conv_blocks[level - 1](x)
                # Neighbouring channels become neighbouring frames: [B, C * r, T, h, w] -> [B, C, T * r, h, w].
                x = x.unflatten(1, (-1, self.repeats[level - 1])).movedim(2, 3).flatten(2, 3)
        return self.conv_out(self.act(self.norm1(x)))


class TemporalVAE(nn.Module):
    """Shrinks one chunk of frame latents in time; T <-> ceil(T / time_factor)."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.time_factor = config.time_factor
        self.encoder = TemporalEncoder(config)
        self.quant_conv = CausalConv3d(2 * config.latent_embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_embed_dim, 1)
        self.decoder = TemporalDecoder(config)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T, h, w] -> mean and log variance, each [B, Z, T', h, w]"""
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.time_factor, 0))
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """[B, Z, T', h, w] -> [B, C, num_frames, h, w]"""
        return self.decoder(self.post_quant_conv(z))[:, :, -num_frames % self.time_factor :]
