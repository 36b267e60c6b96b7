"""The schedule: for each branch and step, the step whose update is used. Resolved before the run; all else reads it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from ..errors import PabError
from ..models.layers import Branch, Kind, Stream
from .policy import TO_THE_END, MlpRule, Policy
from .predictors import HISTORY


class Decision(Protocol):
    """A dynamic policy's state in one run."""

    def reuse(self, step: int, steps: int, x: Tensor, cond: Any) -> bool:
        """Whether a step reuses the whole model's update; asked once a step, before its first block.

        Args:
            x: what the first block is given, [B, T, S, D].
            cond: what all blocks are given, see the models' `Conditioning`.
        """
        ...


class DynamicPolicy(Protocol):
    """Decides in the run."""

    def begin(self, model: Any) -> Decision: ...


class Plan(Protocol):
    """A policy of its own form: it makes the table itself."""

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int | None: ...
    def resolve(self, timesteps: tuple[float, ...], branches: tuple[Branch, ...]) -> "ScheduleTable": ...


@dataclass(frozen=True, eq=False)
class ScheduleTable:
    """Immutable table of branch x step.

    `source[branch][step]` is the step at which the update used at `step` was computed: `step` itself where it is
    computed, an earlier step where it is reused.

    groups: neighbouring branches, in the order in which they run, that are always reused together and so are kept as
    one tensor, the sum of their updates.
    scores: attention reuses its scores, softmax(q k), in place of its update.
    decide: the run decides itself at which steps everything is reused; `source` then says that all is computed.
    sampler_steps: asked of the sampler in place of what the user asked for.
    predictor: what a reused step is given, one of predictors.HISTORY.
    """

    policy: str
    timesteps: tuple[float, ...]
    source: Mapping[Branch, tuple[int, ...]]
    groups: tuple[tuple[Branch, ...], ...] = ()
    scores: bool = False
    decide: DynamicPolicy | None = None
    sampler_steps: int | None = None
    predictor: str = "hold"

    def __post_init__(self) -> None:
        assert self.predictor in HISTORY, self.predictor
        assert self.predictor == "hold" or not (self.scores or self.decide), "predicted are updates of a known table"
        assert self.predictor != "gate" or not self.groups, "a sum of updates has no gate"
        for branch, steps in self.source.items():
            assert len(steps) == len(self.timesteps), branch
            assert all(s == i or (s < i and steps[s] == s) for i, s in enumerate(steps)), (branch, steps)
        order = tuple(self.source)
        for group in self.groups:
            first = order.index(group[0])
            assert order[first : first + len(group)] == group, "a group is of neighbours"
            assert all(self.source[branch] == self.source[group[0]] for branch in group), "a group is reused as one"
        object.__setattr__(self, "source", MappingProxyType(dict(self.source)))

    @property
    def branches(self) -> tuple[Branch, ...]:
        return tuple(self.source)

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def reuses(self, branch: Branch, step: int) -> bool:
        return self.source[branch][step] != step

    def sources(self, branch: Branch, step: int) -> tuple[int, ...]:
        """The steps whose updates make the one used at `step`, latest first: several where it is extrapolated."""
        return self._sources[self.source[branch]][step]

    @cached_property
    def _sources(self) -> Mapping[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """By row of `source`, which many branches share."""
        count = HISTORY[self.predictor]

        def of_row(row: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            computed: list[int] = []  # latest first
            for i, source in enumerate(row):
                if source == i:
                    computed.insert(0, i)
                    yield (i,)
                else:
                    yield tuple(computed[computed.index(source) :][:count])

        return MappingProxyType({row: tuple(of_row(row)) for row in set(self.source.values())})

    @cached_property
    def last_use(self) -> Mapping[tuple[Branch, int], int]:
        """(branch, step at which it was computed) -> the last step that reuses it; absent if none does."""
        last = {
            (branch, source): i
            for branch, row in self.source.items()
            for i, found in enumerate(self._sources[row])
            for source in found
            if row[i] != i
        }
        return MappingProxyType(last)

    def freed(self, branch: Branch, step: int) -> tuple[int, ...]:
        """The steps whose updates of a branch are reused at `step` for the last time."""
        if not self.reuses(branch, step):
            return ()
        return tuple(source for source in self.sources(branch, step) if self.last_use[branch, source] == step)

    @property
    def keepers(self) -> tuple[Branch, ...]:
        """The branches in whose name an update is kept: of a group, its first."""
        others = {branch for group in self.groups for branch in group[1:]}
        return tuple(branch for branch in self.source if branch not in others)

    def reused_blocks(self, step: int, kind: Kind, stream: Stream) -> list[int]:
        """The blocks of a stream that reuse their `kind` branch at a step."""
        return [b.block for b in self.source if b.kind == kind and b.stream == stream and self.reuses(b, step)]

    def reused_row(self, kind: Kind) -> list[float]:
        """For each step the share of the branches of that kind that is reused, 0..1."""
        branches = [b for b in self.source if b.kind == kind]
        return [sum(self.reuses(b, i) for b in branches) / max(len(branches), 1) for i in range(self.steps)]

    def reused_share(self, kind: Kind | None = None) -> float:
        """Share of the run's branch calls (of one kind, or of all) that is reused, 0..1."""
        rows = [steps for b, steps in self.source.items() if kind in (None, b.kind)]
        calls = sum(len(steps) for steps in rows)
        return sum(s != i for steps in rows for i, s in enumerate(steps)) / calls if calls else 0.0

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind in ("spatial", "temporal", "cross", "mlp") if any(b.kind == kind for b in self.source)]

    def to_json(self) -> dict[str, Any]:
        """The public form: a 0/1 for each step (1 = reused by every block), and the MLP's reused blocks by step."""

        def row(kind: Kind) -> list[int]:
            return [int(share == 1.0) for share in self.reused_row(kind)]

        def blocks(stream: Stream) -> dict[str, list[int]]:
            by_step = {str(i): self.reused_blocks(i, "mlp", stream) for i in range(self.steps)}
            return {step: reused for step, reused in by_step.items() if reused}

        return {
            "policy": self.policy,
            "timesteps": list(self.timesteps),
            "spatial": row("spatial"),
            "temporal": row("temporal"),
            "cross": row("cross"),
            "mlp_spatial": blocks("spatial"),
            "mlp_temporal": blocks("temporal"),
            **({} if self.predictor == "hold" else {"predictor": self.predictor}),
        }


def resolve(policy: Policy | Plan, timesteps: Sequence[float], branches: Iterable[Branch]) -> ScheduleTable:
    """Applies a policy to the timesteps that a run will visit (one for each call of the model) and its branches.

    Raises:
        PabError: what a user set in the policy does not fit the run: a window that holds none of its steps, a range
            longer than it, a file for other steps.
    """
    places = tuple(float(t) for t in timesteps)
    if not isinstance(policy, Policy):
        return replace(policy.resolve(places, tuple(branches)), sampler_steps=policy.steps)
    _check(policy, timesteps)
    attention = {kind: _attention_source(policy, kind, timesteps) for kind in ("spatial", "temporal", "cross")}
    source = {
        b: _mlp_source(policy.mlp_rules(b.stream), timesteps, b.block) if b.kind == "mlp" else attention[b.kind]
        for b in branches
    }
    return ScheduleTable(
        policy.name, places, source, scores=policy.scores, sampler_steps=policy.steps, predictor=policy.predictor
    )


def steps_of(policy: Policy | Plan, asked: int) -> int:
    """The steps to ask of the sampler: the policy's own, if it has any, else those `asked` for.

    Raises:
        PabError: the policy makes more steps than were asked for.
    """
    if policy.steps is None:
        return asked
    if policy.steps > asked:
        raise PabError(
            f"The policy {policy.name} makes {policy.steps} steps, more than the {asked} of the run: choose one of "
            "fewer steps, or more steps."
        )
    return policy.steps


def check_range_fits(kind: str, value: int, steps: int) -> None:
    """PabError where a broadcast range is longer than the run."""
    if value > steps and value != TO_THE_END:
        raise PabError(
            f"The {kind} broadcast range {value} is longer than the run, which calls the model {steps} times: choose a "
            "smaller range or more steps."
        )


def empty_window_error(text: str, steps: int) -> PabError:
    return PabError(
        f"The broadcast window {text} holds none of the run's {steps} steps, so nothing would be reused: choose a "
        "wider window or more steps, or the policy off to run without reuse."
    )


def _check(policy: Policy, timesteps: Sequence[float]) -> None:
    steps = len(timesteps)
    for kind in ("spatial", "temporal", "cross"):
        if policy.range_of(kind) == 1:
            continue
        if kind in policy.checked:
            check_range_fits(kind, policy.range_of(kind), steps)
        window = policy.window_of(kind)
        if "window" in policy.checked and not any((i, steps, t) in window for i, t in enumerate(timesteps)):
            raise empty_window_error(window.text, steps)


def _attention_source(policy: Policy, kind: Kind, timesteps: Sequence[float]) -> tuple[int, ...]:
    n, window, steps = policy.range_of(kind), policy.window_of(kind), len(timesteps)
    source, computed = [], 0
    for i, t in enumerate(timesteps):
        # Counted from the start of the run, not of the window, as the authors do.
        count = i % policy.period if policy.period else i
        if count % n == 0 or (i, steps, t) not in window:
            computed = i
        source.append(computed)
    return tuple(source)


def _mlp_source(rules: Sequence[MlpRule], timesteps: Sequence[float], block: int) -> tuple[int, ...]:
    """Where spans of rules overlap, a step that keeps its update computes it, else the rule listed first is followed,
    also if it leaves this block out (the authors' order of precedence)."""
    steps = len(timesteps)
    spans = [
        (rule.blocks is None or block in rule.blocks, *rule.spans(steps, timesteps))
        for rule in _spread(rules, steps, timesteps)
    ]
    keeps = {i for mine, keys, _ in spans if mine for i in keys}
    source = list(range(steps))
    for i in range(steps):
        if i in keeps:
            continue
        mine, keys, _ = next((span for span in spans if i in span[2]), (False, [], []))
        earlier = [key for key in keys if key < i]
        if mine and earlier:
            source[i] = earlier[-1]
    return tuple(source)


def _spread(rules: Sequence[MlpRule], steps: int, timesteps: Sequence[float]) -> list[MlpRule]:
    """The rules without those that a run of few steps crowds together: of two alike, placed by fractions, whose steps
    coincide or follow on each other, the second would compute just where the first can be reused."""
    kept: list[MlpRule] = []
    for rule in rules:
        if rule.unit == "fraction" and kept and replace(rule, at=kept[-1].at) == kept[-1]:
            here, before = (r.spans(steps, timesteps)[0] for r in (rule, kept[-1]))
            if here and before and 0 <= here[0] - before[0] <= 1:
                continue
        kept.append(rule)
    return kept
