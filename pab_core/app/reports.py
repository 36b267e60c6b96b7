"""What `pab bench`, `pab calibrate` and the studio's own measurement left behind of a model, as Explore finds it; and
what comes with the package. Files of other kinds are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..broadcast.calibrated import own_folder
from ..evaluate.packaged import Curves, packaged_file, read_curves, read_object
from ..models.registry import ModelSpec


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
    machine: dict[str, Any]  # as describe_machine has it


def find_speed(folders: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """What `pab bench speed --json` printed of a model."""
    return [
        found for _, found in _reports(folders) if found.get("model") == name and isinstance(found.get("runs"), list)
    ]


def find_quality(folders: Sequence[Path], name: str) -> Quality | None:
    """The newest that `pab bench quality` or the studio wrote of a model."""
    best: tuple[float, Quality] | None = None
    for path, found in _reports(folders):
        read = _read_quality(found, name)
        moment = _moment(path)
        if read is not None and (best is None or moment > best[0]):
            best = moment, read
    return None if best is None else best[1]


def packaged_quality(name: str) -> Quality | None:
    """What comes with the package of a model that it has inside."""
    return _read_quality(read_object(packaged_file(name, "quality.json")) or {}, name)


def find_curves(spec: ModelSpec, folders: Sequence[Path] = ()) -> Curves | None:
    """The newest recording of a model by `pab calibrate`, where that keeps them or in one of the folders."""
    usual = own_folder().glob(f"{spec.family}-{spec.depth}*.calibration/changes.json")
    others = (path for folder in folders if folder.is_dir() for path in folder.glob("*/changes.json"))
    for path in sorted({*usual, *others}, key=_moment, reverse=True):
        if (curves := read_curves(path, spec.name)) is not None:
            return curves
    return None


def _reports(folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in folders:
        for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]) if folder.is_dir() else []:
            found = read_object(path)
            if found is not None:
                yield path, found


def _moment(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read_quality(found: dict[str, Any], name: str) -> Quality | None:
    """None where it is no report of the model of that name."""
    header, rows = found.get("header"), found.get("policies")
    if not isinstance(header, dict) or header.get("model") != name or not isinstance(rows, list):
        return None

    def points(metric: str) -> list[Point]:
        made = []
        for row in rows:
            told = row.get(metric) if isinstance(row, dict) else None
            if not isinstance(told, dict) or "plain" in row:  # made otherwise: no policy to choose
                continue
            mean, speedup, error = _number(told.get("mean")), _number(row.get("speedup")), _number(told.get("error"))
            if mean is not None and speedup is not None:
                made.append(Point(str(row.get("policy")), speedup, mean, error or 0.0))
        return made

    for metric in ("lpips", "psnr"):
        if read := points(metric):
            machine = header.get("machine")
            clips = int(_number(found.get("clips")) or 0)
            return Quality(metric, tuple(read), clips, machine if isinstance(machine, dict) else {})
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
