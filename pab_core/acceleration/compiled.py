"""Whole blocks compiled, once for each pattern of what they compute and reuse.

A schedule table has few distinct patterns: which of a block's branches compute, which compute and are kept for later,
and which reuse. Each is compiled once for all blocks of a stream, since weights are arguments of the compiled code; so
norms, modulation, gates and residual sums melt into few kernels, and a reused update is one more term of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..broadcast import BroadcastRun, ScheduleTable
from ..broadcast.cache import Store
from ..models.layers import Branch
from .updates import fast_update

Action = Literal["compute", "keep", "reuse"]
MOST_PATTERNS = 128  # of all tables, sizes and models of a process together


class PatternSeam:
    """The seam inside compiled code: knows nothing but the actions of the block's branches, in their order."""

    def __init__(self, block: nn.Module, actions: tuple[Action, ...], reused: Sequence[Tensor]):
        self.block = block
        self.actions = actions
        self.reused = reused
        self.kept: list[Tensor] = []
        self.position = 0
        self.taken = 0

    def __call__(self, branch: Branch, update: Any, x: Tensor, cond: Any) -> Tensor:
        action = self.actions[self.position]
        self.position += 1
        if action == "reuse":
            value = self.reused[self.taken]
            self.taken += 1
            return value
        fast = fast_update(self.block, branch.kind, x)
        value = update(x, cond) if fast is None else fast(self.block, x, cond)
        if action == "keep":
            value = value.contiguous()  # or each order of its axes would be compiled for where it is reused
            self.kept.append(value)
        return value


def run_pattern(
    block: nn.Module, x: Tensor, cond: Any, actions: tuple[Action, ...], reused: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """-> the block's output [B, T, S, D], and the updates to keep, in the order of their branches."""
    seam = PatternSeam(block, actions, reused)
    return block(x, cond, seam), seam.kept


@cache
def compiled(backend: str) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    return torch.compile(run_pattern, backend=backend)


class CompiledRun(BroadcastRun):
    """A run whose blocks are compiled; what it does is the table's, as ever. `backend`: torch.compile's."""

    def __init__(self, table: ScheduleTable, store: Store | None = None, backend: str = "inductor"):
        super().__init__(table, store)
        self.backend = backend

    def run_block(self, block: Any, x: Tensor, cond: Any) -> Tensor:
        branches: tuple[Branch, ...] = block.branches
        if self._group or self.table.scores or self.table.decide is not None:
            return block(x, cond, self)  # kinds of reuse that are not patterns of single updates
        if (self.step, self.lane) != self._place:
            self._enter(x, cond)
        actions: list[Action] = []
        reused: list[Tensor] = []
        keys: list[tuple[str, Branch, int]] = []
        for branch in branches:
            source, last = self._source(branch)
            key = (self.lane, branch, source)
            if source != self.step:
                actions.append("reuse")
                reused.append(self._store.take(key))
                if last == self.step:
                    self._store.drop(key)
            elif last is None:
                actions.append("compute")
            else:
                actions.append("keep")
                keys.append(key)
        # Each pattern is one more compilation of the same function.
        with torch._dynamo.config.patch(recompile_limit=MOST_PATTERNS):
            x, kept = compiled(self.backend)(block, x, cond, tuple(actions), reused)
        for key, value in zip(keys, kept, strict=True):
            self._keep(key, value)
        return x
