"""Products of float32 by oneDNN, on a CPU where PyTorch would ask MKL, which on AMD's leaves AVX-512 unused.

oneDNN is allowed to multiply in bfloat16 and takes it where the processor gains by it (AMX); sums are in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..broadcast import BroadcastRun


def why_not() -> str | None:
    """What stands against it on this machine, in a sentence; None: nothing does."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return "Faster products on a CPU need AVX-512, which this one lacks."
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        return f"PyTorch {torch.__version__} cannot be told whose products to take: 2.9 and later can."
    return None


@contextmanager
def onednn_products() -> Iterator[None]:
    """Linear layers inside are oneDNN's; what goes in and comes out is float32."""
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class OneDnnRun(BroadcastRun):
    """What it does is the table's, as ever; the products of the blocks are oneDNN's."""

    def run_block(self, block: Any, x: Tensor, cond: Any) -> Tensor:
        """The block's output [B, T, S, D]."""
        with onednn_products():
            return block(x, cond, self)
