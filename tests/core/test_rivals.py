"""Calibrated schedules against what takes the same time, from the recording to the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import pab

from pab_core.broadcast.schedule_file import load_schedule
from pab_core.errors import PabError
from pab_core.evaluate.calibration import Search
from pab_core.evaluate.costs import Costs
from pab_core.evaluate.generation import Clip
from pab_core.evaluate.recording import Recording
from pab_core.evaluate.rivals import compare_rivals, reused_share, teacaches, threshold_for
from pab_core.models.stdit3 import stdit3_branches
from pab_core.pipeline import Pipeline

# Each step's estimated change is the recorded one itself.
PLAIN = (1.0, 0.0)


def recorded(*rows: tuple[float, ...]) -> Recording:
    return Recording("m", (1.0,) * (len(rows[0]) + 1), {}, {}, rows, rows)


def test_the_steps_that_teacache_would_reuse():
    recording = recorded((0.1, 0.1, 0.1, 0.1, 0.1))
    # Steps 1 and 2 add up to 0.2, step 3 reaches 0.3 and is computed, step 4 starts anew; the last is computed.
    assert reused_share(recording, PLAIN, 0.25) == 3 / 6
    assert reused_share(recording, PLAIN, 0.05) == 0
    assert reused_share(recording, PLAIN, 9.0) == 4 / 6


@pytest.mark.parametrize("wanted", [0.1, 0.3, 0.5])
def test_the_threshold_reuses_as_much_as_wanted_and_no_more(wanted: float):
    recording = recorded(*(tuple(0.01 * ((7 * i + k) % 13 + 1) for i in range(29)) for k in range(8)))
    threshold = threshold_for(recording, PLAIN, wanted)
    assert threshold is not None
    assert wanted - 0.07 < reused_share(recording, PLAIN, threshold) <= wanted


def test_no_threshold_is_low_enough_where_nothing_changes():
    assert threshold_for(recorded((0.0, 0.0, 0.0)), PLAIN, 0.1) is None
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 2.0)
    assert teacaches(recorded((0.0, 0.0, 0.0)), PLAIN, [0.1], costs) == []
    (found,) = teacaches(recorded((0.1,) * 9), PLAIN, [0.3], costs)
    # Of eight parts of a step two are never saved: 0.3 of the time is 0.4 of the steps.
    assert reused_share(recorded((0.1,) * 9), PLAIN, found.threshold) == pytest.approx(0.4)  # pyright: ignore[reportAttributeAccessIssue]


def test_the_whole_comparison_and_again(folder: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball rolls left\na blue cube spins\na cone\n", encoding="utf-8")
    out = tmp_path / "a"
    given = ["bench", "rivals", "--model", folder, "--prompts", prompts, "--clips", "2", "--seeds", "1", "-o", out]
    given += [
        "--calibration-clips",
        "1",
        "--costs",
        "flops",
        "--like",
        "pab246",
        "--way",
        "kind",
        "--way",
        "block linear",
    ]
    given += ["--repeat", "1", "--no-lpips", "--json"]
    result = pab(*given)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    names = [row["policy"] for row in report["quality"]["policies"]]
    assert names[:7] == ["off", "pab246", "pab444", "tgate", "delta-dit", "calibrated-246", "calibrated-e246"]
    assert any(name.startswith("teacache") for name in names)
    found = [(row["policy"], row["by"], row["way"]) for row in report["searches"]]
    assert found == [
        ("calibrated-246", "time", "kind"),
        ("calibrated-e246", "error", "kind"),
        ("calibrated-246", "time", "block linear"),
        ("calibrated-e246", "error", "block linear"),
    ]
    for row in report["searches"]:
        limit = ("share", "like_share") if row["by"] == "time" else ("error", "like_error")
        assert row[limit[0]] <= row[limit[1]] + 1e-5
    assert set(report["predictors"]["pab246"]) == {"hold", "gate", "linear", "taylor"}
    assert report["costs"]["rest"] > 0
    for name in ("rivals.json", "rivals.md", "rivals.png", "differences.png", "calibrated-246.json"):
        assert (out / name).is_file(), name
    assert load_schedule(out / "calibrated-246.json").name == "calibrated-246"
    assert "| pab246 | time | kind |" in (out / "rivals.md").read_text(encoding="utf-8")
    assert (out / "stdit3-2.teacache.json").is_file()
    # All is known: the same again, to the digit.
    assert json.loads(pab(*given).stdout) == report


def test_in_too_little_time_it_says_so_and_goes_on(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ways = {"kind": Search(costs="flops"), "block linear": Search("block", 2, "linear", costs="flops")}
    given: dict[str, Any] = {"lpips": None, "repeat": 1}
    asked, seen = [Clip("a red ball", 1)], [Clip("a cube", 2)]
    with pytest.raises(PabError, match="too short for the first search"):
        compare_rivals(pipe, ["pab246"], ways, asked, seen, tmp_path / "a", seconds=1e-3, **given)
    compare_rivals(pipe, ["pab246"], {"kind": ways["kind"]}, asked, seen, tmp_path / "a", **given)
    report = compare_rivals(pipe, ["pab246"], ways, asked, seen, tmp_path / "a", seconds=1e-3, **given)
    assert [(found.by, found.way) for found in report.searches] == [("time", "kind"), ("error", "kind")]
    assert report.unfinished == ("pab246 by time, block linear", "pab246 by error, block linear")
    assert "Not finished in the time given: pab246 by time, block linear;" in report.to_markdown()


def test_clips_of_calibration_are_not_compared_on(pipe: Pipeline, tmp_path: Path):
    asked, ways = [Clip("a", 1)], {"kind": Search()}
    for seen in ([Clip("a", 2)], [Clip("b", 1)]):
        with pytest.raises(PabError, match="other prompts and seeds"):
            compare_rivals(pipe, ["pab246"], ways, asked, seen, tmp_path / "a", lpips=None)
    assert not (tmp_path / "a").exists()


def test_what_is_wrong_is_said_first(folder: Path, tmp_path: Path):
    given = ("bench", "rivals", "--model", folder, "-o", tmp_path / "a", "--no-lpips")
    for more, message in (
        (("--way", "magic"), "no way to search named 'magic'"),
        (("--like", "pab24"), "no policy named 'pab24'"),
        (("--clips", "99"), "8 prompts for this model"),
        (("--calibration-clips", "x"), "whole number"),
    ):
        result = pab(*given, "--clips", "2", "--calibration-clips", "2", *more)
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "a").exists()
