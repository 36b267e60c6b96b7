"""What the kernels do, on tensors: the attentions of a block, and what stands between them and the products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

kernels: Any = import_module(".kernels", __package__)  # as what has no types
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
GELU_TILE = (128, 256, 128)  # rows, columns and depth of a product; smaller ones read more than an H100's L2 gives
MOST_FRAMES = 64  # of attention along time; more are served well by PyTorch's kernels
TIME_WARPS = 2  # 1 takes twice as long on an H100, 4 are no faster
MOST_KEPT = 3  # updates added at once


@dataclass(frozen=True)
class Rows:
    """A tensor [..., D] in eight bits, with a scale for each row."""

    values: Tensor  # float8_e4m3fn [..., D]
    scales: Tensor  # float32 [..., 1]

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


@dataclass(frozen=True)
class Norm:
    """Layer norm without weights, then * (1 + scale) + shift, each [B, 1 or T, 1, D]."""

    shift: Tensor
    scale: Tensor
    eps: float


@dataclass(frozen=True)
class Fresh:
    """An update that was computed and not added yet: gate * h, h [B, T, S, D], gate [B, 1 or T, 1, D] or None."""

    gate: Tensor | None
    h: Tensor


def residual(
    x: Tensor,
    fresh: Fresh | None = None,
    kept: Sequence[Tensor | Rows] = (),
    *,
    norm: Norm | None = None,
    rows_fp8: bool = False,
    keep: bool = False,
    keep_fp8: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | Rows, Tensor | Rows | None]:
    """All that happens to the residual stream x [B, T, S, D] between two products.

    Args:
        fresh: what is added.
        kept: updates of x's shape that are added too, at most MOST_KEPT and all of one kind.
        norm: of the sum, where the next product wants that.
        rows_fp8: whether the next product wants the norm, or else the sum, in eight bits.
        keep, keep_fp8: whether the fresh update is to be kept, in eight bits.
        in_place: whether the sum may take the place of x. What is kept takes that of `fresh.h`, but in eight bits.

    Returns:
        The sum; what the next product reads, which is the sum where nothing else is wanted; what is kept.
    """
    h = x if fresh is None else fresh.h.contiguous()
    gate = None if fresh is None else fresh.gate
    rows = rows_fp8 or norm is not None
    out = x if in_place or (fresh is None and not kept) else torch.empty_like(x)
    saved, saved_scales = _outputs(x, True) if keep and keep_fp8 else (h, h)
    read, read_scales = _outputs(x, rows_fp8) if rows else (x, x)
    gate_table = (x, 1, 0) if gate is None else _table(gate, x)
    shift, norm_each, norm_stride = (x, 1, 0) if norm is None else _table(norm.shift, x)
    scale, _, scale_stride = (x, 1, norm_stride) if norm is None else _table(norm.scale, x)
    assert norm_stride == scale_stride
    values = [part.values if isinstance(part, Rows) else part.contiguous() for part in kept]
    scales = [part.scales if isinstance(part, Rows) else part for part in kept]
    spare = MOST_KEPT - len(kept)
    width, head, tail = _pieces(x)
    kernels.residual[(x.numel() // width,)](
        x,
        h,
        gate_table[0],
        *values,
        *[x] * spare,
        *scales,
        *[x] * spare,
        shift,
        scale,
        out,
        saved,
        saved_scales,
        read,
        read_scales,
        *gate_table[1:],
        norm_each,
        norm_stride,
        0.0 if norm is None else norm.eps,
        WIDTH=width,
        HEAD=head,
        TAIL=tail,
        FRESH=fresh is not None,
        GATE=gate is not None,
        KEEP=keep,
        KEEP_FP8=keep_fp8,
        PARTS=len(kept),
        PARTS_FP8=bool(kept) and isinstance(kept[0], Rows),
        NORM=norm is not None,
        ROWS=rows,
        ROWS_FP8=rows_fp8,
        num_warps=_warps(width),
    )
    next_rows = out if not rows else Rows(read, read_scales) if rows_fp8 else read
    return out, next_rows, None if not keep else Rows(saved, saved_scales) if keep_fp8 else saved


def rows_in_fp8(x: Tensor, *, gelu: bool = False) -> Rows:
    """x [..., D] in eight bits; with `gelu`, tanh-approximated GELU of it."""
    x = x.contiguous()
    out, scales = _outputs(x, True)
    width, head, tail = _pieces(x)
    kernels.rows_in_fp8[(x.numel() // width,)](x, out, scales, width, head, tail, gelu, num_warps=_warps(width))
    return Rows(out, scales)


def gelu_product(x: Rows, weight: Rows, bias: Tensor, factor: float, term: float) -> Rows:
    """tanh-approximated GELU of a linear layer, x [..., in], weight [out, in], bias [out] -> [..., out].

    A row's largest number is known only when all of it is there, so its scale comes from a bound instead: eight bits of
    a floating format lose nothing by being scaled down a few powers of two.

    Args:
        factor, term: |the layer's output| <= factor * the largest |x| of the row + term.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    high, wide, deep = GELU_TILE
    values, (columns, width) = x.values.flatten(0, -2), weight.shape
    out, scales = values.new_empty(len(values), columns), x.scales.new_empty(*x.shape[:-1], 1)
    tiles = -(-len(values) // high) * -(-columns // wide)
    programs = min(tiles, torch.cuda.get_device_properties(out.device).multi_processor_count if out.is_cuda else 2)
    kernels.gelu_product[(programs,)](
        TensorDescriptor.from_tensor(values, [high, deep]),
        TensorDescriptor.from_tensor(weight.values, [wide, deep]),
        TensorDescriptor.from_tensor(out, [high, wide]),
        x.scales,
        weight.scales,
        bias,
        scales,
        len(values),
        factor,
        term / FP8_MAX,
        WIDTH=width,
        COLUMNS=columns,
        TILE=high,
        TILE_COLUMNS=wide,
        DEPTH=deep,
        TILES_HIGH=8,
        PROGRAMS=programs,
        APPROXIMATE=out.is_cuda,
        num_warps=8,
        num_stages=3,
    )
    return Rows(out.unflatten(0, x.shape[:-1]), scales)


def norm_heads(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> None:
    """RMS norm of each head of the queries and keys in qkv [..., 3, heads, d], contiguous, in place."""
    heads, width = qkv.shape[-2:]
    rows, channels = _power_of_2(2 * heads), _power_of_2(width)
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
    # As rows: where there is a single token, as on a rank of many, its stride among the tokens says nothing.
    q, k, v = (part.flatten(0, 2) for part in (q, k, v))
    stride = q.stride(0)
    assert q.stride() == k.stride() == v.stride() == (stride, width, 1), (q.stride(), k.stride(), v.stride())
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
        FRAMES=max(16, _power_of_2(frames)),
        HALF=max(16, _power_of_2(width) // 2),
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
    return width, head, 0 if head == width else _power_of_2(width - head)


def _power_of_2(number: int) -> int:
    """The least that is no smaller; Triton's own takes longer than a launch."""
    return 1 << (number - 1).bit_length()


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
