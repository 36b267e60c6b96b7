"""The blocks of Open-Sora-Plan's video autoencoder, listed by the names that its config.json uses.

Shapes: B batch, C channels, T frames, h and w the size at that level. Module names follow the released checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PabError

Part = TypeVar("Part")
Conv = Callable[[int, int, int], nn.Module]


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def each_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a layer for images [N, C, h, w] to every frame of x [B, C, T, h, w]."""
    frames = x.transpose(1, 2)
    return layer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def first_frame_before(x: Tensor, count: int) -> Tensor:
    """[B, C, T, h, w] -> [B, C, count + T, h, w]: the past of a clip is its first frame."""
    return torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2) if count else x


def double_time(x: Tensor) -> Tensor:
    """[B, C, T, h, w] -> [B, C, 2 T - 1, h, w]: the first frame stays, those after it are interpolated."""
    if x.shape[2] == 1:
        return x
    rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")
    return torch.cat([x[:, :, :1], rest], dim=2)


def pool_time(x: Tensor) -> Tensor:
    """[B, C, T, h, w] -> [B, C, (T - 1) / 2, h, w], means of three neighbouring frames.

    torch's own pooling in 3D has no half precision on the CPU.
    """
    return x.unfold(2, 3, 2).mean(-1)


class FrameConv2d(nn.Conv2d):
    """A 2D convolution of every frame; the kernel is odd, height and width are kept."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, input: Tensor) -> Tensor:
        return each_frame(super().forward, input)


class CausalConv3d(nn.Module):
    """3D convolution that sees the present and the past only; what lies before the clip is its first frame.

    `kernel` is one odd size, or those of time, height and width; `stride` and `padding` are about height and width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int, int],
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        sizes = (kernel, kernel, kernel) if isinstance(kernel, int) else kernel
        sides = sizes[2] // 2 if padding is None else padding
        self.past = sizes[0] - 1
        self.conv = nn.Conv3d(in_channels, out_channels, sizes, stride=(1, stride, stride), padding=(0, sides, sides))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(first_frame_before(x, self.past))


class ResidualBlock(nn.Module):
    """[B, in, T, h, w] -> [B, out, T, h, w]; norms over the whole clip."""

    def __init__(self, in_channels: int, out_channels: int, conv: Conv = CausalConv3d) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.norm2 = norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        if in_channels != out_channels:
            self.nin_shortcut = conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        update = self.conv1(F.silu(self.norm1(x)))
        update = self.conv2(F.silu(self.norm2(update)))
        return update + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class FrameResidualBlock(ResidualBlock):
    """The same with every frame for itself, norms included."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, lambda a, b, kernel: nn.Conv2d(a, b, kernel, padding=kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(super().forward, x)


class FrameAttention(nn.Module):
    """Single-head self-attention over the places of each frame; the norm is over the whole clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (CausalConv3d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # [B, C, T, h, w] -> [B, T, h w, C]; copied, because torch builds the whole attention matrix for strided ones
        q, k, v = (layer(h).permute(0, 2, 3, 4, 1).flatten(2, 3).contiguous() for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).unflatten(2, x.shape[3:]).permute(0, 4, 1, 2, 3)
        return x + self.proj_out(h)


class FrameDownsample(nn.Module):
    """[B, C, T, h, w] -> [B, C, T, h / 2, w / 2], frame by frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(lambda frames: self.conv(F.pad(frames, (0, 1, 0, 1))), x)


class SpaceDownsample(nn.Module):
    """The same by a 3D convolution of one frame's depth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class SpaceUpsample(nn.Module):
    """[B, C, T, h, w] -> [B, C, T, 2 h, 2 w]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class TimePool(nn.Module):
    """[B, C, T, h, w] -> [B, C, (T + 1) / 2, h, w], means of three neighbouring frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return pool_time(first_frame_before(x, 2))


class TimeStretch(nn.Module):
    """[B, C, T, h, w] -> [B, C, 2 T - 1, h, w]"""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return double_time(x)


class TimeDownsample(nn.Module):
    """[B, C, T, h, w] -> [B, C, (T + 1) / 2, h, w]: a learned mixture of a pool and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        share = self.mix_factor.sigmoid()
        x = first_frame_before(x, 2)
        return share * pool_time(x) + (1 - share) * self.conv(x)


class TimeUpsample(nn.Module):
    """[B, C, T, h, w] -> [B, C, 2 T - 1, h, w]: a learned mixture of the stretched clip and a convolution of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 3)
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        share = self.mix_factor.sigmoid()
        x = double_time(x)
        return share * x + (1 - share) * self.conv(x)


CONVS: dict[str, Conv] = {"Conv2d": FrameConv2d, "CausalConv3d": CausalConv3d}
RESIDUAL_BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    "ResnetBlock2D": FrameResidualBlock,
    "ResnetBlock3D": ResidualBlock,
}
ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {"AttnBlock3DFix": FrameAttention}
RESAMPLERS: dict[str, Callable[[int], nn.Module]] = {
    "Downsample": FrameDownsample,
    "SpatialDownsample2x": SpaceDownsample,
    "SpatialUpsample2x": SpaceUpsample,
    "TimeDownsample2x": TimePool,
    "TimeDownsampleRes2x": TimeDownsample,
    "TimeUpsample2x": TimeStretch,
    "TimeUpsampleRes2x": TimeUpsample,
}


def part(parts: dict[str, Part], name: str) -> Part:
    """The part of that name; PabError if Open-Sora-Plan v1.1.0 has none."""
    if name not in parts:
        raise PabError(
            f"The VAE's config.json names a part '{name}', but the autoencoder of Open-Sora-Plan v1.1.0 is made of "
            f"{', '.join(parts)} at that place; the file is probably that of another version."
        )
    return parts[name]
