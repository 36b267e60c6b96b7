"""The state of one run: the updates that are still to be reused. It dies with the run, also when the run is cut off."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..models.layers import Branch
from .cache import PlainStore, Store
from .predictors import make_predictor
from .schedule import Decision, ScheduleTable
from .scores import ScoreReuse

Update = Callable[[Tensor, Any], Tensor]
Key = tuple[str, Branch, int]  # lane, branch, step at which it was computed


class BroadcastRun:
    """Follows a schedule table; pass it as the `seam` of each call of the model, after setting `step` (and `lane`).

    A table that is decided in the run needs `begin(model)` before the first call. Where the updates of a group of
    branches are reused, the first of them gives their sum and the others a zero without dimensions.
    """

    def __init__(self, table: ScheduleTable, store: Store | None = None):
        self.table = table
        self.step = 0
        self.lane = "both"  # "cond" or "uncond" where guidance calls the model once for each
        self.peak_bytes = 0  # the most that was held for reuse at one moment
        self._store = PlainStore() if store is None else store
        self._sums: dict[Key, Tensor] = {}  # of groups whose last branch has not been computed yet
        self._group = {branch: group for group in table.groups for branch in group}
        self._predictor = make_predictor(table.predictor, table.timesteps)  # None: reused as it is
        self._decision: Decision | None = None
        self._sources: list[int] = []  # of the steps decided so far
        self._place: tuple[int, str] | None = None  # step and lane of the last call

    def begin(self, model: Any) -> None:
        """Called once, before the first step."""
        if self._predictor is not None:
            self._predictor.begin(model)
        if self.table.decide is not None:
            self._decision = self.table.decide.begin(model)

    def __call__(self, branch: Branch, update: Update, x: Tensor, cond: Any) -> Tensor:
        if (self.step, self.lane) != self._place:
            self._enter(x, cond)
        source, last = self._source(branch)
        if branch in self._group:
            return self._in_group(branch, update, x, cond, source, last)
        key = (self.lane, branch, source)
        if self.table.scores and branch.kind != "mlp":
            return self._by_scores(key, update, x, cond, last)
        if source != self.step:
            return self._reused(branch, cond, source, last)
        value = update(x, cond)
        if last is not None:
            self._keep(key, value, cond)
        return value

    @property
    def kept_bytes(self) -> int:
        """Size of what is held for reuse at this moment."""
        own = 0 if self._predictor is None else self._predictor.held_bytes
        return own + self._store.held_bytes + sum(value.numel() * value.element_size() for value in self._sums.values())

    @property
    def taken(self) -> ScheduleTable:
        """The table as it was followed: where the run decides, with its decisions so far."""
        if self.table.decide is None:
            return self.table
        row = (*self._sources, *range(len(self._sources), self.table.steps))
        return replace(self.table, source=dict.fromkeys(self.table.source, row), decide=None)

    def _enter(self, x: Tensor, cond: Any) -> None:
        """The model's first call of the seam at a step, with the input of its first block."""
        self._place = (self.step, self.lane)
        if self._decision is not None and self.step == len(self._sources):
            # The first lane of a step decides for both.
            reuse = self._decision.reuse(self.step, self.table.steps, x, cond)
            self._sources.append(self._sources[-1] if reuse else self.step)
        if hasattr(self._store, "prefetch"):
            reused = [b for b in self.table.keepers if self._source(b)[0] != self.step]
            keys = [(self.lane, b, source) for b in reused for source in self._sources_of(b)]
            self._store.prefetch(keys)  # pyright: ignore[reportAttributeAccessIssue]

    def _source(self, branch: Branch) -> tuple[int, int | None]:
        """The step whose update is used now, and the last step that uses it (None: no other does)."""
        if self._decision is None:
            source = self.table.source[branch][self.step]
            return source, self.table.last_use.get((branch, source))
        # Whether a later step reuses it is not known: it is kept until the next is computed.
        return self._sources[self.step], self.table.steps

    def _sources_of(self, branch: Branch) -> tuple[int, ...]:
        """The steps whose updates make the one that is used now, latest first."""
        return self.table.sources(branch, self.step) if self._decision is None else (self._sources[self.step],)

    def _reused(self, branch: Branch, cond: Any, source: int, last: int | None) -> Tensor:
        """What is used in place of the update of a branch, or of the group that it is the first of."""
        if self._predictor is None:
            value = self._store.take((self.lane, branch, source))
            if last == self.step:
                self._store.drop((self.lane, branch, source))
            return value
        kept = [(s, self._store.take((self.lane, branch, s))) for s in self.table.sources(branch, self.step)]
        value = self._predictor.predict(self.lane, branch, self.step, kept, cond)
        for freed in self.table.freed(branch, self.step):
            self._store.drop((self.lane, branch, freed))
        return value

    def _in_group(self, branch: Branch, update: Update, x: Tensor, cond: Any, source: int, last: int | None) -> Tensor:
        group = self._group[branch]
        key = (self.lane, group[0], source)
        if source != self.step:
            if branch != group[0]:
                return x.new_zeros(())
            return self._reused(branch, cond, source, last)
        value = update(x, cond)
        if last is None:
            return value
        if branch == group[0]:
            self._drop_decided(group[0])
            self._sums[key] = value
        else:
            self._sums[key] = self._sums[key] + value
        self.peak_bytes = max(self.peak_bytes, self.kept_bytes)
        if branch == group[-1]:
            self._keep(key, self._sums.pop(key), cond)
        return value

    def _drop_decided(self, branch: Branch) -> None:
        """Where the run decides, what was kept before is free as soon as a step computes anew."""
        if self._decision is not None and self.step > 0:
            self._store.drop((self.lane, branch, self._sources[self.step - 1]))

    def _by_scores(self, key: Key, update: Update, x: Tensor, cond: Any, last: int | None) -> Tensor:
        """Attention is run in either case; with the scores of the source step, if that is an earlier one."""
        if key[2] != self.step:
            with ScoreReuse(self._store.take(key)):
                value = update(x, cond)
            if last == self.step:
                self._store.drop(key)
            return value
        if last is None:
            return update(x, cond)
        with ScoreReuse() as attention:
            value = update(x, cond)
        assert attention.scores is not None, key
        self._keep(key, attention.scores, cond)
        return value

    def _keep(self, key: Key, value: Tensor, cond: Any = None) -> None:
        self._store.keep(key, value)
        if self._predictor is not None:
            self._predictor.note(key[0], key[1], cond)
        self.peak_bytes = max(self.peak_bytes, self.kept_bytes)
