"""The schedule table drawn with characters."""

from __future__ import annotations

import pytest

from pab_core.broadcast import Policy, Window, find_policy, resolve
from pab_core.broadcast.picture import ASCII, draw_schedule
from pab_core.models.registry import MODELS
from pab_core.models.stdit3 import stdit3_branches
from pab_core.settings import schedule_for


@pytest.mark.parametrize("width", [20, 50, 80, 200])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 159])
def test_the_picture_shows_every_step_at_every_width(width: int, steps: int):
    spec = MODELS["demo"]
    policy = find_policy("pab246", spec.family, spec.depth)
    table = schedule_for(spec, policy, None, steps)
    lines = draw_schedule(table, policy, width=width).splitlines()
    assert all(len(line) <= max(width, 27) for line in lines[:-1])
    for kind in table.kinds:
        rows = [line[10:] for line in lines if line.startswith(kind)]
        cells = "".join(row.split()[0] for row in rows)
        cell = len(cells) // steps
        assert cell in (1, 2)
        states = {0.0: "█", 1.0: "░"}
        assert cells == "".join(states.get(share, "▒") * cell for share in table.reused_row(kind))
        assert rows[-1].split()[-1] == f"{table.reused_share(kind):.0%}"


def test_the_picture_marks_the_window_and_the_axes():
    spec = MODELS["open-sora"]
    policy = find_policy("pab246", spec.family, spec.depth)
    table = schedule_for(spec, policy)
    lines = {line.split()[0]: line[10:] for line in draw_schedule(table, policy, width=80).splitlines() if line}
    assert lines["window"] == " " * 18 + "─" * 34
    assert lines["step"].split() == ["0", "5", "10", "15", "20", "25"]
    assert lines["timestep"].split() == [str(int(t)) for t in table.timesteps[::5]]
    assert lines["step"].index("10") == lines["timestep"].index("906") == 20


def test_the_picture_shows_windows_that_differ():
    policy = Policy("two", 2, 3, 1, Window(0.5, 1.0), windows=(("temporal", Window(0.1, 0.4)),))
    table = resolve(policy, [1000.0 - 100 * i for i in range(10)], stdit3_branches(1))
    picture = draw_schedule(table, policy, width=40, marks=ASCII)
    assert picture.isascii()
    assert "w.spatial           ----------" in picture
    assert "w.tempora   ------" in picture
