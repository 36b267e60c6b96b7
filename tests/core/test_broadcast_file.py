"""Schedules as files: what they say, what they are refused for, and that nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pab_core.broadcast import ScheduleTable, find_policy, resolve
from pab_core.broadcast.schedule_file import ScheduleFile, load_schedule, save_schedule, schedule_of
from pab_core.broadcast.whole_file import write_whole
from pab_core.errors import PabError
from pab_core.models.stdit3 import stdit3_branches
from pab_core.sampling import RectifiedFlow

BRANCHES = stdit3_branches(3)


def times(steps: int = 30) -> list[float]:
    return RectifiedFlow().timesteps(steps, 51, 480, 854).tolist()


def content(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "pab_schedule": 1,
        "name": "mine",
        "model": {"family": "stdit3", "depth": 3},
        "rules": list(rules),
        **more,
    }


def loaded(tmp_path: Path, value: Any) -> ScheduleFile:
    path = tmp_path / "schedule.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return load_schedule(path)


def window(start: float, stop: float, every: float, **more: Any) -> dict[str, Any]:
    return {"start": start, "stop": stop, "range": every, **more}


@pytest.mark.parametrize("name", ["off", "pab246", "pab579", "tgate", "delta-dit"])
@pytest.mark.parametrize("steps", [10, 30])
def test_a_table_survives_its_file(tmp_path: Path, name: str, steps: int):
    table = resolve(find_policy(name, "stdit3", 3), times(steps), BRANCHES)
    path = save_schedule(schedule_of(table, "stdit3", 3, note="from a test"), tmp_path / "a.json")
    again = load_schedule(path)
    assert again.name == name
    assert again.note == "from a test"
    assert dict(resolve(again, times(steps), BRANCHES).source) == dict(table.source)
    assert len(path.read_text(encoding="utf-8")) < 20_000
    assert load_schedule(save_schedule(again, tmp_path / "b.json")) == again


def test_windows_by_hand(tmp_path: Path):
    schedule = loaded(
        tmp_path,
        content(
            {"kinds": ["spatial", "temporal"], "windows": [window(0.3, 0.6, 2), window(0.6, 1, 3)]},
            {"kinds": ["cross"], "streams": ["spatial"], "windows": [window(0.3, 0.6, 3, count_from="window")]},
            {"kinds": ["spatial"], "blocks": [2], "windows": [window(0.5, 1, 9)]},
        ),
    )
    table = resolve(schedule, times(10), BRANCHES)

    def row(kind: str, stream: str, block: int) -> tuple[int, ...]:
        (found,) = (b for b in BRANCHES if (b.kind, b.stream, b.block) == (kind, stream, block))
        return table.source[found]

    assert row("temporal", "temporal", 2) == (0, 1, 2, 2, 4, 4, 6, 6, 6, 9)
    assert row("spatial", "spatial", 0) == row("temporal", "temporal", 0)
    assert row("spatial", "spatial", 2) == (0, 1, 2, 3, 4, 4, 4, 4, 4, 9)  # the last rule holds
    assert row("cross", "spatial", 1) == (0, 1, 2, 3, 3, 3, 6, 7, 8, 9)
    assert row("cross", "temporal", 1) == row("mlp", "spatial", 1) == tuple(range(10))
    # The same fractions of a longer run.
    longer = resolve(schedule, times(20), BRANCHES).reused_row("temporal")
    assert [bool(share) for share in longer[:8]] == [False] * 7 + [True]


def test_pab246_as_windows_is_pab246(tmp_path: Path):
    attention = {"spatial": 2, "temporal": 4, "cross": 6}
    rules = [{"kinds": [kind], "windows": [window(0.3, 26 / 30, n)]} for kind, n in attention.items()]
    ours = resolve(loaded(tmp_path, content(*rules)), times(), BRANCHES)
    pab = resolve(find_policy("pab246", "stdit3", 3), times(), BRANCHES)
    assert all(ours.source[b] == pab.source[b] for b in BRANCHES if b.kind != "mlp")


def test_neighbours_reused_together_become_one(tmp_path: Path):
    rule = {"kinds": ["spatial", "temporal", "cross", "mlp"], "blocks": [1], "windows": [window(0.2, 1, 2)]}
    tables: list[ScheduleTable] = [
        resolve(loaded(tmp_path, content(rule, merge=merge)), times(), BRANCHES) for merge in (False, True)
    ]
    assert tables[0].groups == ()
    assert tables[1].groups == (tuple(b for b in BRANCHES if b.block == 1),)
    assert dict(tables[0].source) == dict(tables[1].source)


def test_a_window_that_holds_no_step_may_be_allowed(tmp_path: Path):
    rule = {"kinds": ["cross"], "windows": [window(0.31, 0.33, 2)]}
    with pytest.raises(PabError, match=r"0.31:0.33 holds none of the run's 10 steps"):
        resolve(loaded(tmp_path, content(rule)), times(10), BRANCHES)
    allowed = loaded(tmp_path, content(rule, allow_empty_windows=True))
    assert resolve(allowed, times(10), BRANCHES).reused_share() == 0


def test_a_schedule_does_not_fit_every_run(tmp_path: Path):
    by_step = loaded(tmp_path, content({"kinds": ["cross"], "source": [0, 0, 2]}, run_steps=3))
    assert resolve(by_step, [900.0, 500.0, 100.0], BRANCHES).reused_row("cross") == [0, 1, 0]
    with pytest.raises(PabError, match="written for 3 calls of the model, and this run makes 30"):
        resolve(by_step, times(), BRANCHES)
    long = loaded(tmp_path, content({"kinds": ["cross", "mlp"], "windows": [window(0.1, 0.9, 40)]}))
    with pytest.raises(PabError, match=r"cross and mlp broadcast range 40 is longer than the run.*30 times"):
        resolve(long, times(), BRANCHES)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "no schedule file"),
        ("[" * 100_000, "is not JSON"),
        ({"rules": []}, "no schedule file"),
        (content() | {"pab_schedule": 2}, "of version 2, and this program reads 1"),
        (content(more=1), "more: Extra inputs"),
        (content({"kinds": ["time"], "windows": []}), "rules.0.kinds.0"),
        (content({"kinds": [], "windows": []}), "rules.0.kinds"),
        (content({"kinds": ["cross"]}), "rules.0: a rule has either windows or a source"),
        (content({"kinds": ["cross"], "windows": [window(0.5, 0.2, 2)]}), "0.5:0.2 is reversed or empty"),
        (content({"kinds": ["cross"], "windows": [window(0.5, 1.2, 2)]}), "rules.0.windows.0.stop"),
        (content({"kinds": ["cross"], "windows": [window(0.5, 1, 0)]}), "rules.0.windows.0.range"),
        (content({"kinds": ["cross"], "windows": [window(0.5, 1, 2.5)]}), "rules.0.windows.0.range"),
        (
            content({"kinds": ["cross"], "windows": [window(0.2, 0.6, 2), window(0.5, 1, 3)]}),
            "follow one another and do not overlap",
        ),
        (content({"kinds": ["mlp"], "blocks": [3], "windows": []}), "rules.0: the model's blocks are 0 to 2"),
        (content({"kinds": ["mlp"], "source": [0, 0]}), "source is for 2 steps, and run_steps is None"),
        (content({"kinds": ["mlp"], "source": [0, 2, 2]}, run_steps=3), "at step 1 the source 2"),
        (content({"kinds": ["mlp"], "source": [0, 0, 1]}, run_steps=3), "at step 2 the source 1"),
        (content({"kinds": ["mlp"], "source": [0, 1, 7]}, run_steps=3), "at step 2 the source 7"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_place(tmp_path: Path, value: Any, words: str):
    with pytest.raises(PabError) as caught:
        loaded(tmp_path, value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_windows_editors_is_read(tmp_path: Path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(content()), encoding="utf-8-sig")
    assert load_schedule(path).name == "mine"


@pytest.mark.parametrize("name", ["nul\0.json", "~nobody-of-that-name/mine.json"])
def test_a_name_that_no_file_can_have_is_told(name: str):
    with pytest.raises(PabError, match="cannot be read"):
        find_policy(name, "stdit3", 3)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PabError, match="cannot be written"):
        write_whole(tmp_path / "out" / "schedule.json", "{}")
