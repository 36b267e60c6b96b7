"""A run in fused operations, for CUDA GPUs with Triton."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..broadcast import BroadcastRun
from ..broadcast.cache import Fp8Store
from ..models.layers import Branch, Update

# cuDNN's is the fastest of long sequences on GPUs that have it, and refuses what it cannot do.
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
LEAST_CAPABILITY = (8, 0)


def why_not(device: torch.device) -> str | None:
    """What stands against fused operations on a device, in a sentence; None: nothing does."""
    if device.type != "cuda":
        return "Fused operations need a CUDA GPU."
    if find_spec("triton") is None:
        return "Fused operations need Triton, which this build of PyTorch came without."
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is too old for fused operations: they begin with Ampere."
    return None


class FusedRun(BroadcastRun):
    """What it does is the table's, as ever, in fewer kernels: whole blocks come through it, not single updates.

    An update that is to be kept is written by the kernel that adds it, in eight bits too; those that are reused wait
    until something is computed, and are added together. What a table asks beyond single updates (their sums over groups
    of branches, scores, predictions) is done as in any run.
    """

    def run_block(self, block: Any, x: Tensor, cond: Any) -> Tensor:
        """The block's output [B, T, S, D]."""
        if (self.step, self.lane) != self._place:
            self._enter(x, cond)
        return self.run_shared_block(block, x, cond, None)

    def run_shared_block(self, block: Any, x: Tensor, cond: Any, shared: Any) -> Tensor:
        """As run_block, of some of the frames; `shared`, a parallel.seam.FrameSeam, computes what needs the others."""
        with sdpa_kernel(ATTENTION, set_priority=True):
            waiting: list[Any] = []
            own = False  # whether x is of this block's making: then sums may take its place
            x = x.contiguous()
            for branch, update in block.updates():
                source, last = self._source(branch)
                if source != self.step and self._is_simple(branch):
                    waiting.append(self._take(branch, source, last))
                    continue
                if waiting:
                    x, waiting, own = _add(x, waiting, own), [], True
                x = self._compute(block, branch, update, x, cond, last, own, shared)
                own = True
            return _add(x, waiting, own)

    def _is_simple(self, branch: Branch) -> bool:
        scores = self.table.scores and branch.kind != "mlp"
        return self._predictor is None and branch not in self._group and not scores

    def _take(self, branch: Branch, source: int, last: int | None) -> Any:
        from .fused import Rows

        store, key = self._store, (self.lane, branch, source)
        value = Rows(*store.take_encoded(key)) if isinstance(store, Fp8Store) else store.take(key)
        if last == self.step:
            store.drop(key)
        return value

    def _compute(
        self, block: Any, branch: Branch, update: Update, x: Tensor, cond: Any, last: int | None, own: bool, shared: Any
    ) -> Tensor:
        from .fused import Rows, add_update
        from .updates import fused_update

        fused = fused_update(block, branch.kind, x)
        together = None if branch.kind != "temporal" else shared
        if shared is not None:
            update = shared.shared(branch, update)
        if fused is None or not self._is_simple(branch) or (together is not None and not together.shares_gated(branch)):
            return x + self(branch, update, x, cond)
        gate, h = fused(block, x, cond) if together is None else together.gated(fused, x)
        fp8 = isinstance(self._store, Fp8Store)
        x, kept = add_update(x, h, gate, keep=last is not None, fp8=fp8, in_place=own)
        key = (self.lane, branch, self.step)
        if isinstance(kept, Rows):
            assert isinstance(self._store, Fp8Store)
            self._store.keep_encoded(key, kept.values, kept.scales, x.dtype)
            self.peak_bytes = max(self.peak_bytes, self.kept_bytes)
        elif kept is not None:
            self._keep(key, kept, cond)
        return x


def _add(x: Tensor, waiting: list[Any], own: bool) -> Tensor:
    from .fused import MOST_KEPT, add_kept

    for start in range(0, len(waiting), MOST_KEPT):
        x = add_kept(x, waiting[start : start + MOST_KEPT], in_place=own or start > 0)
    return x
