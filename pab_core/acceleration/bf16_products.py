"""Products in bfloat16 on processors that have them (AVX-512 BF16, AMX); the rest of the model stays in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..broadcast import BroadcastRun


def why_not() -> str | None:
    """What stands against it on this machine, in a sentence; None: nothing does."""
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if not any(has is not None and has() for has in known):
        return "This processor has no products in bfloat16 (AVX-512 BF16 or AMX)."
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        return f"PyTorch {torch.__version__} cannot be told to multiply in bfloat16: 2.9 and later can."
    return None


@contextmanager
def bf16_products() -> Iterator[None]:
    """Linear layers inside multiply in bfloat16 and sum in float32; what goes in and comes out is float32."""
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class Bf16Run(BroadcastRun):
    """What it does is the table's, as ever; the products of the blocks are in bfloat16."""

    def run_block(self, block: Any, x: Tensor, cond: Any) -> Tensor:
        """The block's output [B, T, S, D]."""
        with bf16_products():
            return block(x, cond, self)
