"""How long a denoise loop should take on so many devices: as `pab bench comm` extrapolates, from our own one-device
time; and before that is measured, from FLOPs and what was measured of the like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..broadcast import ScheduleTable
from ..models.registry import ModelSpec
from ..parallel.layout import shares
from ..parallel.methods import Sizes, find_method
from .flops import CallFlops, count_call
from .links import IN_NODE, OUT_CHANNELS, START, exchange_bytes
from .scaling_cases import ALONE, Cell, Workload, text_tokens
from .scaling_steps import busiest_steps, choose_steps

# FLOP/s until something is measured: too few rather than too many, so that what is begun can be finished.
_RATE = {"cuda": 2e14, "cpu": 1e9}
# Seconds of a cell beside its loops: messages, weights of parts, groups of halves. At first, and of how many the mean.
_AROUND, _RECENT = {"cuda": 0.8, "cpu": 0.1}, 12
_SHORT = 1.5  # seconds of a loop; those that are shorter are run whole to warm up, and timed twice, but for tiny ones


@dataclass(frozen=True)
class Link:
    """Between any two of a machine's devices."""

    bandwidth: float  # bytes a second that a rank sends in an all-to-all
    start: float  # seconds of an exchange of nearly nothing


ASSUMED = Link(IN_NODE.value * 1e9, START.value / 1e6)


class Loop:
    """A denoise loop of a clip with a policy: what follows from these two, worked out once."""

    def __init__(self, workload: Workload, policy: str, tiny: bool):
        self.table: ScheduleTable = workload.table(policy, tiny)
        self.spec: ModelSpec = replace(workload.spec(tiny), **workload.clip(tiny))
        self.sizes: Sizes = workload.sizes(tiny)
        self.width: int = workload.config(tiny).hidden_size

    @cached_property
    def few(self) -> list[int] | None:
        """Steps that can stand for all."""
        return choose_steps(self.table)

    @cached_property
    def busiest(self) -> list[int]:
        return busiest_steps(self.table)

    @cached_property
    def passes(self) -> int:
        """How often temporal attention is computed."""
        temporal = [branch for branch in self.table.branches if branch.kind == "temporal"]
        return sum(not self.table.reuses(branch, step) for branch in temporal for step in range(self.table.steps))


def predict(one: float, loop: Loop, method: str, devices: int, link: Link, item: int = 2) -> float:
    """Seconds, on the assumptions of links.extrapolate, of which this is the case of one machine, for any clip.

    Args:
        one: seconds on one device with the same policy.
        item: bytes of a number in x.
    """
    if devices == 1:
        return one
    halves = 2 if find_method(method).halves else 1
    inner, sizes, spec = devices // halves, loop.sizes, loop.spec
    frames = shares(sizes.frames, inner)
    seconds = one * max(frames) / sizes.frames / halves
    if inner > 1:
        size = 2 / halves * sizes.frames * sizes.tokens * loop.width * item
        sent, calls = exchange_bytes(method, size, frames)
        seconds += loop.passes * (sent / link.bandwidth + calls * link.start)
    latents = sizes.frames * (spec.height // spec.space_factor) * (spec.width // spec.space_factor)
    prediction = 2 * OUT_CHANNELS * latents * 4
    return seconds + loop.table.steps * (prediction / link.bandwidth + halves * link.start)


class Estimate:
    """Of cells of some clips, better with each that is measured."""

    def __init__(self, workloads: Sequence[Workload], device: str, tiny: bool):
        self.workloads = {workload.name: workload for workload in workloads}
        self.device, self.tiny = device, tiny
        self.measured: dict[Cell, float] = {}
        self.links: dict[int, Link] = {}  # between so many devices, measured
        self._around = [_AROUND[device]]
        self._loops: dict[tuple[str, str], Loop] = {}
        self._calls: dict[str, CallFlops] = {}
        self._flops: dict[tuple[str, str], float] = {}

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Counts FLOPs, which takes seconds."""
        for cell in cells:
            self._flops_of(cell)

    def add(self, line: Mapping[str, Any]) -> None:
        """A line of the file of results: a measured link or cell."""
        if "link" in line:
            self.links[line["link"]] = Link(line["bandwidth"], line["start"])
        elif line["workload"] in self.workloads and line["seconds"] is not None:
            self.measured[cell_of(line)] = line["seconds"]

    def loop(self, cell: Cell) -> Loop:
        key = (cell.workload, cell.policy)
        if key not in self._loops:
            self._loops[key] = Loop(self.workloads[cell.workload], cell.policy, self.tiny)
        return self._loops[key]

    def predicted(self, cell: Cell, link: Link | None) -> float | None:
        """From the measured time of one device; None where there is none, or no link."""
        one = self.measured.get(_alone(cell))
        return None if one is None or link is None else self._shared(one, cell, link)

    def link(self, cell: Cell) -> Link:
        return self.links.get(cell.devices, ASSUMED)

    def seconds(self, cell: Cell) -> float:
        """Of one loop."""
        one = self.measured.get(_alone(cell))
        if one is None:
            one = self._flops_of(cell) * self._pace(cell)
        return self._shared(one, cell, self.link(cell)) * self._error_of_the_like(cell)

    def loops(self, cell: Cell, whole: bool, warm: bool) -> dict[str, Any]:
        """How a cell is run: what the message to the ranks says of its loops. `warm`: see `warmth`."""
        loop = self.loop(cell)
        short = not self.tiny and (whole or loop.few is None) and self.seconds(cell) < _SHORT
        return {
            "steps": None if whole else loop.few,
            "warm_up": None if short else [0] if warm else loop.busiest,
            "loops": 2 if short else 1,
        }

    def cost(self, cell: Cell, whole: bool, warm: bool) -> float:
        """Seconds until the cell is measured."""
        loops, steps = self.loops(cell, whole, warm), self.loop(cell).table.steps
        run = [loops["warm_up"], *[loops["steps"]] * loops["loops"]]
        share = sum(steps if chosen is None else len(chosen) for chosen in run) / steps
        return share * self.seconds(cell) + sum(self._around) / len(self._around)

    def note_around(self, seconds: float) -> None:
        """What a cell took beside its loops."""
        self._around = [*self._around, seconds][-_RECENT:]

    def _shared(self, one: float, cell: Cell, link: Link) -> float:
        item = 2 if self.device == "cuda" else 4
        return predict(one, self.loop(cell), cell.method, cell.devices, link, item)

    def _flops_of(self, cell: Cell) -> float:
        key = (cell.workload, cell.policy)
        if key not in self._flops:
            workload = self.workloads[cell.workload]
            if cell.workload not in self._calls:
                spec, config = workload.spec(self.tiny), workload.config(self.tiny)
                tokens, clip = text_tokens(spec, self.tiny), workload.clip(self.tiny)
                self._calls[cell.workload] = count_call(spec, config, tokens, **clip)  # pyright: ignore[reportArgumentType]
            self._flops[key] = self._calls[cell.workload].over(self.loop(cell).table)
        return self._flops[key]

    def _pace(self, cell: Cell) -> float:
        """Seconds a FLOP on one device: of the measured cell that is most like this one."""

        def likeness(other: Cell) -> tuple[bool, bool, bool]:
            models = {self.workloads[name].model for name in (cell.workload, other.workload)}
            return other.workload == cell.workload, len(models) == 1, other.policy == cell.policy

        known = [other for other in self.measured if other.devices == 1]
        if not known:
            return 1 / _RATE[self.device]
        best = max(known, key=likeness)
        return self.measured[best] / self._flops_of(best)

    def _error_of_the_like(self, cell: Cell) -> float:
        """Measured to predicted: of the last cell with the same method on as many devices, else of the last with as
        many."""
        if cell.devices == 1:
            return 1.0
        many = [other for other in self.measured if other.devices == cell.devices and _alone(other) in self.measured]
        like = [other for other in many if other.method == cell.method] or many
        if not like:
            return 1.0
        predicted = self.predicted(like[-1], self.link(cell))
        return self.measured[like[-1]] / predicted if predicted else 1.0


def warmth(cell: Cell) -> tuple[str, str, int]:
    """What cells have in common of which, after one of them was run, the others need a step only to warm up: nearly all
    kernels and the shapes of nearly all tensors."""
    return cell.workload, cell.policy, cell.devices


def cell_of(line: Mapping[str, Any]) -> Cell:
    return Cell(line["workload"], line["policy"], line["method"], line["devices"])


def _alone(cell: Cell) -> Cell:
    return Cell(cell.workload, cell.policy, ALONE, 1)
