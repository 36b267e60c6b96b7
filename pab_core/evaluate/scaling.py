"""One clip on 1, 2, 4, 8 devices: `pab bench scaling`. Models of released size with random weights.

The ranks are started once, as many as the largest number of devices; for smaller numbers the first of them work and
the others wait for the next message. What is measured is kept in a file, line by line, and not measured again. The time
is bounded: cells come in the order of what they tell, each is estimated before it is begun, long loops are measured on
some of their steps where the whole would leave no time for others, and what no longer fits is told as not run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..acceleration.choice import SPEEDS
from ..errors import PabError
from .results import ResultFile
from .scaling_cases import MOST_DEVICES, Cell, Plan, Workload, plan_cells
from .scaling_estimate import Estimate, warmth
from .scaling_steps import shorten, whole_run
from .scaling_world import AllFailed, RankLost, World

_END = 12.0  # seconds that are left for the report and its figure
_OVERRUN = 20.0  # seconds by which a cell that was begun may be late
_SURE = 1.15  # by which estimates are taken for longer

OnRow = Callable[[int, int, "Mapping[str, Any] | None"], None]


@dataclass(frozen=True)
class Asked:
    """What a measurement is asked for; see `measure_scaling`."""

    workloads: tuple[Workload, ...]
    policies: tuple[str, ...]
    methods: tuple[str, ...]
    devices: tuple[int, ...]
    device: str  # cuda or cpu
    tiny: bool
    speed: str
    minutes: float


@dataclass
class Measured:
    """What there is at the end, however it came."""

    header: dict[str, Any]
    plan: Plan
    lines: list[dict[str, Any]]  # of the file: links and cells
    not_run: list[tuple[Cell, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: bool = False  # whether a rank was, so that it ended early
    log: str = ""  # of that rank, the end


def check_asked(asked: Asked, present: int | None = None) -> tuple[Asked, list[str]]:
    """What of it this machine can measure, and sentences on what it cannot.

    Args:
        present: devices of the machine; None: to be counted.

    Raises:
        PabError: there is no such speed, no device, no way for devices to exchange anything; no time.
    """
    if asked.speed not in SPEEDS:
        raise PabError(f"There is no speed named '{asked.speed}': choose {', '.join(SPEEDS[:-1])} or {SPEEDS[-1]}.")
    if not 0 < asked.minutes <= 24 * 60:
        raise PabError(f"The time is a number of minutes above 0, not {asked.minutes!r}.")
    if asked.device not in ("cuda", "cpu"):
        raise PabError(f"Devices are cuda or cpu, all of a kind, not '{asked.device}'.")
    if not asked.devices:
        raise PabError("No number of devices is given: say, for example, 1,2,4.")
    plan_cells(asked.workloads, asked.policies, asked.methods, asked.devices, asked.tiny)
    notes = []
    if asked.device == "cuda":
        present = torch.cuda.device_count() if present is None else present
        if not present:
            raise PabError("There is no CUDA GPU here: measure with --device cpu --tiny to try the command out.")
        if present > 1 and not dist.is_nccl_available():
            raise PabError("This build of PyTorch has no NCCL, so its GPUs cannot exchange anything.")
    else:
        present = MOST_DEVICES
    fewer = tuple(count for count in asked.devices if count <= present)
    if len(fewer) < len(asked.devices):
        missing = ", ".join(str(count) for count in sorted(set(asked.devices) - set(fewer)))
        fewer = fewer or (present,)
        here = "1 GPU" if present == 1 else f"{present} GPUs"
        notes.append(f"This machine has {here}: {missing} cannot be measured here, and {_listed(fewer)} are.")
    return Asked(**{**vars(asked), "devices": fewer}), notes


def measure_scaling(asked: Asked, path: Path, on_row: OnRow | None = None, *, begin: float | None = None) -> Measured:
    """Measures what is not in the file yet, and adds it there.

    Args:
        asked: `policies`: none for each family's usual ones; `minutes`: of the whole, the start with it.
        on_row: called with (done, of, the new line or None).
        begin: since when the minutes count, by time.monotonic(); None: from now on.

    Raises:
        PabError: as from `check_asked`; the file is of other settings or another machine.
        RankLost: a rank did not even start. Later, the measurement ends with what it has.
    """
    begin = time.monotonic() if begin is None else begin
    asked, notes = check_asked(asked)
    plan = plan_cells(asked.workloads, asked.policies, asked.methods, asked.devices, asked.tiny)
    found = Measured({}, plan, [], notes=[*notes, *plan.notes])
    deadline = begin + 60 * asked.minutes - _END
    left = list(plan.cells)
    try:
        with World(max(asked.devices), asked.device) as world:
            estimate = Estimate(asked.workloads, asked.device, asked.tiny)
            estimate.prepare(plan.cells)  # while the ranks start
            answers = world.meet(list(asked.devices), max(deadline - time.monotonic(), _OVERRUN))
            found.header = _header(asked, answers[0]["machine"])
            file = ResultFile(path, found.header)
            found.lines = file.lines
            _Session(asked, found, world, estimate, file, deadline, on_row).run(left)
    except RankLost as lost:
        if not found.header:
            raise
        found.notes.append(f"The measurement ended early: {lost}")
        found.lost, found.log = True, lost.log
        found.not_run += [(cell, "a rank was lost") for cell in left]
    return found


@dataclass
class _Session:
    asked: Asked
    found: Measured
    world: World
    estimate: Estimate
    file: ResultFile
    deadline: float
    on_row: OnRow | None
    model: str = ""  # that the ranks hold
    speed: str = ""  # of that model: exact, fast or fp8
    whole: dict[str, bool] = field(default_factory=dict)  # by clip, whether its loops are timed from end to end
    warm: set[tuple[str, str, int]] = field(default_factory=set)

    def run(self, left: list[Cell]) -> None:
        """Takes from `left` what is done with."""
        total = len(left)
        for line in self.file.lines:
            self.estimate.add(line)
        left[:] = [cell for cell in left if self.file.find(**cell.to_json()) is None]
        self._tell(total - len(left), total, None)
        if left:
            self._links()
        for cell in list(left):
            whole = self._fitting(cell, left)
            if whole is None:
                cost = self._cost(cell, self.estimate.loop(cell).few is None)
                self.found.not_run.append((cell, f"no time was left for its {cost:.0f} s"))
                left.remove(cell)
                continue
            try:
                line = self._measure(cell, whole)
            except AllFailed as failed:
                self.found.not_run.append((cell, str(failed)))
                left.remove(cell)
                continue
            left.remove(cell)
            self.file.add(line)
            self.estimate.add(line)
            self._tell(total - len(left), total, line)

    def _fitting(self, cell: Cell, left: Sequence[Cell]) -> bool | None:
        """Whether there is time for the whole loop; None: not even for some steps of it."""
        time_left = self.deadline - time.monotonic()
        few = self.estimate.loop(cell).few is not None
        if self._takes_whole(cell, left, time_left) and self._cost(cell, True) <= time_left:
            return True
        return not few if self._cost(cell, not few) <= time_left else None

    def _takes_whole(self, cell: Cell, left: Sequence[Cell], time_left: float) -> bool:
        """Decided once for all loops of a clip, for what is compared is to be measured alike: from end to end where
        that leaves the others the time for some steps of theirs."""
        if cell.workload not in self.whole:
            begun = self.file.find(workload=cell.workload)
            workload = self.estimate.workloads[cell.workload]
            self.whole[cell.workload] = (
                workload.whole
                or (begun is not None and begun["steps_measured"] == begun["steps"])
                or (begun is None and self._cost_of_all(left, cell.workload) <= time_left)
            )
        return self.whole[cell.workload]

    def _cost(self, cell: Cell, whole: bool) -> float:
        return _SURE * self.estimate.cost(cell, whole, warmth(cell) in self.warm)

    def _cost_of_all(self, cells: Sequence[Cell], workload: str) -> float:
        """Where this clip's loops are timed from end to end, and of others as few steps as can be."""
        warm, total = set(self.warm), 0.0
        for cell in cells:
            shorter = cell.workload != workload and not self.estimate.workloads[cell.workload].whole
            whole = self.whole.get(cell.workload, not shorter)
            total += _SURE * self.estimate.cost(cell, whole, warmth(cell) in warm)
            warm.add(warmth(cell))
        return total

    def _links(self) -> None:
        for count in sorted(set(self.asked.devices) - {1}):
            if self.file.find(link=count) is None:
                answer = self.world.ask("link", {"devices": count}, self._patience())[0]
                self.file.add({"link": count, **answer})
                self.estimate.add(self.file.lines[-1])

    def _measure(self, cell: Cell, whole: bool) -> dict[str, Any]:
        workload = self.estimate.workloads[cell.workload]
        loop = self.estimate.loop(cell)
        loops = self.estimate.loops(cell, whole, warmth(cell) in self.warm)
        steps = loops["steps"]
        line: dict[str, Any] = cell.to_json() | {
            "steps": loop.table.steps,
            "steps_measured": loop.table.steps if steps is None else len(steps),
        }
        if workload.model != self.model:
            self._build(workload.model)
        begin = time.monotonic()
        try:
            answers = self.world.ask("cell", {"cell": cell.to_json(), **loops}, self._patience(), cell.devices)
        except AllFailed as failed:
            if failed.lacking:
                return line | {"seconds": None, "lacking": "memory"}
            raise
        around = time.monotonic() - begin
        self.warm.add(warmth(cell))
        ranks = answers[: cell.devices]
        self.estimate.note_around(around - max(rank["warm_up"] + sum(rank["loops"]) for rank in ranks))
        if steps is None:
            times = [max(each) for each in zip(*(rank["loops"] for rank in ranks), strict=True)]
            sums = [[sum(column) for column in zip(*rank["bytes"], strict=True)] for rank in ranks]
        else:
            part = shorten(loop.table, steps, range(len(steps)), len(steps))

            def spread(values: Sequence[float]) -> float:
                return whole_run(loop.table, part, values)

            runs = zip(*(rank["steps"] for rank in ranks), strict=True)
            times = [max(spread(each) for each in of_ranks) for of_ranks in runs]
            sums = [[round(spread(column)) for column in zip(*rank["bytes"], strict=True)] for rank in ranks]
        sent, volume, padded, calls = (list(column) for column in zip(*sums, strict=True))
        return line | {
            "speed": self.speed,
            "seconds": statistics.median(times),
            "loops": times,
            "warm_up": max(rank["warm_up"] for rank in ranks),
            "sent": sent,
            "temporal": volume,
            "temporal_padded": padded,
            "collectives": max(calls),
            "peak": [rank["peak"] for rank in ranks],
            "difference": ranks[0]["difference"],
        }

    def _build(self, model: str) -> None:
        about = {"model": model, "tiny": self.asked.tiny, "speed": self.asked.speed}
        self.model = ""
        built = self.world.ask("build", about, self._patience())[0]
        self.model, self.speed = model, built["speed"]
        self.found.notes += [note for note in built["notes"] if note not in self.found.notes]

    def _patience(self) -> float:
        return max(self.deadline - time.monotonic(), 0) + _OVERRUN

    def _tell(self, done: int, total: int, line: Mapping[str, Any] | None) -> None:
        if self.on_row is not None:
            self.on_row(done, total, line)


def _header(asked: Asked, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all cells share; another machine's results are none of these."""
    about = dict(machine)
    about["device"] = asked.device
    return {
        "bench": "scaling",
        "weights": "random",
        "sizes": "tiny" if asked.tiny else "released",
        "speed": asked.speed,
        "dtype": "bfloat16" if asked.device == "cuda" else "float32",
        "machine": about,
    }


def _listed(numbers: Sequence[int]) -> str:
    *some, last = [str(number) for number in sorted(set(numbers))]
    return f"{', '.join(some)} and {last}" if some else last
