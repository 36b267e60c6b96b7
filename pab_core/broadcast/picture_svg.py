"""The schedule table as an SVG, for the app and for the node: kinds x steps, filled as far as a cell is computed.

Text takes the colour of the page (currentColor), so the picture fits a light and a dark one. The fill and the line of
the window follow the CSS variables --pab-computed and --pab-window where the page sets them.
"""

from collections.abc import Mapping
from html import escape

from .policy import Policy
from .schedule import ScheduleTable

TEXTS: Mapping[str, str] = {
    "spatial": "spatial",
    "temporal": "temporal",
    "cross": "cross",
    "mlp": "MLP",
    "computed": "computed",
    "reused": "reused",
    "window": "window of reuse",
    "step": "step",
    "title": "Schedule of the run",
}
_LABEL = 76  # width of the kinds' names, in units of the view box, as all that follows
_SHARE = 46  # width of the shares
_ROW = 30  # from one row to the next
_CELL = 18  # height of a cell
_AXIS = 24  # height of the line of step numbers
_LEGEND = 30
_APART = 30  # between two step numbers
_GAPPED = 5.0  # a cell this wide is parted from the next by a gap; narrower ones stand side by side
_FILL = "var(--pab-computed, #3a6ea5)"
_LINE = "var(--pab-window, #d9822b)"


def draw_schedule_svg(
    table: ScheduleTable,
    policy: object = None,
    *,
    width: int = 560,
    texts: Mapping[str, str] | None = None,
    font: str = "inherit",
) -> str:
    """An <svg> element that grows with the place it is given; `title` and `desc` tell it to screen readers.

    Args:
        policy: where it is one with ranges, the window of each kind of attention is drawn as a line under its row.
        width: of the view box, whose letters are 12 units high: the smaller, the larger they appear.
        texts: words that stand for those of TEXTS, such as their translations.
        font: of the letters; a file of its own inherits none.
    """
    words = {**TEXTS, **(texts or {})}
    kinds = table.kinds
    height = _AXIS + _ROW * len(kinds) + _LEGEND
    title = escape(words["title"])
    said = "; ".join(f"{words[kind]}: {table.reused_share(kind):.0%} {words['reused']}" for kind in kinds)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pab-schedule" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}: {escape(said)}" font-family="{font}" font-size="12" fill="currentColor">',
        f"<title>{title}</title><desc>{escape(said)}</desc>",
        *_axis(table.steps, width, words["step"]),
    ]
    for row, kind in enumerate(kinds):
        top = _AXIS + row * _ROW
        share = table.reused_share(kind)
        parts.append(f'<g data-kind="{kind}">')
        parts.append(f'<text x="0" y="{top + 13}">{escape(words[kind])}</text>')
        parts += _cells(table.reused_row(kind), top, width)
        if isinstance(policy, Policy) and kind != "mlp" and policy.range_of(kind) > 1:
            window = policy.window_of(kind)
            inside = [(i, table.steps, t) in window for i, t in enumerate(table.timesteps)]
            parts += _window(inside, top + _CELL + 5, width)
        parts.append(f'<text x="{width}" y="{top + 13}" text-anchor="end">{share:.0%}</text></g>')
    parts += _legend(height - 12, words, window="<line" in "".join(parts))
    return "".join([*parts, "</svg>"])


def _left(step: float, steps: int, width: int) -> float:
    return _LABEL + (width - _LABEL - _SHARE) * step / steps


def _axis(steps: int, width: int, word: str) -> list[str]:
    """Numbers of steps, as many as have room."""
    cell = _left(1, steps, width) - _left(0, steps, width)
    every = next(n for n in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000) if n * cell >= _APART or n == 1000)
    found = [f'<text x="0" y="13" opacity=".65">{escape(word)}</text>']
    for i in range(0, steps, every):
        middle = _left(i + 0.5, steps, width)
        found.append(f'<text x="{middle:.1f}" y="13" text-anchor="middle" opacity=".65">{i}</text>')
    return found


def _cells(reused: list[float], top: float, width: int) -> list[str]:
    """Outlines of all cells, and in each a fill from below as high as the share that is computed."""
    steps = len(reused)
    cell = _left(1, steps, width) - _left(0, steps, width)
    gap = 2 if cell >= _GAPPED else 0
    found = []
    start = 0
    for i in range(1, steps + 1):
        # Cells without a gap are drawn as one, as far as they are alike.
        if i < steps and not gap and reused[i] == reused[start]:
            continue
        x, wide = _left(start, steps, width), _left(i, steps, width) - _left(start, steps, width) - gap
        computed = 1 - reused[start]
        if computed < 1:
            found.append(_rect(x, top, wide, _CELL, 'fill-opacity=".08" stroke="currentColor" stroke-opacity=".28"'))
        if computed > 0:
            high = _CELL * computed
            found.append(_rect(x, top + _CELL - high, wide, high, f'style="fill:{_FILL}"'))
        start = i
    return found


def _rect(x: float, y: float, width: float, height: float, more: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" rx="1.5" {more}/>'


def _window(inside: list[bool], y: float, width: int) -> list[str]:
    """A line under the steps in the window; it is one stretch, as windows are."""
    if not any(inside):
        return []
    steps = len(inside)
    first, stop = inside.index(True), steps - inside[::-1].index(True)
    x1, x2 = _left(first, steps, width), _left(stop, steps, width) - 2
    return [_line(x1, x2, y)]


def _line(x1: float, x2: float, y: float) -> str:
    return (
        f'<line class="pab-window" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:g}" y2="{y:g}" style="stroke:{_LINE}" '
        'stroke-width="3"/>'
    )


def _legend(y: float, words: Mapping[str, str], *, window: bool) -> list[str]:
    """Entries from the left, each as wide as its word takes."""
    found, x = ['<g class="pab-legend">'], float(_LABEL)
    outline = 'fill-opacity=".08" stroke="currentColor" stroke-opacity=".28"'
    entries = [("computed", f'style="fill:{_FILL}"'), ("reused", outline), *([("window", "")] if window else [])]
    for word, mark in entries:
        if mark:
            found.append(_rect(x, y - 10, 12, 12, mark))
        else:
            found.append(_line(x, x + 12, y - 4))
        found.append(f'<text x="{x + 18:.1f}" y="{y}" opacity=".8">{escape(words[word])}</text>')
        x += 18 + _text_width(words[word]) + 22
    return [*found, "</g>"]


def _text_width(text: str) -> float:
    """About what 12 units high letters take; Chinese ones are as wide as high."""
    return sum(12.0 if ord(letter) > 0x2E80 else 6.6 for letter in text)
