"""What the kernels do, on feature maps: sums, group norm with SiLU, enlargement, and the convolutions between them.

A map is a tensor [N, C, ...], of images [N, C, h, w] or clips [B, C, T, h, w], whose channels come last in memory. Each
function reads such maps without copying them, and gives such maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

kernels: Any = import_module(".norm_kernels", __package__)  # as what has no types
TILE = 4096  # numbers that a program works on at once
WARPS = 4
MOST_CHUNKS = 1024  # of a sample
LEAST_STEPS = 8  # tiles of a chunk: fewer give more sums than are worth writing
LEAST_CHANNELS, MOST_CHANNELS = 8, 1024
MOST_EACH = 32  # channels of a group
MOST_HEAD = 256  # channels of a head in PyTorch's fast attentions
MOST_KEYS = 2**15
MOST_SCORES = 2**26
ALIGNED = 8  # channels of fast convolutions come in multiples of it


@dataclass(frozen=True)
class Map:
    """A feature map, and what has been summed up of it for the norm that follows."""

    x: Tensor  # [N, C, ...]
    found: Tensor  # float32 [N, chunks, 2, C]: of each chunk of pixels the mean, and the squares about it
    chunk: int  # pixels of a chunk


def can_run(x: Tensor) -> bool:
    """Whether there are kernels for the place where x is, and no gradients are wanted."""
    return (x.is_cuda or kernels.RUN_ON_CPU) and not torch.is_grad_enabled()


def has_kernels(norm: nn.GroupNorm) -> bool:
    """Whether a norm is one that these kernels can do: channels and groups are powers of two."""
    channels, groups = norm.num_channels, norm.num_groups
    powers = all(number & (number - 1) == 0 for number in (channels, groups))
    some = LEAST_CHANNELS <= channels <= MOST_CHANNELS and channels // groups <= MOST_EACH
    return powers and some and norm.affine


def rows_of(x: Tensor) -> Tensor:
    """x [N, C, ...] as rows [N, pixels, C]: a view of a map, a copy of what is none."""
    return x.movedim(1, -1).flatten(1, -2).contiguous()


def map_of(rows: Tensor, size: Sequence[int]) -> Tensor:
    """Rows [N, pixels, C] as a map [N, C, *size]."""
    return rows.unflatten(1, tuple(size)).movedim(-1, 1)


def measured(x: Tensor) -> Map:
    """x, read once."""
    rows = rows_of(x)
    found, chunk = _moments(rows, rows, None, None, rows, rows.shape[1], kernels.AS_IS.value)
    return Map(map_of(rows, x.shape[2:]), found, chunk)


def added(x: Tensor, h: Tensor, bias: Tensor | None = None, factor: Tensor | None = None) -> Map:
    """x + factor * (h + bias), in the place of h; bias [C], factor [1]."""
    rows, update = rows_of(x), rows_of(h)
    found, chunk = _moments(rows, update, bias, factor, update, rows.shape[1], kernels.SUM.value)
    return Map(map_of(update, x.shape[2:]), found, chunk)


def spread(x: Tensor, size: Sequence[int], bias: Tensor | None = None) -> Map:
    """What a convolution with `phase_weight` made, plus bias [C], in the order of its pixels.

    x [frames, 4 C, h + 1, w + 1] -> [N, C, *size], where size is (2 h, 2 w), or for clips (T, 2 h, 2 w).
    """
    rows = rows_of(x)
    pixels = size[-2] * size[-1]
    samples = len(x) // (size[0] if len(size) > 2 else 1)
    out = rows.new_empty(samples, len(x) // samples * pixels, x.shape[1] // 4)
    found, chunk = _moments(rows, rows, bias, None, out, pixels, kernels.SPREAD.value, width=size[-1])
    return Map(map_of(out, size), found, chunk)


def _moments(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    out: Tensor,
    frame_pixels: int,
    source: int,
    width: int = 1,
) -> tuple[Tensor, int]:
    samples, pixels, channels = out.shape
    tile = TILE // channels
    steps = max(LEAST_STEPS, _power_of_2(-(-pixels // (tile * MOST_CHUNKS))))
    chunks = -(-pixels // (tile * steps))
    found = torch.empty(samples, chunks, 2, channels, device=x.device, dtype=torch.float32)
    kernels.moments[(chunks, samples)](
        x,
        h,
        x if bias is None else bias,
        x if factor is None else factor,
        out,
        found,
        pixels,
        width,
        frame_pixels,
        C=channels,
        ROWS=tile,
        STEPS=steps,
        SOURCE=source,
        BIAS=bias is not None,
        FACTOR=factor is not None,
        num_warps=WARPS,
    )
    return found, tile * steps


def normed(
    given: Map, norm: nn.GroupNorm, bias: Tensor | None = None, *, silu: bool = True, before: int = 0, own: bool = False
) -> Tensor:
    """SiLU of the group norm of a map, or the norm alone.

    Args:
        bias: [C] that the map is still without, as a convolution's that left it out.
        before: frames in front of each clip to leave room for, which nothing is written to.
        own: whether the result may take the map's place.
    """
    rows = rows_of(given.x)
    samples, pixels, channels = rows.shape
    scales = torch.empty(samples, 2, channels, device=rows.device, dtype=torch.float32)
    each = channels // norm.num_groups
    kernels.group_scales[(norm.num_groups, samples)](
        given.found,
        norm.weight if bias is None else bias,
        norm.weight,
        norm.bias,
        scales,
        pixels,
        given.found.shape[1],
        given.chunk,
        norm.eps,
        C=channels,
        EACH=each,
        MOST=MOST_CHUNKS,
        BIAS=bias is not None,
        num_warps=min(max(each, 4), 16),
    )
    size = list(given.x.shape[2:])
    frame = pixels // size[0]
    size[0] += before
    own = own and not before
    out = rows if own else rows.new_empty(samples, pixels + before * frame, channels)
    tile = 2 * TILE // channels
    kernels.scaled[(-(-pixels // tile), samples)](
        rows, scales, out, pixels, out.shape[1], before * frame, C=channels, ROWS=tile, SILU=silu, num_warps=WARPS
    )
    return map_of(out, size)


def convolved(conv: nn.Module, x: Tensor, padding: Sequence[int] | None = None, *, bias: bool = False) -> Tensor:
    """A convolution of a map, 2D or 3D, without its bias unless that is wanted; `padding`: other than its own.

    Few channels, as those of latents and pictures, are filled up with empty ones to what fast convolutions want.
    """
    assert isinstance(conv, (nn.Conv2d, nn.Conv3d))
    apply = F.conv2d if isinstance(conv, nn.Conv2d) else F.conv3d
    weight, own = conv.weight, conv.bias if bias else None
    narrow, wide = -conv.in_channels % ALIGNED, -conv.out_channels % ALIGNED
    if narrow:
        x = F.pad(x.movedim(1, -1), (0, narrow)).movedim(-1, 1)
    if narrow or wide:
        weight = F.pad(weight, (0, 0) * (weight.ndim - 2) + (0, narrow, 0, wide))
    given: Any = conv.padding if padding is None else tuple(padding)
    out = apply(x, weight, None, conv.stride, given)[:, : conv.out_channels]  # pyright: ignore[reportArgumentType]
    return out if own is None else out + own.view(-1, *[1] * (x.ndim - 2))


def phase_weight(weight: Tensor) -> Tensor:
    """Of a 3x3 convolution after an enlargement by repeating each pixel: one 2x2 convolution before it instead.

    Each result of the former sees four pixels of the small picture, some of them more than once; which four depends on
    whether its line and column are even or odd. Weights that meet the same pixel are added up: [O, I, 3, 3] ->
    [4 O, I, 2, 2], of even and odd lines, of even and odd columns. That is 4 / 9 of the products. Wants a padding of 1.
    """
    w = weight.movedim(1, -1).float()  # [O, 3, 3, I]
    lines = torch.stack([torch.stack([w[:, 0], w[:, 1] + w[:, 2]], 1), torch.stack([w[:, 0] + w[:, 1], w[:, 2]], 1)])
    a, b, c = lines.unbind(3)  # each [2, O, 2, I]
    both = torch.stack([torch.stack([a, b + c], 3), torch.stack([a + b, c], 3)], 1)  # [2, 2, O, 2, 2, I]
    return both.flatten(0, 2).to(weight.dtype).movedim(-1, 1)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head, each [N, S, d] -> the same.

    PyTorch's fast attentions end at 256 channels; what serves more reaches a seventh of what products can. Here the
    scores are written out, in float32, as many at once as MOST_SCORES says.
    """
    samples, keys, width = q.shape
    if width <= MOST_HEAD or keys > MOST_KEYS or not hasattr(torch.ops.aten.mm, "dtype"):
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    out = torch.empty_like(q)
    block = _power_of_2(keys)
    for i in range(samples):
        for queries, to in zip(q[i].split(MOST_SCORES // keys), out[i].split(MOST_SCORES // keys), strict=True):
            scores = _product(queries, k[i].t())
            weights = torch.empty_like(scores, dtype=v.dtype)
            kernels.softmax_rows[(len(queries),)](
                scores, weights, keys, width**-0.5, block, num_warps=8 if block <= 8192 else 16
            )
            del scores
            torch.mm(weights, v[i], out=to)
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, whatever a and b are in."""
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


def _power_of_2(number: int) -> int:
    """The least that is no smaller."""
    return 1 << (number - 1).bit_length()
