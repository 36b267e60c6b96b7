"""What a user asks for: a broadcast range for each kind of attention, windows, and rules for the MLP.

A policy is plain data. It knows nothing of a model's size or a run's timesteps until `schedule.resolve` meets them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import PabError
from ..models.layers import Stream
from .predictors import check_predictor

Unit = Literal["fraction", "step", "timestep"]
TO_THE_END = 10**9  # a broadcast range that outlasts every run: computed once, then reused to the end of the window
_ATTENTION = ("spatial", "temporal", "cross")


@dataclass(frozen=True)
class Window:
    """The part of a run in which updates may be reused.

    unit "fraction": steps i of n with start <= i/n < stop; "step": start <= i < stop; "timestep": the authors' form,
    start < int(t) < stop with t on the 0..1000 scale.
    """

    start: float = 0.0
    stop: float = 1.0
    unit: Unit = "fraction"

    def __post_init__(self) -> None:
        for value in (self.start, self.stop):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise PabError(f"The broadcast window {self.text} is not made of two numbers.")
        if self.unit == "fraction" and not (0 <= self.start <= 1 and 0 <= self.stop <= 1):
            raise PabError(
                f"The broadcast window {self.text} reaches outside the run: both ends are fractions of it, from 0 to 1."
            )
        if self.start >= self.stop:
            raise PabError(
                f"The broadcast window {self.text} is reversed or empty: its start must lie before its end, "
                "as in 0.3:0.85."
            )

    @property
    def text(self) -> str:
        return f"{self.start:g}:{self.stop:g}" if isinstance(self.start, (int, float)) else f"{self.start}:{self.stop}"

    @classmethod
    def parse(cls, text: str) -> "Window":
        """ "0.3:0.85" -> Window(0.3, 0.85)."""
        try:
            start, stop = (float(part) for part in text.split(":"))
        except ValueError:
            raise PabError(
                f"'{text}' is not a broadcast window: write its start and end as fractions of the run, as in 0.3:0.85."
            ) from None
        return cls(start, stop)

    def __contains__(self, place: tuple[int, int, float]) -> bool:
        """place: (step, number of steps, timestep)."""
        step, steps, timestep = place
        if self.unit == "timestep":
            return self.start < int(timestep) < self.stop
        scale = steps if self.unit == "fraction" else 1
        slack = 1e-9 * steps  # 0.1 * 30 must be step 3 whatever the rounding
        return self.start * scale - slack <= step < self.stop * scale - slack


@dataclass(frozen=True)
class MlpRule:
    """Keep the MLP's update at one step and reuse it for the next `skip` steps, in the listed blocks.

    `at` places the step by `unit`: fraction of the run (rounded to the nearest step), step index, or the authors'
    integer timestep. blocks None = all blocks.
    """

    at: float
    skip: int
    blocks: tuple[int, ...] | None = None
    unit: Unit = "fraction"

    def __post_init__(self) -> None:
        if isinstance(self.skip, bool) or not isinstance(self.skip, int) or self.skip < 0:
            raise PabError(f"An MLP rule reuses a whole number of steps, not {self.skip!r}.")
        if self.unit == "fraction" and not 0 <= self.at <= 1:
            raise PabError(f"An MLP rule at {self.at:g} lies outside the run, whose fractions go from 0 to 1.")

    def spans(self, steps: int, timesteps: Sequence[float]) -> tuple[list[int], list[int]]:
        """-> the steps that keep their update, and those that may reuse it (empty if the rule does not apply)."""
        if self.unit == "timestep":
            # The authors look timesteps up by value, so a sampler that visits one twice (PNDM's start) counts it twice.
            values = [int(t) for t in timesteps]
            if self.at not in values:
                return [], []
            first = values.index(int(self.at))
            span = set(values[first : first + 1 + self.skip])
            return [i for i, t in enumerate(values) if t == self.at], [i for i, t in enumerate(values) if t in span]
        key = int(self.at) if self.unit == "step" else math.floor(self.at * steps + 0.5)
        if key >= steps:
            return [], []
        return [key], list(range(key, min(key + 1 + self.skip, steps)))


@dataclass(frozen=True)
class Policy:
    """Broadcast ranges and windows by kind of attention, and MLP rules by stream.

    A range n computes at every n-th step, counted from the start of the run, and reuses the result at the n-1 steps
    after it, as far as those lie in the window. Range 1 is off. With a `period`, counting starts anew after so many
    calls of the model.
    """

    name: str = "custom"
    spatial: int = 1
    temporal: int = 1
    cross: int = 1
    window: Window = field(default_factory=Window)
    windows: tuple[tuple[str, Window], ...] = ()  # for kinds whose window differs
    mlp_spatial: tuple[MlpRule, ...] = ()
    mlp_temporal: tuple[MlpRule, ...] = ()
    period: int | None = None
    scores: bool = False  # attention reuses its scores in place of its update: slower, the paper's ablation
    steps: int | None = None  # that the run makes, whatever it is asked for
    predictor: str = "hold"  # what a reused step is given, see predictors.py
    # Which of spatial, temporal, cross and window were set by hand: they must fit the run.
    checked: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for kind in _ATTENTION:
            check_range(kind, getattr(self, kind))
        if self.period is not None and (isinstance(self.period, bool) or self.period < 1):
            raise PabError(f"A policy counts steps in periods of 1 or more calls of the model, not {self.period!r}.")
        check_predictor(self.predictor)
        if self.scores and self.predictor != "hold":
            raise PabError("Reused scores cannot be predicted from earlier ones: leave one of the two out.")
        if self.steps is not None and (isinstance(self.steps, bool) or self.steps < 1):
            raise PabError(f"A policy of fewer steps makes 1 or more of them, not {self.steps!r}.")

    def range_of(self, kind: str) -> int:
        return getattr(self, kind)

    def window_of(self, kind: str) -> Window:
        return dict(self.windows).get(kind, self.window)

    def mlp_rules(self, stream: Stream) -> tuple[MlpRule, ...]:
        return self.mlp_spatial if stream == "spatial" else self.mlp_temporal

    @property
    def is_off(self) -> bool:
        """Whether nothing is reused."""
        return self.spatial == self.temporal == self.cross == 1 and not (self.mlp_spatial or self.mlp_temporal)

    def with_changes(
        self,
        *,
        spatial: int | None = None,
        temporal: int | None = None,
        cross: int | None = None,
        mlp: bool | None = None,
        window: Window | None = None,
        mlp_rules: tuple[MlpRule, ...] = (),
    ) -> "Policy":
        """A copy with what a user set on top of it, with the changes in its name; None leaves a field as it is.

        mlp True turns MLP broadcast on with `mlp_rules` if the policy has no rules of its own. Users' changes come by
        way of `presets.customise`, which knows the family's rules and window.
        """
        given = {"spatial": spatial, "temporal": temporal, "cross": cross, "window": window}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if window is not None:
            changes["windows"] = ()
        if mlp is False:
            changes |= {"mlp_spatial": (), "mlp_temporal": ()}
        elif mlp and not (self.mlp_spatial or self.mlp_temporal):
            changes |= {"mlp_spatial": mlp_rules, "mlp_temporal": mlp_rules}
        changed = replace(self, **changes)
        if changed == self:
            return self
        said = [
            f"{kind}={changed.range_of(kind)}" for kind in _ATTENTION if changed.range_of(kind) != self.range_of(kind)
        ]
        if (changed.mlp_spatial, changed.mlp_temporal) != (self.mlp_spatial, self.mlp_temporal):
            said.append("mlp=on" if mlp else "mlp=off")
        if (changed.window, changed.windows) != (self.window, self.windows):
            said.append(f"window={changed.window.text}")
        checked = tuple(dict.fromkeys([*self.checked, *(name for name in given if given[name] is not None)]))
        return replace(changed, name=" ".join([self.name, *said]), checked=checked)

    @classmethod
    def from_authors(cls, config: Mapping[str, Any], name: str = "authors", steps: int | None = None) -> "Policy":
        """The authors' own configuration (NUS-HPC-AI-Lab/VideoSys, PABConfig): thresholds on the 0..1000 scale, MLP
        rules by literal timestep.

        Their counters start anew after `steps`, the number that the user asked for; it matters where a sampler calls
        the model more often than that, as PNDM does. None: they count through the run.
        """
        enabled = [kind for kind in _ATTENTION if config.get(f"{kind}_broadcast")]
        if not enabled:
            return cls(name=name)  # their switch for MLP alone does nothing
        # Thresholds with nothing between them reuse nothing of their kind.
        thresholds = {kind: config[f"{kind}_threshold"] for kind in enabled}
        reused = [kind for kind, (low, high) in thresholds.items() if low < high]
        ranges: dict[str, Any] = {kind: config[f"{kind}_range"] for kind in reused}
        windows = tuple((kind, Window(*thresholds[kind], unit="timestep")) for kind in reused)

        def rules(stream: Stream) -> tuple[MlpRule, ...]:
            table = config.get(f"mlp_{stream}_broadcast_config") if config.get("mlp_broadcast") else None
            return tuple(
                MlpRule(int(timestep), int(rule["skip_count"]), tuple(rule["block"]), "timestep")
                for timestep, rule in (table or {}).items()
            )

        spatial, temporal = rules("spatial"), rules("temporal")
        return cls(name=name, windows=windows, mlp_spatial=spatial, mlp_temporal=temporal, period=steps, **ranges)


def check_range(kind: str, value: Any) -> int:
    """A broadcast range as a whole number of steps, 1 or more; PabError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PabError(f"The {kind} broadcast range must be a whole number of steps, not {value!r}.")
    if value < 1:
        raise PabError(
            f"The {kind} broadcast range {value} is below 1: 1 computes at every step, 2 reuses every other one."
        )
    return value


def mlp_rules(at: Iterable[float], skip: int, blocks: Iterable[int]) -> tuple[MlpRule, ...]:
    """Rules that share skip and blocks, one for each fraction of the run in `at`."""
    return tuple(MlpRule(fraction, skip, tuple(blocks)) for fraction in at)
