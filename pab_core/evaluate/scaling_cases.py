"""What `pab bench scaling` measures: clips, methods and numbers of devices, the most telling first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..broadcast import ScheduleTable
from ..broadcast.presets import FAMILIES
from ..errors import PabError
from ..models.registry import ARCHITECTURES, ModelSpec, TransformerConfig, model_spec
from ..parallel.methods import Sizes, check_sizes, find_method
from ..settings import schedule_for
from .comm_ranks import CONFIGS

ALONE = "none"  # the method of one device
METHODS = ("dsp", "cfg+dsp", "ulysses", "megatron")
MOST_DEVICES = 64
_TINY_DEPTH, _TINY_STEPS, _TINY_TOKENS = 2, 10, 4


@dataclass(frozen=True)
class Workload:
    """A clip of a model."""

    name: str
    title: str
    model: str
    num_frames: int
    height: int  # pixels
    width: int
    tiny_size: tuple[int, int] = (32, 64)  # height and width that stand for it in a rehearsal
    whole: bool = False  # whether its loops are timed from end to end though it may leave others no time

    def clip(self, tiny: bool = False) -> dict[str, Any]:
        height, width = self.tiny_size if tiny else (self.height, self.width)
        return {"num_frames": self.num_frames, "height": height, "width": width}

    def config(self, tiny: bool = False) -> TransformerConfig:
        return config_of(self.model, tiny)

    def spec(self, tiny: bool = False) -> ModelSpec:
        """Of the model with random weights."""
        spec = replace(model_spec(self.model), trained=False)
        return replace(spec, depth=self.config(tiny).depth, steps=_TINY_STEPS) if tiny else spec

    def sizes(self, tiny: bool = False) -> Sizes:
        return Sizes.of_clip(self.spec(tiny), self.config(tiny), **self.clip(tiny))

    def table(self, policy: str, tiny: bool = False) -> ScheduleTable:
        return schedule_for(self.spec(tiny), policy, **self.clip(tiny))


WORKLOADS = (
    Workload("open-sora-480p-2s", "Open-Sora 1.2, 480p, 2 s", "open-sora", 51, 480, 854, whole=True),
    Workload("open-sora-480p-4s", "Open-Sora 1.2, 480p, 4 s", "open-sora", 102, 480, 854),
    Workload("open-sora-720p-2s", "Open-Sora 1.2, 720p, 2 s", "open-sora", 51, 720, 1280, (48, 64)),
    Workload("latte", "Latte-1, 512x512, 16 frames", "latte", 16, 512, 512),
    Workload("open-sora-plan", "Open-Sora-Plan v1.1.0, 512x512, 65 frames", "open-sora-plan", 65, 512, 512),
)


def config_of(model: str, tiny: bool) -> TransformerConfig:
    """The released size, or one of 16 heads too that a CPU computes in milliseconds."""
    family = model_spec(model).family
    small = CONFIGS[family] | {"depth": _TINY_DEPTH, "num_layers": _TINY_DEPTH} if tiny else {}
    return ARCHITECTURES[family].read_config(small)


def text_tokens(spec: ModelSpec, tiny: bool) -> int:
    """Of the prompt: as many as the model reads."""
    return _TINY_TOKENS if tiny else spec.max_tokens


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    workload: str
    policy: str
    method: str
    devices: int

    @property
    def attached(self) -> str:
        """The method by the name under which it is attached."""
        # Two devices have a half of the guidance each: frames are not shared out, not even with oneself.
        return "cfg" if self.devices == 2 and find_method(self.method).halves else self.method

    def __str__(self) -> str:
        method = "" if self.method == ALONE else f" {self.method}"
        return f"{self.workload} {self.policy}{method} on {self.devices}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they are to be measured, and why others cannot be."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


def find_workloads(names: Sequence[str]) -> tuple[Workload, ...]:
    """All, where none is named. PabError where there is none of a name."""
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names:
        if name not in known:
            raise PabError(f"There is no clip named '{name}' to measure: choose of {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(names)) or WORKLOADS


def usual_policies(workload: Workload) -> tuple[str, ...]:
    """Nothing, the gentlest of the family's published ones, and what was calibrated for the model."""
    return ("off", FAMILIES[workload.spec().family].names[0], "calibrated")


def plan_cells(
    workloads: Sequence[Workload],
    policies: Sequence[str],
    methods: Sequence[str],
    devices: Sequence[int],
    tiny: bool = False,
) -> Plan:
    """All cells that can be.

    Args:
        policies: of every clip; none: each family's usual ones, of which `calibrated` is left out where there is none.

    Raises:
        PabError: there is no such method or policy; a number of devices is none.
    """
    for method in methods:
        find_method(method)
    for count in devices:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_DEVICES:
            raise PabError(f"The numbers of devices are whole numbers from 1 to {MOST_DEVICES}, not {count!r}.")
    notes: list[str] = []
    ranked: list[tuple[tuple[int, ...], Cell]] = []
    for place, workload in enumerate(workloads):
        try:
            workload.table("off", tiny)
        except ImportError as error:
            notes.append(f"{workload.title} is left out, for {error.name} is not installed.")
            continue
        chosen = list(dict.fromkeys(policies)) or _known(workload, tiny, notes)
        for turn, policy in enumerate(chosen):
            workload.table(policy, tiny)  # it is refused now or never
            for count in sorted(set(devices)):
                for rank, method in enumerate(dict.fromkeys(methods) if count > 1 else [ALONE]):
                    if method == ALONE and count > 1:
                        continue
                    cell = Cell(workload.name, policy, method, count)
                    try:
                        check_sizes(cell.attached, count, workload.sizes(tiny))
                    except PabError as error:
                        notes.append(f"{workload.title}: {error}")
                        continue
                    first = _tier(place, workload.model == workloads[0].model, turn < 2, rank)
                    # What the others are compared with goes ahead of them, then the largest number of devices.
                    ranked.append(((first, place, int(count > 1), rank, -count, turn), cell))
    ranked.sort(key=lambda pair: pair[0])
    return Plan(tuple(cell for _, cell in ranked), tuple(dict.fromkeys(notes)))


def _tier(place: int, same_model: bool, leading: bool, method: int) -> int:
    """How early a cell is measured: what a cut-off run should have above all comes first."""
    if place == 0:
        return min(method, 2) if leading else 2
    if leading and method < 2:
        return 3 if same_model else 4
    return 5


def _known(workload: Workload, tiny: bool, notes: list[str]) -> list[str]:
    found = list(usual_policies(workload))
    try:
        workload.table(found[-1], tiny)
    except PabError as error:
        notes.append(f"{workload.title}: {found[-1]} is left out. {error}")
        found.pop()
    except ImportError as error:
        notes.append(f"{workload.title}: {found[-1]} is left out, for {error.name} is not installed.")
        found.pop()
    return found
