"""TeaCache for many clips made together, each of which is decided for itself, as if it were made alone.

As long as one of the clips is to be computed all of them are, and those that reuse are then put where reuse would have
put them: it takes the time of a run without reuse, and far less than that of as many runs as there are clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..broadcast.run import Key, Update
from ..broadcast.teacache import TeaCache, TeaCacheDecision, modulated_input, polynomial
from ..models.layers import Branch
from ..pipeline import Pipeline

if TYPE_CHECKING:

    class _Base(BroadcastRun): ...

else:

    class _Base: ...


class DecisionsApart:
    """As TeaCacheDecision, with a sum for each clip."""

    def __init__(self, policy: TeaCache, table: Tensor, clips: int):
        self.policy, self.table, self.clips = policy, table, clips
        self.before: Tensor | None = None
        self.sums = [0.0] * clips
        self.again = [False] * clips  # which clips reuse at this step
        self.reused = [0] * clips  # steps

    def reuse(self, step: int, steps: int, x: Tensor, cond: Any) -> bool:
        """Whether all clips reuse; x [R * clips, T, S, D], of each clip one row with its prompt and one without."""
        signal = modulated_input(x, cond.modulation, self.table)
        before, self.before = self.before, signal
        self.again = [False] * self.clips
        if before is None or step in (0, steps - 1):
            self.sums = [0.0] * self.clips
            return False
        for clip, change in enumerate(relative_changes(signal, before, self.clips).tolist()):
            self.sums[clip] += polynomial(self.policy.coefficients, change)
            if self.sums[clip] < self.policy.threshold:
                self.again[clip] = True
                self.reused[clip] += 1
            else:
                self.sums[clip] = 0.0
        return all(self.again)


def relative_changes(now: Tensor, before: Tensor, clips: int) -> Tensor:
    """[clips]: as teacache.relative_change, of each of the clips in [R * clips, ...]."""
    return mean_of_clips((now - before).abs(), clips) / mean_of_clips(before.abs(), clips)


def mean_of_clips(values: Tensor, clips: int) -> Tensor:
    """[R * clips, ...] -> [clips]; of each clip there is one row with its prompt and one without."""
    return values.unflatten(0, (-1, clips)).transpose(0, 1).flatten(1).mean(1)


class Apart(_Base):
    """In front of a run's class: what it keeps for reuse is blended of what the clips that reuse had before and what
    the others have computed, and the same goes for what comes out."""

    clips: int
    _old: Tensor | None = None
    _change: Tensor | None = None  # of the last update, for the clips that reuse

    def begin(self, model: Any) -> None:
        super().begin(model)
        alone = self._decision
        assert isinstance(alone, TeaCacheDecision)
        self._decision = self.decisions = DecisionsApart(alone.policy, alone.table, self.clips)

    def reused_shares(self) -> list[float]:
        """Of all branch calls, for each clip."""
        return [count / self.table.steps for count in self.decisions.reused]

    def _drop_decided(self, branch: Branch) -> None:
        if self.step > 0 and any(self.decisions.again):
            self._old = self._store.take((self.lane, branch, self._sources[self.step - 1]))
        super()._drop_decided(branch)

    def _keep(self, key: Key, value: Tensor, cond: Any = None) -> None:
        if self._old is not None:
            again = torch.tensor(self.decisions.again, device=value.device)
            rows = again.repeat(len(value) // self.clips).view(-1, *[1] * (value.ndim - 1))
            self._change = torch.where(rows, self._old - value, torch.zeros_like(value))
            value, self._old = torch.where(rows, self._old, value), None
        super()._keep(key, value, cond)

    def take_change(self) -> Tensor | None:
        change, self._change = self._change, None
        return change


class RunApart(Apart, BroadcastRun):
    """In the model's own operations."""

    def _in_group(self, branch: Branch, update: Update, x: Tensor, cond: Any, source: int, last: int | None) -> Tensor:
        value, change = super()._in_group(branch, update, x, cond, source, last), self.take_change()
        return value if change is None else value + change


def run_apart(pipe: Pipeline, table: ScheduleTable, kept: str, clips: int) -> Apart:
    """A fresh run of a table that decides in the run, for so many clips made together."""
    usual = pipe.new_run(table, kept)
    kind = RunApart if type(usual) is BroadcastRun else _fused()
    run = kind(table, usual._store)  # pyright: ignore[reportPrivateUsage]
    run.clips = clips
    return run


def _fused() -> type[Apart]:
    from ..acceleration.run import FusedRun

    class FusedRunApart(Apart, FusedRun):
        """In fused operations."""

        def _keep_sum(self, stream: Any, key: Key, cond: Any) -> None:
            # Blended before it is turned into eight bits.
            self._keep(key, self._sums.pop(key), cond)

        def _compute_in_group(
            self, stream: Any, block: Any, branch: Branch, update: Update, cond: Any, last: int | None, shared: Any
        ) -> None:
            super()._compute_in_group(stream, block, branch, update, cond, last, shared)
            change = self.take_change()
            if change is not None:
                stream.x, stream.own = stream.x + change, True

    return FusedRunApart
