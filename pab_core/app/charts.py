"""Two charts as SVG, in the colours of the page: the change of updates over the steps, and speed against quality.

Text takes the page's colour (currentColor), lines differ by colour and by dashes, so that they are told apart without
seeing colours; `desc` says the figures to screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from ..evaluate.packaged import Curves
from ..evaluate.quality_report import FAR_APART
from .reports import Quality
from .texts import text

_WIDE, _HIGH = 440, 290  # of the view box, whose letters are 12 units high
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 68
_LINES = (
    ("var(--pab-computed, #3a6ea5)", ""),
    ("var(--pab-window, #d9822b)", "7 3"),
    ("#4f9d69", "2 3"),
    ("#9b6bb3", "9 3 2 3"),
)
Scale = Callable[[float], float]


def draw_curves(curves: Curves, language: str) -> str:
    """The U: one line a kind of attention; the window that was proposed stands behind."""
    steps = len(next(iter(curves.kinds.values())))
    values = [max(value, 1e-6) for row in curves.kinds.values() for value in row]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    x = _scale(1, max(steps, 2), _LEFT, _WIDE - _RIGHT)
    y = _scale(low, high, _HIGH - _BOTTOM, _TOP)
    parts = []
    if curves.calm is not None:
        start, stop = (min(max(end, 1), steps) for end in curves.calm)
        parts.append(
            f'<rect x="{x(start):.1f}" y="{_TOP}" width="{max(x(stop) - x(start), 1):.1f}" '
            f'height="{_HIGH - _TOP - _BOTTOM}" fill="var(--pab-window, #d9822b)" fill-opacity=".12"/>'
        )
    for power in range(low, high + 1):
        parts.append(_row(y(power), _power(power)))
    for step in _ticks(1, steps):
        parts.append(_column(x(step), str(step)))
    words, legend = [], []
    for (kind, row), (colour, dashes) in zip(curves.kinds.items(), _LINES, strict=False):
        points = " ".join(
            f"{x(step):.1f},{y(math.log10(max(value, 1e-6))):.1f}" for step, value in enumerate(row, start=1)
        )
        parts.append(_line(points, colour, dashes))
        name = text("mlp_row" if kind == "mlp" else kind, language)
        legend.append((name, colour, dashes))
        words.append(f"{name}: {row[0]:.3g} - {min(row):.3g} - {row[-1]:.3g}")
    parts.append(_legend(legend))
    return _svg(text("u_title", language), "; ".join(words), text("step", language), parts)


def draw_quality(quality: Quality, language: str) -> str:
    """Distance from the video without reuse against the speed-up: policies as squares, fewer steps as a dashed line."""
    points = quality.points
    slow, fast = min(1.0, *(p.speedup * 0.98 for p in points)), max(1.1, *(p.speedup * 1.05 for p in points))
    x, (y, rows) = _scale(slow, fast, _LEFT, _WIDE - 56), _heights(quality)
    parts = [_row(y(value), words) for value, words in rows]
    parts += [_column(x(value), f"{value:.3g}x") for value in _nice(slow, fast)]
    fewer = sorted((point for point in points if point.is_rival), key=lambda point: point.speedup)
    if fewer:
        parts.append(_line(" ".join(f"{x(p.speedup):.1f},{y(p.distance):.1f}" for p in fewer), *_LINES[1]))
    # Of fewer steps the number does: what the line is stands below. No mark is covered by a name.
    names = [point.policy.removeprefix("steps") if point.is_rival else point.policy for point in points]
    parts += _names([(name, x(p.speedup), y(p.distance)) for name, p in zip(names, points, strict=True)])
    for point in points:
        across, up = x(point.speedup), y(point.distance)
        colour = _LINES[1 if point.is_rival else 0][0]
        if point.error:
            parts.append(
                f'<path d="M{across:.1f} {y(point.distance - point.error):.1f}V{y(point.distance + point.error):.1f}" '
                f'stroke="{colour}" stroke-opacity=".6"/>'
            )
        mark = (
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{colour}"/>'
            if point.is_rival
            else f'<rect x="{across - 4:.1f}" y="{up - 4:.1f}" width="8" height="8" fill="{colour}"/>'
        )
        parts.append(mark)
    legend = [(text("policies_short", language), _LINES[0][0], None), (text("fewer_steps", language), *_LINES[1])]
    parts.append(_legend(legend if fewer else legend[:1]))
    words = "; ".join(f"{p.policy}: {p.speedup:.2f}x, {quality.metric.upper()} {p.distance:.3g}" for p in points)
    title = text("quality_title", language, metric=text(f"{quality.metric}_title", language))
    return _svg(title, words, text("speed_column", language), parts)


def _heights(quality: Quality) -> tuple[Scale, list[tuple[float, str]]]:
    """Where a distance stands, and those that lines are drawn for, in words, too; by powers of ten where they lie far
    apart, with 0 (of a policy that reuses nothing) a line below."""
    bottom, distances = _HIGH - _BOTTOM, [point.distance for point in quality.points]
    least = min((distance for distance in distances if distance > 0), default=0.0)
    if quality.metric == "lpips" and 0 < FAR_APART * least < max(distances):
        low, high = math.floor(math.log10(least)), math.ceil(math.log10(max(distances)))
        nothing = [(0.0, "0")] if min(distances) == 0 else []
        floor = low - len(nothing)
        by_power = _scale(floor, high, bottom, _TOP)
        rows = nothing + [(10.0**power, _power(power)) for power in range(low, high + 1)]
        return lambda value: by_power(math.log10(max(value, 10.0**floor))), rows
    bottoms, tops = ([p.distance + side * p.error for p in quality.points] for side in (-1, 1))
    floor = 0.0 if quality.metric == "lpips" else min(bottoms) - 1
    ceiling = max(max(tops) * 1.08, floor + 1e-3)
    return _scale(floor, ceiling, bottom, _TOP), [(value, f"{value:.3g}") for value in _nice(floor, ceiling)]


def _names(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """A name beside each (name, x, y), where it covers no other name and no mark, if there is such a place."""
    marks = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in points]
    taken: list[tuple[float, float, float, float]] = []
    parts = []
    for name, x, y in points:
        wide = 7.2 * len(name)
        places = [
            (left, up, left + wide, up + 11)
            for up in (y - 16, y + 5, y - 5, y - 28, y + 17, y - 40, y + 29)
            for left in (x + 8, x - 8 - wide, x - wide / 2)
            if left >= _LEFT and left + wide <= _WIDE and up >= 0 and up + 11 <= _HIGH - _BOTTOM + 4
        ] or [(x + 8, y - 16, x + 8 + wide, y - 5)]
        # A mark that is covered is worse than letters that are; of places as good, the nearest.
        covered = lambda place: sum(_overlap(place, other) for other in (*marks, *marks, *taken))  # noqa: E731
        best = min(places, key=lambda place: covered(place) + 0.2 * abs(place[1] + 5.5 - y))
        taken.append(best)
        # Its letters push the lines behind them aside.
        aside = 'stroke="var(--block-background-fill, #fff)" stroke-width="3" paint-order="stroke"'
        where = f'x="{best[0]:.1f}" y="{best[1] + 10:.1f}"'
        parts.append(f'<text class="pab-name" {where} font-size="11" {aside}>{escape(name)}</text>')
    return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _svg(title: str, words: str, below: str, parts: Sequence[str]) -> str:
    label = escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pab-chart" viewBox="0 0 {_WIDE} {_HIGH}" '
        f'role="img" aria-label="{escape(f"{title}: {words}", quote=True)}" font-size="12" fill="currentColor">'
        f"<title>{label}</title><desc>{escape(words)}</desc>{''.join(parts)}"
        f'<text x="{(_LEFT + _WIDE - _RIGHT) / 2}" y="{_HIGH - _BOTTOM + 35}" text-anchor="middle" '
        f'opacity=".75">{escape(below)}</text></svg>'
    )


def _scale(low: float, high: float, first: float, last: float) -> Scale:
    return lambda value: first + (value - low) / (high - low) * (last - first)


def _row(y: float, words: str) -> str:
    return (
        f'<path d="M{_LEFT} {y:.1f}H{_WIDE - _RIGHT}" stroke="currentColor" stroke-opacity=".15"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" opacity=".75">{escape(words)}</text>'
    )


def _column(x: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{_HIGH - _BOTTOM + 17}" text-anchor="middle" opacity=".75">{escape(words)}</text>'


def _line(points: str, colour: str, dashes: str) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'


def _legend(entries: Sequence[tuple[str, str, str | None]]) -> str:
    """Names under the chart; dashes None: of squares and not of a line."""
    parts, x, y = [], float(_LEFT), _HIGH - 10
    for name, colour, dashes in entries:
        if dashes is None:
            parts.append(f'<rect x="{x + 7:.0f}" y="{y - 4}" width="8" height="8" fill="{colour}"/>')
        else:
            parts.append(_line(f"{x:.0f},{y} {x + 22:.0f},{y}", colour, dashes))
        parts.append(f'<text x="{x + 28:.0f}" y="{y + 4}">{escape(name)}</text>')
        x += 46 + 8.5 * sum(2 if ord(letter) > 0x2E7F else 1 for letter in name)
    return "".join(parts)


def _power(power: int) -> str:
    """Of ten: 0.1, 0.01, 0.001, 10⁻⁴."""
    return f"{10.0**power:g}" if power >= -3 else "10⁻" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(-power))


def _ticks(first: int, last: int) -> list[int]:
    apart = max(1, 5 * round((last - first) / 30)) if last - first > 10 else 1
    return [step for step in range(first, last + 1) if step == first or step % apart == 0]


def _nice(low: float, high: float) -> list[float]:
    """Four to eight round values from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough)
    first = math.ceil(low / apart - 1e-9)
    return [round(n * apart, 10) for n in range(first, math.floor(high / apart + 1e-9) + 1)]
