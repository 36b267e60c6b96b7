"""The schedule table as a picture of characters, for terminals and for the node."""

from dataclasses import dataclass

from .policy import Policy
from .schedule import ScheduleTable

_LABEL = 10  # characters before the first step
_SHARE = 6  # characters after the last step
_TICK = 5  # steps between two numbers of an axis


@dataclass(frozen=True)
class Marks:
    """The characters of a picture, one for each cell's state."""

    computed: str = "█"
    reused: str = "░"
    partly: str = "▒"
    window: str = "─"


ASCII = Marks(computed="#", reused=".", partly="+", window="-")


def draw_schedule(table: ScheduleTable, policy: object = None, *, width: int = 80, marks: Marks | None = None) -> str:
    """Rows: the kinds; columns: the steps, in as many strips as the width asks for; at the end the share reused.

    Args:
        policy: where given, its window is drawn under the rows.
        width: characters a line, as far as possible.
        marks: the characters; ASCII for terminals that lack block characters.
    """
    marks = marks or Marks()
    room = max(width - _LABEL - _SHARE - 1, 2 * _TICK)
    cell = 2 if 2 * table.steps <= room else 1
    per_strip = room // cell if table.steps * cell <= room else room // cell // _TICK * _TICK
    lines: list[str] = []
    for start in range(0, table.steps, per_strip):
        steps = range(start, min(start + per_strip, table.steps))
        lines += [*_strip(table, policy, steps, cell, marks, last=steps.stop == table.steps), ""]
    return "\n".join([*lines, *_legend(table, policy, marks)])


def _strip(table: ScheduleTable, policy: object, steps: range, cell: int, marks: Marks, *, last: bool) -> list[str]:
    """The lines for a part of the steps."""
    lines = [_axis("step", [str(i) for i in range(table.steps)], steps, cell)]
    for kind in table.kinds:
        row = table.reused_row(kind)
        cells = "".join(_cell(row[i], marks) * cell for i in steps)
        share = f" {table.reused_share(kind):4.0%}" if last else ""
        lines.append(f"{kind:{_LABEL}}{cells}{share}")
    for label, inside in _windows(table, policy):
        cells = "".join((marks.window if inside[i] else " ") * cell for i in steps)
        lines.append(f"{label:{_LABEL}}{cells}".rstrip())
    lines.append(_axis("timestep", [f"{int(t)}" for t in table.timesteps], steps, cell))
    return lines


def _cell(share: float, marks: Marks) -> str:
    if share == 0:
        return marks.computed
    return marks.reused if share == 1 else marks.partly


def _axis(label: str, names: list[str], steps: range, cell: int) -> str:
    """Every fifth step's name, at its column; a name that would touch the one before is left out."""
    line = f"{label:{_LABEL}}"
    for i in steps:
        column = _LABEL + (i - steps.start) * cell
        if i % _TICK == 0 and (len(line) < column or i == steps.start):
            line = f"{line:{column}}{names[i]}"
    return line


def _windows(table: ScheduleTable, policy: object) -> list[tuple[str, list[bool]]]:
    """Label and steps of each window in which some kind of attention is broadcast; one line where they agree."""
    if not isinstance(policy, Policy):
        return []
    found: dict[str, list[bool]] = {}
    for kind in table.kinds:
        if kind != "mlp" and policy.range_of(kind) > 1:
            window = policy.window_of(kind)
            found[kind] = [(i, table.steps, t) in window for i, t in enumerate(table.timesteps)]
    if not found:
        return []
    if all(inside == next(iter(found.values())) for inside in found.values()):
        return [("window", next(iter(found.values())))]
    return [(f"w.{kind}"[: _LABEL - 1], inside) for kind, inside in found.items()]


def _legend(table: ScheduleTable, policy: object, marks: Marks) -> list[str]:
    parts = [f"{marks.computed} computed", f"{marks.reused} reused"]
    if any(0 < share < 1 for kind in table.kinds for share in table.reused_row(kind)):
        parts.append(f"{marks.partly} reused in some blocks")
    if _windows(table, policy):
        parts.append(f"{marks.window} broadcast window")
    parts.append("% = share reused")
    return ["   ".join(parts)]
