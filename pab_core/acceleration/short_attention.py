"""Attention along time, over the few latent frames of a video, in one Triton kernel.

PyTorch's fused kernels are made for long sequences: of 15 frames they use a quarter of what the memory gives, and they
want queries, keys and values moved so that time comes last. This kernel reads them where the linear layer left them,
[B, T, S, 3, heads, d], normalises and rotates queries and keys on the way, and writes [B, T, S, heads, d]; each number
crosses the memory once.
"""

# Triton comes with CUDA builds of torch alone, and its language is not Python to a type checker.
# pyright: reportMissingImports=false

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:  # Windows, macOS, CPU builds of torch
        triton = tl = None

MOST_FRAMES = 64  # more are served well by PyTorch's kernels


def is_available(device: torch.device, frames: int) -> bool:
    return triton is not None and device.type == "cuda" and frames <= MOST_FRAMES


@cache
def _define() -> Any:
    @triton.jit
    def kernel(
        qkv,
        out,
        q_weight,
        k_weight,
        angles,
        frames,
        tokens,
        heads,
        scale,
        eps,
        WIDTH: tl.constexpr,
        FRAMES: tl.constexpr,
        CHANNELS: tl.constexpr,
        NORM: tl.constexpr,
        ROTATE: tl.constexpr,
    ):
        program = tl.program_id(0).to(tl.int64)
        head = program % heads
        token = program // heads % tokens
        sample = program // heads // tokens
        t = tl.arange(0, FRAMES)
        c = tl.arange(0, CHANNELS)
        real = (t[:, None] < frames) & (c[None, :] < WIDTH)
        row = heads * WIDTH  # channels of one of q, k, v
        first = sample * frames * tokens + token
        place = (first + t.to(tl.int64) * tokens)[:, None] * (3 * row) + head * WIDTH
        q = tl.load(qkv + place + c[None, :], mask=real, other=0.0).to(tl.float32)
        k = tl.load(qkv + place + row + c[None, :], mask=real, other=0.0).to(tl.float32)
        v = tl.load(qkv + place + 2 * row + c[None, :], mask=real, other=0.0)
        q_scale = tl.full([FRAMES], 1.0, tl.float32)
        k_scale = tl.full([FRAMES], 1.0, tl.float32)
        if NORM:
            q_scale = 1 / tl.sqrt(tl.sum(q * q, 1) / WIDTH + eps)
            k_scale = 1 / tl.sqrt(tl.sum(k * k, 1) / WIDTH + eps)
            q = q * q_scale[:, None] * tl.load(q_weight + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
            k = k * k_scale[:, None] * tl.load(k_weight + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
            # As RMSNorm leaves them in the model's precision.
            q, k = q.to(v.dtype).to(tl.float32), k.to(v.dtype).to(tl.float32)
        if ROTATE:
            # The partner of an even channel is the next one, that of an odd channel the one before; the second read
            # of each row comes from the cache.
            partner = c ^ 1
            q2 = tl.load(qkv + place + partner[None, :], mask=real, other=0.0).to(tl.float32)
            k2 = tl.load(qkv + place + row + partner[None, :], mask=real, other=0.0).to(tl.float32)
            if NORM:
                q2 = q2 * q_scale[:, None] * tl.load(q_weight + partner, mask=c < WIDTH, other=0.0).to(tl.float32)
                k2 = k2 * k_scale[:, None] * tl.load(k_weight + partner, mask=c < WIDTH, other=0.0).to(tl.float32)
                q2, k2 = q2.to(v.dtype).to(tl.float32), k2.to(v.dtype).to(tl.float32)
            angle = tl.load(angles + t[:, None] * (WIDTH // 2) + c[None, :] // 2, mask=real, other=0.0)
            sign = tl.where(c % 2 == 0, -1.0, 1.0)[None, :]
            cos, sin = tl.cos(angle), tl.sin(angle) * sign
            q, k = q * cos + q2 * sin, k * cos + k2 * sin
        scores = tl.dot(q.to(v.dtype), tl.trans(k.to(v.dtype)), input_precision="ieee") * scale
        scores = tl.where((t < frames)[None, :], scores, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, 1)[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
        result = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        target = (first + t.to(tl.int64) * tokens)[:, None] * row + head * WIDTH + c[None, :]
        tl.store(out + target, result.to(v.dtype), mask=real)

    return kernel


@torch.library.custom_op("pab::time_attention", mutates_args=())
def time_attention(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, angles: Tensor | None, eps: float
) -> Tensor:
    """qkv [B, T, S, 3, heads, d], contiguous -> [B, T, S, heads * d].

    Args:
        q_weight, k_weight: [d] of RMSNorm on queries and keys, or None.
        angles: float32 [T, d / 2] of rotary positions on neighbouring pairs of channels, or None.
    """
    batch, frames, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, frames, tokens, heads * width)
    _define()[(batch * tokens * heads,)](
        qkv,
        out,
        q_weight,
        k_weight,
        angles,
        frames,
        tokens,
        heads,
        width**-0.5,
        eps,
        WIDTH=width,
        FRAMES=max(16, triton.next_power_of_2(frames)),
        CHANNELS=max(16, triton.next_power_of_2(width)),
        NORM=q_weight is not None,
        ROTATE=angles is not None,
        num_warps=2,
    )
    return out


@time_attention.register_fake
def _(qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, angles: Tensor | None, eps: float) -> Tensor:
    batch, frames, tokens, _, heads, width = qkv.shape
    return qkv.new_empty(batch, frames, tokens, heads * width)
