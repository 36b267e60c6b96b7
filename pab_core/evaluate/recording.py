"""How much each branch's update changes from step to step: the U-shape of the paper, measured on a few prompts.

Also what TeaCache needs: the change of the model's first modulated input beside that of all that its blocks add.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..broadcast.teacache import first_modulation, modulated_input
from ..broadcast.whole_file import write_whole
from ..errors import PabError
from ..models.layers import Branch, Kind
from ..pipeline import Pipeline
from .deciding import mean_of_clips, relative_changes
from .generation import Clip, make_latents
from .results import ResultFile


@dataclass(frozen=True)
class Recording:
    """Means over the clips; index i is the change from step i to step i + 1."""

    model: str
    timesteps: tuple[float, ...]
    relative: Mapping[Branch, tuple[float, ...]]  # mean absolute difference over the mean absolute value before
    squared: Mapping[Branch, tuple[float, ...]]  # mean squared difference, as in the paper
    signal: tuple[tuple[float, ...], ...]  # for each clip, the relative change of the first modulated input
    whole: tuple[tuple[float, ...], ...]  # for each clip, that of the sum of all updates

    def of_kind(self, kind: Kind, values: str = "relative") -> list[float]:
        """The mean over the branches of a kind."""
        rows = [row for branch, row in getattr(self, values).items() if branch.kind == kind]
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    @property
    def kinds(self) -> list[Kind]:
        order: tuple[Kind, ...] = ("spatial", "temporal", "cross", "mlp")
        return [kind for kind in order if any(branch.kind == kind for branch in self.relative)]

    def to_markdown(self) -> str:
        """By kind, the change at the first step, on the U's floor and at the last step."""
        start, stop = stable_window(self)
        heads = ["kind", "first step", f"calm, steps {start} to {stop - 1}", "last step", "mean squared, calm"]
        lines = ["| " + " | ".join(heads) + " |", "|" + "-|" * len(heads)]
        for kind in self.kinds:
            row, squared = self.of_kind(kind), self.of_kind(kind, "squared")
            calm, flat = (statistics.fmean(values[start - 1 : stop - 1]) for values in (row, squared))
            lines.append(f"| {kind} | {row[0]:.3f} | {calm:.3f} | {row[-1]:.3f} | {flat:.3g} |")
        about = f"{self.model}, {len(self.signal)} clips; relative L1 of each branch's update from the step before"
        return "\n".join(lines) + f"\n\n{about}\n"

    def to_json(self) -> dict[str, Any]:
        def rows(values: Mapping[Branch, tuple[float, ...]]) -> dict[str, list[float]]:
            return {branch_name(branch): [round(v, 6) for v in row] for branch, row in values.items()}

        return {
            "model": self.model,
            "timesteps": list(self.timesteps),
            "relative": rows(self.relative),
            "squared": rows(self.squared),
            "signal": [list(row) for row in self.signal],
            "whole": [list(row) for row in self.whole],
        }


class Recorder(BroadcastRun):
    """A run that reuses nothing and notes what changes, of each of some clips made together."""

    def __init__(self, table: ScheduleTable, clips: int = 1):
        super().__init__(table)
        self.clips = clips
        # A tensor [clips] for each step but the first; they stay on the device, so that it need not be waited for.
        self.relative: dict[Branch, list[Tensor]] = {branch: [] for branch in table.branches}
        self.squared: dict[Branch, list[Tensor]] = {branch: [] for branch in table.branches}
        self.signal: list[Tensor] = []
        self.whole: list[Tensor] = []
        self._before: dict[Branch | str, Tensor] = {}
        self._sum: Tensor | None = None
        self._modulation: Tensor | None = None

    def begin(self, model: Any) -> None:
        self._modulation = first_modulation(model)

    def __call__(self, branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        if branch == self.table.branches[0]:
            assert self._modulation is not None
            signal = modulated_input(x, cond.modulation, self._modulation)
            if "signal" in self._before:
                self.signal.append(self._change(signal, self._before["signal"]))
            self._before["signal"], self._sum = signal, torch.zeros_like(x)
        value = update(x, cond)
        assert self._sum is not None
        self._sum = self._sum + value
        if branch in self._before:
            before = self._before[branch]
            self.relative[branch].append(self._change(value, before))
            self.squared[branch].append(mean_of_clips((value - before).float().square(), self.clips))
        self._before[branch] = value
        if branch == self.table.branches[-1]:
            if "whole" in self._before:
                self.whole.append(self._change(self._sum, self._before["whole"]))
            self._before["whole"] = self._sum
        return value

    def _change(self, now: Tensor, before: Tensor) -> Tensor:
        return relative_changes(now, before, self.clips)

    def told(self) -> list[dict[str, Any]]:
        """What was noted of each clip, in plain numbers."""

        def columns(values: Sequence[Tensor]) -> list[list[float]]:
            return torch.stack(list(values), dim=1).tolist()

        names = [branch_name(branch) for branch in self.table.branches]
        rows = {
            field: dict(zip(names, map(columns, getattr(self, field).values()), strict=True))
            for field in ("relative", "squared")
        }
        signal, whole = columns(self.signal), columns(self.whole)
        return [
            {field: {name: row[clip] for name, row in rows[field].items()} for field in rows}
            | {"signal": signal[clip], "whole": whole[clip]}
            for clip in range(self.clips)
        ]


def record(
    pipe: Pipeline,
    clips: Sequence[Clip],
    path: Path,
    on_progress: Callable[[int, int], None] | None = None,
    batch: int = 1,
) -> Recording:
    """Runs the model on the clips without reuse, `batch` together, and notes the changes of each, in a file of JSON
    lines that an interrupted recording goes on with.

    Raises:
        PabError: the file is of another model or other clips.
    """
    table = pipe.schedule("off")
    header = {"recording": pipe.spec.name, "steps": pipe.spec.steps, "timesteps": list(table.timesteps)}
    file = ResultFile(path, header)
    lacking = [clip for clip in clips if file.find(prompt=clip.prompt, seed=clip.seed) is None]
    for start in range(0, len(lacking), batch):
        if on_progress is not None:
            on_progress(len(clips) - len(lacking) + start, len(clips))
        part = lacking[start : start + batch]
        made = Recorder(table, len(part))
        make_latents(pipe, part, table, run=made)
        for clip, told in zip(part, made.told(), strict=True):
            file.add({"prompt": clip.prompt, "seed": clip.seed, **told})
    if on_progress is not None:
        on_progress(len(clips), len(clips))
    found = [file.find(prompt=clip.prompt, seed=clip.seed) for clip in clips]
    lines = [line for line in found if line is not None]

    def mean(field: str) -> dict[Branch, tuple[float, ...]]:
        return {
            branch: tuple(
                sum(column) / len(lines)
                for column in zip(*(line[field][branch_name(branch)] for line in lines), strict=True)
            )
            for branch in table.branches
        }

    each = {field: tuple(tuple(line[field]) for line in lines) for field in ("signal", "whole")}
    return Recording(pipe.spec.name, table.timesteps, mean("relative"), mean("squared"), **each)


def branch_name(branch: Branch) -> str:
    return f"{branch.kind}/{branch.stream}/{branch.block}"


def fit_polynomial(recording: Recording, degree: int = 4) -> tuple[float, ...]:
    """TeaCache's coefficients, highest power first: from the change of the first modulated input to that of what the
    blocks add, by least squares over all clips. The first and last steps are always computed and left out."""
    signals, wholes = ([row[:-1] for row in rows] for rows in (recording.signal, recording.whole))
    x, y = (torch.tensor(rows, dtype=torch.float64).flatten() for rows in (signals, wholes))
    powers = torch.stack([x**power for power in range(degree, -1, -1)], dim=1)
    # Columns of one size, or the high powers drown.
    scale = powers.norm(dim=0)
    found = torch.linalg.lstsq(powers / scale, y[:, None], driver="gelsd").solution[:, 0] / scale
    return tuple(float(f"{value:.6g}") for value in found.tolist())


def draw_recording(recording: Recording, path: Path) -> None:
    """The U-shape: change of each kind over the steps. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(recording.timesteps))
    for axes, values, label in ((left, "relative", "relative L1"), (right, "squared", "mean squared difference")):
        for kind in recording.kinds:
            axes.plot(steps, recording.of_kind(kind, values), label=kind)
        axes.set(xlabel="step", ylabel=label, yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{recording.model}: change of the updates from the step before, {len(recording.signal)} clips")
    figure.savefig(path, dpi=110)


def save_recording(recording: Recording, path: Path) -> Path:
    return write_whole(path, json.dumps(recording.to_json()) + "\n")


def stable_window(recording: Recording, times: float = 3.0) -> tuple[int, int]:
    """Steps [start, stop) of the U's floor: where attention changes at most `times` as much as at its calmest.

    Some samplers call the model twice at a time, or for half a step: what hardly changes there is not calm. Their
    changes are told for a step of the usual length, and calls at the time of the one before are passed over.

    PabError where changes are no numbers.
    """
    rows = [recording.of_kind(kind) for kind in recording.kinds if kind != "mlp"]
    changes = [max(column) for column in zip(*rows, strict=True)]  # index i: from step i to i + 1
    if not all(math.isfinite(value) for row in rows for value in row):
        raise PabError("The model's updates are not all numbers, so nothing can be said of their changes.")
    lengths = [abs(after - before) for before, after in pairwise(recording.timesteps)]
    moves = [i for i, length in enumerate(lengths) if length > 0]
    if len(moves) < len(lengths):
        usual = statistics.median(lengths[i] for i in moves)
        changes = [
            change * usual / length if length else math.inf for change, length in zip(changes, lengths, strict=True)
        ]
    limit = times * min(changes)
    calm = [i + 1 for i, change in enumerate(changes) if change <= limit]
    return calm[0], calm[-1] + 1
