"""Colours and light of the demo scenes: one row per floor and per sky, in the order of FLOORS and SKIES.

Colours are sRGB in 0..1 here and linear in the tables that `palette` makes of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pab_core.demo.captions import COLOURS, FLOORS, SKIES

Rgb = tuple[float, float, float]
PATTERNS = ("plain", "checks", "bands", "grass", "ripples", "planks")


class Floor(NamedTuple):
    """A floor: a pattern that blends from colour `low` to colour `high`."""

    pattern: str
    low: Rgb
    high: Rgb


class Sky(NamedTuple):
    """A sky and the light under it; `sun` and `ambient` are linear intensities."""

    zenith: Rgb
    horizon: Rgb
    hills: Rgb
    cloud: Rgb
    cloud_amount: float
    glow: Rgb
    stars: float
    sun: Rgb
    ambient: Rgb


FLOOR_ROWS = {
    "green": Floor("plain", (0.24, 0.50, 0.27), (0.27, 0.54, 0.30)),
    "blue": Floor("plain", (0.26, 0.42, 0.66), (0.29, 0.46, 0.70)),
    "grey": Floor("plain", (0.52, 0.52, 0.54), (0.56, 0.56, 0.58)),
    "red": Floor("plain", (0.60, 0.25, 0.24), (0.64, 0.28, 0.27)),
    "brown": Floor("plain", (0.43, 0.30, 0.21), (0.47, 0.33, 0.24)),
    "yellow": Floor("plain", (0.80, 0.70, 0.32), (0.84, 0.74, 0.35)),
    "checkerboard": Floor("checks", (0.26, 0.27, 0.30), (0.80, 0.80, 0.78)),
    "stripes": Floor("bands", (0.28, 0.50, 0.55), (0.84, 0.80, 0.70)),
    "grass": Floor("grass", (0.17, 0.42, 0.11), (0.46, 0.68, 0.22)),
    "sand": Floor("ripples", (0.72, 0.58, 0.40), (0.90, 0.79, 0.60)),
    "wood": Floor("planks", (0.40, 0.23, 0.13), (0.70, 0.47, 0.29)),
}
SKY_ROWS = {
    "day": Sky(
        zenith=(0.20, 0.48, 0.88),
        horizon=(0.78, 0.89, 0.97),
        hills=(0.46, 0.61, 0.68),
        cloud=(1.0, 1.0, 1.0),
        cloud_amount=0.85,
        glow=(0.0, 0.0, 0.0),
        stars=0.0,
        sun=(0.90, 0.87, 0.82),
        ambient=(0.32, 0.35, 0.39),
    ),
    "sunset": Sky(
        zenith=(0.38, 0.32, 0.58),
        horizon=(0.99, 0.68, 0.42),
        hills=(0.48, 0.30, 0.42),
        cloud=(0.98, 0.56, 0.50),
        cloud_amount=0.7,
        glow=(0.50, 0.34, 0.10),
        stars=0.0,
        sun=(0.86, 0.70, 0.54),
        ambient=(0.30, 0.29, 0.33),
    ),
    "night": Sky(
        zenith=(0.06, 0.09, 0.27),
        horizon=(0.26, 0.35, 0.56),
        hills=(0.12, 0.17, 0.33),
        cloud=(0.20, 0.26, 0.44),
        cloud_amount=0.0,
        glow=(0.02, 0.03, 0.06),
        stars=1.0,
        sun=(0.70, 0.71, 0.75),
        ambient=(0.25, 0.27, 0.33),
    ),
}


def linear(rgb: Tensor) -> Tensor:
    """sRGB in 0..1 to linear light (a plain power of 2.2, undone by the renderer's last step)."""
    return rgb**2.2


def palette(device: torch.device) -> dict[str, Tensor]:
    """Tables to index by scene: objects [colour, 3], floor_* [floor, 3], floor_patterns [floor, 6], sky_* [sky, 3]."""
    floors = [FLOOR_ROWS[name] for name in FLOORS]
    skies = [SKY_ROWS[name] for name in SKIES]

    def table(rows: list[Rgb]) -> Tensor:
        return torch.tensor(rows, device=device)

    tables = {
        "object": linear(table(list(COLOURS.values()))),
        "floor_low": linear(table([floor.low for floor in floors])),
        "floor_high": linear(table([floor.high for floor in floors])),
        "floor_patterns": torch.tensor(
            [[float(floor.pattern == name) for name in PATTERNS] for floor in floors], device=device
        ),
        "sun": table([sky.sun for sky in skies]),
        "ambient": table([sky.ambient for sky in skies]),
        "cloud_amount": torch.tensor([sky.cloud_amount for sky in skies], device=device),
        "stars": torch.tensor([sky.stars for sky in skies], device=device),
    }
    for name in ("zenith", "horizon", "hills", "cloud", "glow"):
        tables[name] = linear(table([getattr(sky, name) for sky in skies]))
    return tables
