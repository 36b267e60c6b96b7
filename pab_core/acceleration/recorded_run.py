"""A fused run that records the steps in which everything is computed: of a small clip, with which a GPU is done sooner
than the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..broadcast import ScheduleTable
from ..broadcast.cache import Store
from ..models.layers import Branch
from .recording import Recorder
from .run import FusedRun

# Of the stream: from then on the GPU takes longer than the processor. Half of Open-Sora's 51 frames at 480p, which two
# GPUs have each, gains; Latte's and Open-Sora-Plan's 512x512 do not.
MOST_VALUES = 32_000 * 1152


class RecordedRun(FusedRun):
    """What blocks do when all of their branches are computed, and none is kept by itself, is the same at each such
    step: it is recorded, and what a group keeps is taken from x before and after.

    Steps that reuse some branches are not: a schedule of ranges goes thirty steps in ten ways, hardly one of them often
    enough to be worth a record.
    """

    def __init__(self, table: ScheduleTable, store: Store | None = None):
        super().__init__(table, store)
        self._recorder = Recorder()
        self._recording = False  # or what might be: then groups are left to run_blocks
        self._ahead: dict[tuple[Branch, Branch], list[int]] = {}  # steps that compute all, of the first to the last

    def run_blocks(self, blocks: Sequence[Any], start: Callable[[], Tensor], cond: Any) -> Tensor:
        stream = self._stream(start())
        if (self.step, self.lane) != self._place:
            self._enter(stream.x, cond)
        branches = [branch for block in blocks for branch in block.branches]
        if not self._records(stream.x) or not self._computes_all(branches):
            return self._run(stream, blocks, cond, None)
        kept = [branch for branch in branches if self._source(branch)[1] is not None]
        if not kept:
            return self._recorded(blocks, branches, stream.x, cond)
        group = self._group[kept[0]]
        if not set(branches) <= set(group):
            return self._run(stream, blocks, cond, None)
        # The sum of the group, which may go on after these blocks.
        if branches[0] == group[0]:
            self._drop_decided(group[0])
        stream.before = stream.x.clone() if self._recorder.owns(stream.x) else stream.x
        stream.sum_key = (self.lane, group[0], self.step)
        stream.x = self._recorded(blocks, branches, stream.x, cond)
        key = self._add_gain(stream, cond)
        if branches[-1] == group[-1]:
            self._keep_sum(stream, key, cond)
        return stream.x

    def _records(self, x: Tensor) -> bool:
        """Whether it is worth it."""
        # Of memory that CUDA itself hands out (ComfyUI's default) a start may want more, and then it is too late.
        return x.is_cuda and x.numel() <= MOST_VALUES and torch.cuda.get_allocator_backend() == "native"

    def _computes_all(self, branches: Sequence[Branch], step: int | None = None) -> bool:
        """Whether all of them are computed at a step, by default the present one, and none is kept by itself."""
        if self.table.decide is not None:
            return all(self._source(branch)[0] == self.step for branch in branches)
        table, step = self.table, self.step if step is None else step
        return all(
            table.source[branch][step] == step and (branch in self._group or (branch, step) not in table.last_use)
            for branch in branches
        )

    def _recorded(self, blocks: Sequence[Any], branches: Sequence[Branch], x: Tensor, cond: Any) -> Tensor:
        """What the blocks make of x; nothing is kept."""
        ends = branches[0], branches[-1]
        if ends not in self._ahead:  # where the run decides, any step may
            steps, known = range(self.table.steps), self.table.decide is None
            self._ahead[ends] = [i for i in steps if not known or self._computes_all(branches, i)]
        left = sum(i >= self.step for i in self._ahead[ends])

        def compute(x: Tensor, cond: Any) -> Tensor:
            self._recording = True
            try:
                return self._run(self._stream(x), blocks, cond, None)
            finally:
                self._recording = False

        return self._recorder((self.lane, x.shape), ends, compute, x, cond, left)

    def _due(self, branch: Branch) -> tuple[int, int | None, tuple[Branch, ...] | None]:
        source, last, group = super()._due(branch)
        return (source, None, None) if self._recording else (source, last, group)
