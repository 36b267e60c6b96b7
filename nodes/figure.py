"""What a calibration shows: how much each kind changes over the run, and the schedule below it; as a picture, and as
an SVG for the page."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pab_core.broadcast import ScheduleTable
from pab_core.broadcast.whole_file import write_whole

from .lettering import font_for

COLOURS = {"spatial": "#4c9be8", "temporal": "#e8a33d", "cross": "#5fbf77", "mlp": "#c47be0"}
Curves = Mapping[str, Sequence[float]]  # kind -> change from step i to i + 1

_WIDTH, _TOP, _CHART, _ROW = 900, 40, 300, 26
_LEFT, _RIGHT = 96, 24
_GREY, _DARK = "#9aa4b2", "#1d232b"


def draw_figure(curves: Curves, table: ScheduleTable, title: str) -> Tensor:
    """An IMAGE [1, H, W, 3]: the curves on a scale of powers of ten, and under them the steps that compute."""
    kinds = table.kinds
    height = _TOP + _CHART + 44 + _ROW * len(kinds) + 12
    picture = Image.new("RGB", (_WIDTH, height), _DARK)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    draw.text((_LEFT, 12), title, "white", font_for(title, 16))
    low, high = _span(curves)

    def x_of(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / table.steps

    def y_of(value: float) -> float:
        return _TOP + _CHART * (high - math.log10(max(value, 10**low))) / (high - low)

    marks = (digit * 10.0**power for power in range(math.floor(low), math.ceil(high)) for digit in (1, 2, 5))
    for mark in marks:
        if low <= math.log10(mark) <= high:
            draw.line([(_LEFT, y_of(mark)), (_WIDTH - _RIGHT, y_of(mark))], "#39424e")
            draw.text((_LEFT - 8, y_of(mark) - 8), f"{mark:g}", _GREY, small, anchor="ra")
    for number, (kind, values) in enumerate(curves.items()):
        points = [(x_of(i + 1.5), y_of(value)) for i, value in enumerate(values)]
        draw.line(points, COLOURS[kind], 3, joint="curve")
        draw.text((_WIDTH - 130, _TOP + 6 + 20 * number), kind, COLOURS[kind], font)
    draw.text((_LEFT, _TOP + _CHART + 6), "step", _GREY, small)
    for step in range(0, table.steps, max(1, table.steps // 10)):
        draw.text((x_of(step + 0.5), _TOP + _CHART + 22), str(step), _GREY, small, anchor="ma")
    for number, kind in enumerate(kinds):
        top = _TOP + _CHART + 44 + _ROW * number
        draw.text((8, top + 2), kind, COLOURS[kind], font)
        for step, reused in enumerate(table.reused_row(kind)):
            filled = top + (_ROW - 6) * reused
            draw.rectangle([x_of(step) + 1, top, x_of(step + 1) - 1, top + _ROW - 6], "#2b333d")
            if reused < 1:
                draw.rectangle([x_of(step) + 1, filled, x_of(step + 1) - 1, top + _ROW - 6], COLOURS[kind])
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, height, _WIDTH, 3)
    return pixels.float() / 255


def curves_svg(
    curves: Curves, window: tuple[float, float] | None, width: int, left: int, right: int, source: str
) -> str:
    """The curves as an <svg> as wide as the schedule's, its steps under each other; the window is shaded.

    window: its ends as shares of the run; left, right: margins beside the steps, in units of the view box; source: what
    the curves were recorded on, shown where the pointer rests.
    """
    low, high = _span(curves)
    high_of, wide = 64, width - left - right
    words = escape(f"Change from step to step, {source}", quote=True)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="pab-curves" viewBox="0 0 {width} {high_of + 4}" '
             f'role="img" aria-label="{words}" font-size="12" fill="none"><title>{words}</title>']  # fmt: skip
    if window is not None:
        start, stop = (left + wide * end for end in window)
        parts.append(
            f'<rect class="pab-window" x="{start:.1f}" y="0" width="{max(stop - start, 0):.1f}" height="{high_of}" '
            'fill="var(--pab-window, #d9822b)" fill-opacity=".18"/>'
        )
    for kind, values in curves.items():
        count = len(values) + 1
        places = (
            f"{left + wide * (i + 1.5) / count:.1f},"
            f"{2 + (high_of - 4) * (high - math.log10(max(value, 10**low))) / (high - low):.1f}"
            for i, value in enumerate(values)
        )
        parts.append(
            f'<polyline data-kind="{kind}" points="{" ".join(places)}" stroke="{COLOURS[kind]}" stroke-width="1.5"/>'
        )
    parts.append('<text x="0" y="14" fill="currentColor">change</text></svg>')
    return "".join(parts)


def _span(curves: Curves) -> tuple[float, float]:
    """Powers of ten between which all values above zero lie."""
    values = [value for row in curves.values() for value in row if value > 0 and math.isfinite(value)] or [0.1, 1]
    low, high = math.log10(min(values)), math.log10(max(values))
    return (low - 0.05, high + 0.05) if high - low > 1e-3 else (low - 0.5, high + 0.5)


def save_curves(curves: Curves, path: Path) -> None:
    """PabError where the file cannot be written."""
    write_whole(path, json.dumps({kind: list(row) for kind, row in curves.items()}) + "\n")


def load_curves(path: Path) -> Curves | None:
    """None where there is no such file, or another thing in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        curves = {kind: [float(value) for value in found[kind]] for kind in COLOURS if kind in found}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = all(len(row) > 1 and all(math.isfinite(value) for value in row) for row in curves.values())
    return curves if curves and whole else None
