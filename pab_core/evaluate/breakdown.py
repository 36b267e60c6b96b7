"""Where a step's time goes: each kind of branch, what stands before and after the blocks, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..broadcast import ScheduleTable
from ..models.layers import Branch
from ..pipeline import Pipeline
from .costs import Clock, now
from .generation import Clip, make_latents
from .machine import describe_machine

NOTE = "On a GPU each part is waited for, so small kernels look dearer than in a run that is not watched."


@dataclass(frozen=True)
class BreakdownReport:
    """seconds: policy -> part -> seconds of a step, the mean of a run."""

    model: str
    weights: str
    machine: dict[str, str | int]
    clips: int  # made together
    seconds: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        about = {"model": self.model, "weights": self.weights, "machine": self.machine, "clips": self.clips}
        return about | {
            "policies": [
                {"policy": name, "step": sum(parts.values()), "parts": parts} for name, parts in self.seconds.items()
            ]
        }

    def to_markdown(self) -> str:
        names = list(self.seconds)
        lines = ["| ms a step | " + " | ".join(names) + " |", "|" + "-|" * (len(names) + 1)]
        wholes = {name: sum(parts.values()) for name, parts in self.seconds.items()}
        for part in self.seconds[names[0]]:
            cells = [
                f"{1000 * self.seconds[name][part]:.2f} ({self.seconds[name][part] / wholes[name]:.0%})"
                for name in names
            ]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
        lines.append("| all | " + " | ".join(f"{1000 * wholes[name]:.2f}" for name in names) + " |")
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        about = f"{self.model}, {self.weights} weights, {self.clips} clips together; {machine}"
        return "\n".join(lines) + f"\n\n{about}. {NOTE}\n"


class _Parts(Clock):
    """Also times what the model does before its first branch and after its last."""

    def __init__(self, table: ScheduleTable):
        super().__init__(table)
        self.around = {"embedding": 0.0, "final layer": 0.0}
        self._mark = 0.0

    def enter(self, *_: Any) -> None:
        self._mark = now(self._device)

    def leave(self, *_: Any) -> None:
        self.around["final layer"] += now(self._device) - self._mark

    def watch(self, pipe: Pipeline, clips: Sequence[Clip]) -> float:
        """Makes the clips; -> seconds of the run."""
        self._device = pipe.device
        hooks = [
            pipe.transformer.register_forward_pre_hook(self.enter),
            pipe.transformer.register_forward_hook(self.leave),
        ]
        try:
            start = now(pipe.device)
            make_latents(pipe, clips, self.table, run=self)
            return now(pipe.device) - start
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self, branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        if branch == self.table.branches[0]:
            self.around["embedding"] += now(x.device) - self._mark
        value = super().__call__(branch, update, x, cond)
        if branch == self.table.branches[-1]:
            self._mark = now(x.device)
        return value


def measure_breakdown(
    pipe: Pipeline,
    policies: Sequence[str],
    clips: Sequence[Clip],
    on_progress: Callable[[int, int], None] | None = None,
) -> BreakdownReport:
    """Runs off and each policy once on these clips together, after a run that is not counted."""
    tables = [pipe.schedule(name) for name in ("off", *policies)]
    seconds: dict[str, dict[str, float]] = {}
    for done, table in enumerate([tables[0], *tables]):
        if on_progress is not None:
            on_progress(done, len(tables) + 1)
        parts = _Parts(table)
        whole = parts.watch(pipe, clips)
        named: dict[str, float] = {}
        for branch, taken in parts.seconds.items():
            kind = branch.kind if branch.kind in ("spatial", "temporal") else f"{branch.kind}, {branch.stream} blocks"
            named[kind] = named.get(kind, 0.0) + sum(taken)
        named |= parts.around
        # Sums of the blocks, guidance and the sampler.
        named["rest"] = max(whole - sum(named.values()), 0.0)
        seconds[table.policy] = {part: value / table.steps for part, value in named.items()}
    if on_progress is not None:
        on_progress(len(tables) + 1, len(tables) + 1)
    weights = "trained" if pipe.spec.trained else "random"
    return BreakdownReport(pipe.spec.name, weights, describe_machine(str(pipe.device)), len(clips), seconds)


def draw_breakdown(report: BreakdownReport, path: Path) -> None:
    """A bar for each policy. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.8 + 0.6 * len(report.seconds)), layout="constrained")
    axes = figure.subplots()
    names = list(report.seconds)
    left = [0.0] * len(names)
    for part in report.seconds[names[0]]:
        widths = [1000 * report.seconds[name][part] for name in names]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a step")
    figure.legend(fontsize=8, ncols=5, loc="outside lower center")
    figure.suptitle(f"{report.model}: where a step's time goes")
    figure.savefig(path, dpi=110)
