"""What the kernels do, on tensors: the operations between the products and attentions of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

kernels: Any = import_module(".kernels", __package__)  # as what has no types
FP8 = torch.float8_e4m3fn
MOST_FRAMES = 64  # of attention along time; more are served well by PyTorch's kernels
TIME_WARPS = 2  # 1 takes twice as long on an H100, 4 are no faster
BLOCK = 2048  # numbers of a program that looks at no rows
MOST_KEPT = 3  # updates added at once


@dataclass(frozen=True)
class Rows:
    """A tensor [..., D] in eight bits, with a scale for each row."""

    values: Tensor  # float8_e4m3fn [..., D]
    scales: Tensor  # float32 [..., 1]


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float, *, fp8: bool = False) -> Tensor | Rows:
    """Layer norm without weights of x [B, T, S, D], then * (1 + scale) + shift, each [B, 1 or T, 1, D]."""
    x = x.contiguous()
    shift, rows_each, stride = _table(shift, x)
    scale, _, scale_stride = _table(scale, x)
    assert stride == scale_stride
    out, scales = _outputs(x, fp8)
    width, head, tail = _pieces(x)
    kernels.norm_modulate[(x.numel() // width,)](
        x, shift, scale, out, scales, rows_each, stride, eps, width, head, tail, fp8, num_warps=_warps(width)
    )
    return Rows(out, scales) if fp8 else out


def rows_in_fp8(x: Tensor, *, gelu: bool = False) -> Rows:
    """x [..., D] in eight bits; with `gelu`, tanh-approximated GELU of it."""
    x = x.contiguous()
    out, scales = _outputs(x, True)
    width, head, tail = _pieces(x)
    kernels.rows_in_fp8[(x.numel() // width,)](x, out, scales, width, head, tail, gelu, num_warps=_warps(width))
    return Rows(out, scales)


def add_update(
    x: Tensor, h: Tensor, gate: Tensor | None, *, keep: bool = False, fp8: bool = False, in_place: bool = False
) -> tuple[Tensor, Tensor | Rows | None]:
    """x + gate * h, and the update, where it is to be kept; x and h [B, T, S, D], gate [B, 1 or T, 1, D] or None.

    The sum takes the place of x where wanted, and the kept update that of h, but in eight bits.
    """
    h = h.contiguous()
    out = x if in_place else torch.empty_like(x)
    kept, scales = _outputs(x, True) if keep and fp8 else (h, h)
    table, rows_each, stride = (x, 1, 0) if gate is None else _table(gate, x)
    width, head, tail = _pieces(x)
    kernels.add_update[(x.numel() // width,)](
        x,
        h,
        table,
        out,
        kept,
        scales,
        rows_each,
        stride,
        width,
        head,
        tail,
        gate is not None,
        keep,
        fp8,
        num_warps=_warps(width),
    )
    if not keep:
        return out, None
    return out, Rows(kept, scales) if fp8 else kept


def add_kept(x: Tensor, kept: Sequence[Tensor | Rows], *, in_place: bool = False) -> Tensor:
    """x [..., D] + up to three kept updates of its shape."""
    fp8 = isinstance(kept[0], Rows)
    values = [part.values if isinstance(part, Rows) else part.contiguous() for part in kept]
    scales = [part.scales if isinstance(part, Rows) else part for part in kept]
    count, out = len(kept), x if in_place else torch.empty_like(x)
    values, scales = values + values[:1] * (MOST_KEPT - count), scales + scales[:1] * (MOST_KEPT - count)
    kernels.add_kept[(-(-x.numel() // BLOCK),)](
        x, *values, *scales, out, x.numel(), x.shape[-1], BLOCK, count, fp8, num_warps=4
    )
    return out


def norm_heads(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> None:
    """RMS norm of each head of the queries and keys in qkv [..., 3, heads, d], contiguous, in place."""
    heads, width = qkv.shape[-2:]
    rows, channels = kernels.triton.next_power_of_2(2 * heads), kernels.triton.next_power_of_2(width)
    kernels.norm_heads[(qkv.numel() // (3 * heads * width),)](
        qkv, q_weight, k_weight, eps, heads, width, rows, channels, num_warps=4
    )


def attend_in_time(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    angles: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Attention along time: q, k, v [B, T, S, heads, d] -> [B, T, S, heads * d].

    Args:
        q_weight, k_weight: [d] of RMS norm on queries and keys, or None.
        angles: float32 [T, d / 2] of rotary positions on neighbouring pairs of channels, or None.
    """
    batch, frames, tokens, heads, width = q.shape
    stride = q.stride(2)
    regular = (frames * tokens * stride, tokens * stride, stride, width, 1)
    assert q.stride() == k.stride() == v.stride() == regular, (q.stride(), regular)
    out = q.new_empty(batch, frames, tokens, heads * width)
    cosines, sines = (q, q) if angles is None else (angles.cos(), angles.sin())
    normed = q_weight is not None
    kernels.attend_in_time[(batch * tokens * heads,)](
        q,
        k,
        v,
        out,
        q_weight if normed else q,
        k_weight if normed else q,
        cosines,
        sines,
        frames,
        tokens,
        heads,
        stride,
        width**-0.5,
        eps,
        WIDTH=width,
        FRAMES=max(16, kernels.triton.next_power_of_2(frames)),
        HALF=max(16, kernels.triton.next_power_of_2(width) // 2),
        NORM=normed,
        ROTATE=angles is not None,
        num_warps=TIME_WARPS,
    )
    return out


def _outputs(x: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """Room for a result like x and, in eight bits, for its scales; kernels want a tensor there in either case."""
    out = torch.empty_like(x, dtype=FP8 if fp8 else x.dtype)
    return out, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) if fp8 else out


def _pieces(x: Tensor) -> tuple[int, int, int]:
    """The width of x's rows, and its two pieces: the largest power of two in it, and room for the rest."""
    assert x.is_contiguous()
    width = x.shape[-1]
    head = 1 << (width.bit_length() - 1)
    return width, head, 0 if head == width else kernels.triton.next_power_of_2(width - head)


def _table(values: Tensor, x: Tensor) -> tuple[Tensor, int, int]:
    """Values [B, 1 or T, 1, D] for rows of x [B, T, S, D]: how many rows share one of its, and from one to the next."""
    batch, frames, tokens, _ = x.shape
    own = values.shape[1]
    assert values.shape[0] == batch
    assert own in (1, frames)
    if values.stride(-1) != 1 or values.stride(0) != own * values.stride(1):
        values = values.contiguous()
    return values, tokens if own == frames else frames * tokens, values.stride(0) // own


def _warps(width: int) -> int:
    return 8 if width > 2048 else 4 if width > 256 else 1
