"""A schedule as a JSON file that people can read, edit and pass on: for one model, by windows or step by step.

    {
      "pab_schedule": 1,
      "name": "mine",
      "model": {"family": "stdit3", "depth": 5},
      "rules": [
        {"kinds": ["spatial", "temporal"], "windows": [{"start": 0.3, "stop": 0.85, "range": 2}]},
        {"kinds": ["cross"], "windows": [{"start": 0.2, "stop": 0.5, "range": 3, "count_from": "window"}]},
        {"kinds": ["mlp"], "blocks": [0, 1], "source": [0, 1, 2, 2, 4]}
      ],
      "run_steps": 5
    }

Windows are fractions of the run and hold at any number of steps; `source` gives, for each call of the model, the one
whose update is used, and holds for `run_steps` calls. A branch that no rule names is computed at every step.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import PabError
from ..models.layers import Branch, Kind, Stream
from .policy import Window
from .schedule import ScheduleTable, check_range_fits, empty_window_error
from .whole_file import write_whole

VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Span(_Strict):
    """Part of the run, in fractions of it, in which every `range`-th step is computed and reused by those after it.

    Steps are counted from the start of the run, as PAB does, or from that of the window: its first step then computes.
    """

    start: Annotated[float, Field(ge=0, le=1, strict=False)]
    stop: Annotated[float, Field(ge=0, le=1, strict=False)]
    range: Annotated[int, Field(ge=1)]
    count_from: Literal["run", "window"] = "run"

    @model_validator(mode="after")
    def _in_order(self) -> "Span":
        if self.start >= self.stop:
            raise ValueError(f"the window {self.start:g}:{self.stop:g} is reversed or empty")
        return self


class Rule(_Strict):
    """What the branches that it names do; of several rules for a branch the last holds."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1, strict=False)]
    streams: Annotated[tuple[Stream, ...] | None, Field(strict=False)] = None  # None: both
    blocks: Annotated[tuple[int, ...] | None, Field(strict=False)] = None  # None: all
    windows: Annotated[tuple[Span, ...] | None, Field(strict=False)] = None
    source: Annotated[tuple[int, ...] | None, Field(strict=False)] = None

    @model_validator(mode="after")
    def _one_form(self) -> "Rule":
        if (self.windows is None) == (self.source is None):
            raise ValueError("a rule has either windows or a source")
        for step, used in enumerate(self.source or ()):
            if not 0 <= used <= step or (self.source and self.source[used] != used):
                raise ValueError(f"at step {step} the source {used} is no earlier step that is computed")
        for before, after in zip(self.windows or (), (self.windows or ())[1:], strict=False):
            if after.start < before.stop:
                raise ValueError("the windows of a rule follow one another and do not overlap")
        return self

    def matches(self, branch: Branch) -> bool:
        return (
            branch.kind in self.kinds
            and (self.streams is None or branch.stream in self.streams)
            and (self.blocks is None or branch.block in self.blocks)
        )


class ModelId(_Strict):
    family: str
    depth: Annotated[int, Field(ge=1)]  # blocks of each stream


class ScheduleFile(_Strict):
    """The file's content; it is a policy itself.

    steps: that the run makes, whatever it is asked for.
    run_steps: calls of the model for which rules with a `source` are written.
    stretch: rules with a `source` serve runs of other lengths too, at the same fractions: a step is computed where
        any of the steps is that it stands for.
    merge: neighbouring branches that are reused at the same steps are kept as one tensor, their sum.
    allow_empty_windows: a window that holds no step of a short run does nothing, instead of being refused.
    """

    pab_schedule: Literal[1]
    name: Annotated[str, Field(min_length=1)] = "custom"
    model: ModelId
    rules: Annotated[tuple[Rule, ...], Field(strict=False)]
    steps: Annotated[int, Field(ge=1)] | None = None
    run_steps: Annotated[int, Field(ge=1)] | None = None
    stretch: bool = False
    merge: bool = False
    allow_empty_windows: bool = False
    predictor: Literal["hold", "gate", "linear", "taylor"] = "hold"
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> "ScheduleFile":
        if self.merge and self.predictor == "gate":
            raise ValueError("merged branches have no gate of their own: leave out merge, or the predictor gate")
        for number, rule in enumerate(self.rules):
            if rule.source is not None and len(rule.source) != self.run_steps:
                raise ValueError(
                    f"rules.{number}: its source is for {len(rule.source)} steps, and run_steps is {self.run_steps}"
                )
            if rule.blocks is not None and not all(0 <= block < self.model.depth for block in rule.blocks):
                raise ValueError(f"rules.{number}: the model's blocks are 0 to {self.model.depth - 1}")
        return self

    def check_model(self, family: str, depth: int) -> None:
        """PabError where the schedule is for another model."""
        if (self.model.family, self.model.depth) != (family, depth):
            raise PabError(
                f"The schedule '{self.name}' is for a {self.model.family} model of depth {self.model.depth}, and this "
                f"is a {family} model of depth {depth}: choose a schedule made for it, or calibrate one."
            )

    def resolve(self, timesteps: tuple[float, ...], branches: tuple[Branch, ...]) -> ScheduleTable:
        steps = len(timesteps)
        rows = [self._row(rule, steps) for rule in self.rules]
        source: dict[Branch, tuple[int, ...]] = {}
        for branch in branches:
            own = [row for rule, row in zip(self.rules, rows, strict=True) if rule.matches(branch)]
            source[branch] = own[-1] if own else tuple(range(steps))
        groups = neighbours(source) if self.merge else ()
        return ScheduleTable(self.name, timesteps, source, groups=groups, predictor=self.predictor)

    def _row(self, rule: Rule, steps: int) -> tuple[int, ...]:
        if rule.source is not None:
            if steps != self.run_steps and self.stretch:
                return stretched(rule.source, steps)
            if steps != self.run_steps:
                raise PabError(
                    f"The schedule '{self.name}' is written for {self.run_steps} calls of the model, and this run "
                    f"makes {steps}: run it with as many steps, or use one of windows, which holds at any number."
                )
            return rule.source
        computed = set(range(steps))
        for span in rule.windows or ():
            window = Window(span.start, span.stop)
            inside = [i for i in range(steps) if (i, steps, 0.0) in window]
            if not inside and not self.allow_empty_windows:
                raise empty_window_error(window.text, steps)
            check_range_fits(" and ".join(rule.kinds), span.range, steps)
            begin = inside[0] if inside and span.count_from == "window" else 0
            computed -= {i for i in inside if (i - begin) % span.range}
        row: list[int] = []
        for i in range(steps):
            row.append(i if i in computed or i == 0 else row[-1])
        return tuple(row)


def load_schedule(path: Path) -> ScheduleFile:
    """PabError where the file cannot be read or is no schedule; the message names the place."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark in front
    except (OSError, ValueError) as error:  # ValueError: no text in UTF-8, or a name that no file can have
        raise PabError(f"The schedule file {path} cannot be read ({error}): check its name.") from None
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PabError(f"The schedule file {path} is not JSON ({error}): correct it there.") from None
    if not isinstance(found, Mapping) or "pab_schedule" not in found:
        raise PabError(f'{path} is no schedule file: it lacks the entry "pab_schedule": {VERSION}.')
    if found["pab_schedule"] != VERSION:
        raise PabError(
            f"The schedule file {path} is of version {found['pab_schedule']!r}, and this program reads {VERSION}: "
            "install a newer one, or export the schedule anew."
        )
    try:
        return ScheduleFile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise PabError(
            f"The schedule file {path} does not hold a valid schedule: {place + ': ' if place else ''}{what}."
        ) from None


def save_schedule(schedule: ScheduleFile, path: Path) -> Path:
    """Writes the file; what stands at its default is left out."""
    told = {"pab_schedule": schedule.pab_schedule, **schedule.model_dump(mode="json", exclude_defaults=True)}
    lines = json.dumps(told, indent=2)
    return write_whole(path, _one_line_lists(lines) + "\n")


def schedule_of(table: ScheduleTable, family: str, depth: int, name: str | None = None, note: str = "") -> ScheduleFile:
    """A table, step by step, as a file."""
    rules: list[Rule] = []
    for (kind, stream), alike in groupby(
        sorted(table.branches, key=lambda b: (b.kind, b.stream, table.source[b], b.block)),
        key=lambda b: (b.kind, b.stream),
    ):
        for row, same in groupby(alike, key=lambda b: table.source[b]):
            if row != tuple(range(table.steps)):
                blocks = tuple(branch.block for branch in same)
                every = blocks == tuple(range(depth))
                rules.append(Rule(kinds=(kind,), streams=(stream,), blocks=None if every else blocks, source=row))
    return ScheduleFile(
        pab_schedule=VERSION,
        name=name or table.policy,
        model=ModelId(family=family, depth=depth),
        rules=tuple(rules),
        steps=table.sampler_steps,
        run_steps=table.steps,
        merge=bool(table.groups),
        predictor=table.predictor,  # pyright: ignore[reportArgumentType]
        note=note,
    )


def stretched(source: Sequence[int], steps: int) -> tuple[int, ...]:
    """The row of a run of `steps` calls that does at each fraction of the run what `source` does there."""
    count = len(source)
    row: list[int] = []
    for i in range(steps):
        first, last = i * count // steps, max(-(-(i + 1) * count // steps) - 1, i * count // steps)
        computed = any(source[place] == place for place in range(first, last + 1))
        row.append(i if computed else row[-1])
    return tuple(row)


def neighbours(source: Mapping[Branch, Sequence[int]]) -> tuple[tuple[Branch, ...], ...]:
    """The longest runs of branches, in their order, that are reused at the same steps."""
    runs = [tuple(branch for branch, _ in run) for _, run in groupby(source.items(), key=lambda item: tuple(item[1]))]
    return tuple(run for run in runs if len(run) > 1 and any(s != i for i, s in enumerate(source[run[0]])))


def _one_line_lists(text: str) -> str:
    """Lists of numbers or words on one line each."""
    import re

    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text)
