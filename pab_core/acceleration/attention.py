"""Attention between many tokens, by the kernel that is the fastest of those that the machine has.

Heads of 72 channels are what PyTorch's kernels are bad at: cuDNN's, the fastest of them, pads to 128. FlashAttention 4
(the optional package flash-attn-4) pads to 80 on Hopper, which pays for long sequences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH_CAPABILITY = (9, 0)
# Of self-attention on an H100, heads of 72, FlashAttention 4 over cuDNN: 1024 tokens 1.07 of the time, 1590 0.83, 3600
# 0.72. To a text of 300 tokens 1.11.
LEAST_FLASH_TOKENS = 1280
Flash = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k and v [B, S, heads, d] -> [B, S, heads, d]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """q [B, S, heads, d], k and v [B, L, heads, d], bias (or bool: not masked) [B, 1, 1, L] -> [B, S, heads * d]."""
    if bias is None and q.dtype in (torch.bfloat16, torch.float16) and q.shape == k.shape:
        flash = flash_attention(q.device) if q.is_cuda and q.shape[1] >= LEAST_FLASH_TOKENS else None
        if flash is not None:
            return flash(q, k, v).flatten(2)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


@cache
def flash_attention(device: torch.device) -> Flash | None:
    """FlashAttention 4 where it is installed and runs; it compiles its kernels as they are first needed."""
    if torch.cuda.get_device_capability(device) != FLASH_CAPABILITY:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its compiler's, of its own arguments
        try:
            from flash_attn.cute import flash_attn_func  # pyright: ignore[reportMissingImports]
        except ImportError:
            return None

        def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            made: Any = flash_attn_func(q, k, v)
            return made[0] if isinstance(made, tuple) else made

        tried = torch.zeros(1, 128, 1, 72, device=device, dtype=torch.bfloat16)
        try:
            flash(tried, tried, tried)
        except Exception as error:  # whatever an unfinished package raises, there are other kernels
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        else:
            return flash
    warnings.warn(f"FlashAttention is installed and does not run ({said}): PyTorch's attention is used.", stacklevel=2)
    return None
