"""What `pab bench`, `pab calibrate` and the studio's own measurement left behind of a model, as Explore finds it.

Where there is nothing, what comes with the package: PACKAGED/MODEL/quality.json, changes.json and proposal.json, files
as those commands write them. Files of other kinds are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..broadcast.calibrated import own_folder
from ..models.registry import ModelSpec

PACKAGED = Path(__file__).resolve().parent.parent / "demo" / "measured"
_KINDS = ("spatial", "temporal", "cross", "mlp")


@dataclass(frozen=True)
class Curves:
    """How much each kind's update changes at each step from the step before, of the mean absolute value; index 0 is
    step 1. `calm`: the first and the last step of the window that was proposed."""

    kinds: dict[str, tuple[float, ...]]
    clips: int
    calm: tuple[float, float] | None
    packaged: bool = False


@dataclass(frozen=True)
class Point:
    """A policy of a `pab bench quality`. distance: mean of the metric, and its standard error where there is one."""

    policy: str
    speedup: float
    distance: float
    error: float

    @property
    def is_rival(self) -> bool:
        """Plainly fewer steps."""
        return self.policy.startswith("steps")


@dataclass(frozen=True)
class Quality:
    metric: str  # "lpips", or "psnr" where that was not measured
    points: tuple[Point, ...]
    clips: int
    machine: str
    packaged: bool = False  # measured elsewhere


def find_speed(folders: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """What `pab bench speed --json` printed of a model."""
    return [
        found for _, found in _reports(folders) if found.get("model") == name and isinstance(found.get("runs"), list)
    ]


def find_quality(folders: Sequence[Path], name: str) -> Quality | None:
    """The newest that `pab bench quality` or the studio wrote of a model, else the package's."""
    best: tuple[float, Quality] | None = None
    for path, found in _reports(folders):
        read = _read_quality(found, name)
        moment = _moment(path)
        if read is not None and (best is None or moment > best[0]):
            best = moment, read
    if best is not None:
        return best[1]
    packaged = _read_quality(_read(PACKAGED / name / "quality.json") or {}, name)
    return None if packaged is None else replace(packaged, packaged=True)


def find_curves(spec: ModelSpec, folders: Sequence[Path] = ()) -> Curves | None:
    """The newest recording of a model by `pab calibrate`, where that keeps them or in one of the folders; else the
    package's."""
    usual = own_folder().glob(f"{spec.family}-{spec.depth}*.calibration/changes.json")
    others = (path for folder in folders if folder.is_dir() for path in folder.glob("*/changes.json"))
    packaged = PACKAGED / spec.name / "changes.json"
    for path in [*sorted({*usual, *others}, key=_moment, reverse=True), packaged]:
        found = _read(path)
        if found is not None and found.get("model") == spec.name:
            curves = _read_curves(found, _read(path.with_name("proposal.json")) or {})
            if curves is not None:
                return replace(curves, packaged=path == packaged)
    return None


def _reports(folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in folders:
        for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]) if folder.is_dir() else []:
            found = _read(path)
            if found is not None:
                yield path, found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _moment(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read_curves(found: dict[str, Any], proposal: dict[str, Any]) -> Curves | None:
    rows: dict[str, list[list[float]]] = {}
    try:
        for branch, row in found["relative"].items():
            rows.setdefault(branch.split("/")[0], []).append([float(value) for value in row])
        kinds = {
            kind: tuple(sum(column) / len(found_rows) for column in zip(*found_rows, strict=True))
            for kind, found_rows in sorted(rows.items(), key=lambda entry: _place(entry[0]))
        }
        clips, steps = len(found["signal"]), len(found["timesteps"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    values = [value for row in kinds.values() for value in row]
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    window = proposal.get("window")
    calm = None
    if isinstance(window, list) and len(window) == 2 and all(isinstance(end, (int, float)) for end in window):
        calm = window[0] * steps, window[1] * steps - 1
    return Curves(kinds, clips, calm)


def _read_quality(found: dict[str, Any], name: str) -> Quality | None:
    """None where it is no report of the model of that name."""
    header, rows = found.get("header"), found.get("policies")
    if not isinstance(header, dict) or header.get("model") != name or not isinstance(rows, list):
        return None

    def points(metric: str) -> list[Point]:
        made = []
        for row in rows:
            told = row.get(metric) if isinstance(row, dict) else None
            if not isinstance(told, dict):
                continue
            mean, speedup, error = _number(told.get("mean")), _number(row.get("speedup")), _number(told.get("error"))
            if mean is not None and speedup is not None:
                made.append(Point(str(row.get("policy")), speedup, mean, error or 0.0))
        return made

    for metric in ("lpips", "psnr"):
        if read := points(metric):
            machine = header.get("machine")
            parts = [f"{key} {value}" for key, value in machine.items()] if isinstance(machine, dict) else []
            return Quality(metric, tuple(read), int(_number(found.get("clips")) or 0), ", ".join(parts))
    return None


def _place(kind: str) -> int:
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
