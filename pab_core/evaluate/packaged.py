"""What was measured of the demo models elsewhere and comes with the package, and the curves of any recording.

PACKAGED/MODEL holds files as commands write them: changes.json and proposal.json of `pab calibrate`, quality.json of
`pab bench quality`. They are data to look at: nothing that makes videos reads them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

PACKAGED = Path(__file__).resolve().parent.parent / "demo" / "measured"
_KINDS = ("spatial", "temporal", "cross", "mlp")


@dataclass(frozen=True)
class Curves:
    """How much each kind's update changes at each step from the step before, of the mean absolute value; index 0 is
    step 1. `calm`: the first and the last step of the window that was proposed. `machine`: as describe_machine has it,
    where it is known. `twice`: the sampler asks for the model twice at some times, between which little changes."""

    kinds: dict[str, tuple[float, ...]]
    clips: int
    calm: tuple[float, float] | None
    machine: dict[str, Any] = field(default_factory=dict)
    twice: bool = False


def packaged_file(model: str, name: str) -> Path:
    """Where it would lie; few models have one."""
    return PACKAGED / model / name


def packaged_curves(model: str) -> Curves | None:
    """Of a model that the package has inside; others of its name are not what was measured."""
    return read_curves(packaged_file(model, "changes.json"), model)


def read_curves(path: Path, model: str) -> Curves | None:
    """Of a changes.json, with the proposal.json beside it where there is one. None where it is none of that model."""
    found = read_object(path)
    if found is None or found.get("model") != model:
        return None
    rows: dict[str, list[list[float]]] = {}
    try:
        for branch, row in found["relative"].items():
            rows.setdefault(branch.split("/")[0], []).append([float(value) for value in row])
        kinds = {
            kind: tuple(sum(column) / len(found_rows) for column in zip(*found_rows, strict=True))
            for kind, found_rows in sorted(rows.items(), key=lambda entry: _place(entry[0]))
        }
        clips, times = len(found["signal"]), list(found["timesteps"])
        twice = any(before == after for before, after in pairwise(times))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    values = [value for row in kinds.values() for value in row]
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    window = (read_object(path.with_name("proposal.json")) or {}).get("window")
    calm = None
    if isinstance(window, list) and len(window) == 2 and all(isinstance(end, (int, float)) for end in window):
        calm = window[0] * len(times), window[1] * len(times) - 1
    machine = found.get("machine")
    return Curves(kinds, clips, calm, machine if isinstance(machine, dict) else {}, twice)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file; None where there is none, or something else in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _place(kind: str) -> int:
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
