"""`pab calibrate` on a tiny random model: what it writes, refuses, and keeps when it is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_cli import pab

from pab_core.broadcast import find_policy, policy_names
from pab_core.broadcast.calibrated import calibrated_names, calibrated_path, own_folder, own_path
from pab_core.broadcast.teacache import coefficients_of
from pab_core.errors import PabError
from pab_core.evaluate.calibration import Aim, Search, calibrate, propose
from pab_core.evaluate.candidates import digest
from pab_core.evaluate.generation import Clip
from pab_core.evaluate.recording import Recording
from pab_core.models.layers import Branch
from pab_core.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder."""
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path / "schedules"))
    return tmp_path / "schedules"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball rolls left\n\na blue cube spins around\na red ball rolls left\n", encoding="utf-8")
    return path


def told(*arguments: str | Path) -> dict[str, Any]:
    result = pab("calibrate", "--json", "--clips", "2", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = pab("calibrate", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    return result.stderr


def test_a_search_becomes_the_policy_calibrated(folder: Path, pipe: Pipeline, prompts: Path, schedules: Path):
    assert "calibrated" not in policy_names("stdit3", 2)
    made = told("--model", folder, "--speedup", "1.1", "--costs", "flops", "--prompts", prompts)
    path = schedules / "stdit3-2.json"
    assert made["schedule"] == str(path)
    assert made["share"] <= 1 / 1.1 + 1e-4
    assert made["speedup"] >= 1.1 - 1e-3
    assert made["error"] > 0
    assert set(made["ranges"]) == {"spatial", "temporal", "cross"}
    assert policy_names("stdit3", 2)[-1] == "calibrated"
    assert pipe.schedule("calibrated").reused_share() > 0
    assert pipe.schedule("calibrated+linear").predictor == "linear"
    work = schedules / "stdit3-2.calibration"
    assert sorted(p.name for p in work.iterdir()) == [
        "changes.json",
        "changes.png",
        "proposal.json",
        "recording.jsonl",
        "search.jsonl",
    ]
    assert json.loads((work / "changes.json").read_text(encoding="utf-8"))["relative"]
    assert (work / "changes.png").stat().st_size > 5000
    # Again, it is all known.
    again = told("--model", folder, "--speedup", "1.1", "--costs", "flops", "--prompts", prompts, "--force")
    assert again["judged"] == 0
    assert {**again, "judged": 0} == {**made, "judged": 0}


def test_a_name_and_a_predictor_and_whole_blocks(folder: Path, pipe: Pipeline, prompts: Path):
    more = ("--costs", "flops", "--prompts", prompts, "--by", "block", "--groups", "2", "--predictor", "linear")
    told("--model", folder, "--like", "pab246", "--name", "fast", *more)
    assert calibrated_names("stdit3", 2) == ("calibrated-fast",)
    table = pipe.schedule("calibrated-fast")
    assert table.predictor == "linear"
    assert table.groups
    for step in range(table.steps):
        assert len({table.reuses(branch, step) for branch in table.branches if branch.block == 0}) == 1


def test_so_many_computed_calls_and_the_best_predictor(folder: Path, pipe: Pipeline, prompts: Path):
    made = told("--model", folder, "--computed", "6", "--prompts", prompts, "--costs", "flops")
    assert made["computed"] == 6
    table = pipe.schedule("calibrated")
    assert table.predictor == made["predictor"]
    assert sum(not any(table.reuses(branch, step) for branch in table.branches) for step in range(table.steps)) == 6
    note = json.loads(Path(made["schedule"]).read_text(encoding="utf-8"))["note"]
    assert note.startswith("6 of 10 calls computed; searched by model on 2 clips, costs flops: ")
    more = ("--computed", "6", "--prompts", prompts, "--costs", "flops")
    others = {
        name: told("--model", folder, *more, "--predictor", name, "--name", name)
        for name in ("linear", "taylor", "hold")
    }
    assert made["error"] == others[made["predictor"]]["error"]
    assert made["error"] <= 1.05 * min(other["error"] for other in others.values())


def test_the_time_of_a_policy_by_the_clock(folder: Path, pipe: Pipeline, prompts: Path):
    made = told("--model", folder, "--like", "pab246", "--prompts", prompts, "--timed-clips", "3")
    path = Path(made["folder"]) / "search.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = {line["timed"]: line["share"] for line in lines if "timed" in line}
    assert {line["clips"] for line in lines if "timed" in line} == {3}
    assert made["share"] in [round(share, 4) for share in timed.values()]
    assert made["share"] <= timed[digest(pipe.schedule("pab246"))]
    # Times are kept: the same command finds the same.
    again = told("--model", folder, "--like", "pab246", "--prompts", prompts, "--timed-clips", "3", "--force")
    assert {**again, "judged": 0} == {**made, "judged": 0}


def test_the_error_of_a_policy(pipe: Pipeline, tmp_path: Path):
    clips = [Clip("a red ball rolls left", 1)]
    made = calibrate(pipe, clips, tmp_path / "a", Aim(error_like="pab246"), Search(costs="flops", rounds=0))
    from pab_core.evaluate.calibrate import Trial

    trial = Trial(pipe, clips, tmp_path / "a" / "search.jsonl")
    assert 0 < made.error <= trial.error_of(pipe.schedule("pab246"))
    assert trial.judged == 0


def test_without_an_aim_the_proposal_is_written(folder: Path, pipe: Pipeline, prompts: Path, tmp_path: Path):
    out = tmp_path / "mine.json"
    made = told("--model", folder, "--prompts", prompts, "-o", out)
    start, stop = made["window"]
    table = pipe.schedule(str(out))
    assert 0 <= start < stop <= 1
    assert {"window": made["window"], "ranges": made["ranges"]} == json.loads(
        (tmp_path / "mine.calibration" / "proposal.json").read_text(encoding="utf-8")
    )
    assert [i for i in range(table.steps) if any(table.reuses(b, i) for b in table.branches)]
    # In words of windows: it holds at any number of steps.
    assert pipe.schedule(str(out), steps=20).reused_share() > 0
    shown = pab("calibrate", "--model", folder, "--prompts", prompts, "--clips", "2", "-o", out, "--force")
    assert "window       [" in shown.stdout


def test_teacache_is_fitted_and_found(folder: Path, pipe: Pipeline, prompts: Path):
    assert coefficients_of("stdit3", 2) is None
    with pytest.raises(PabError, match="pab calibrate --teacache"):
        find_policy("teacache", "stdit3", 2)
    made = told("--model", folder, "--teacache", "--prompts", prompts)
    assert coefficients_of("stdit3", 2) == tuple(made["coefficients"])
    assert "teacache" in policy_names("stdit3", 2)
    assert pipe.schedule("teacache0.3").decide is not None
    Path(made["file"]).write_text('{"coefficients": ["x"]}', encoding="utf-8")
    with pytest.raises(PabError, match="holds no coefficients"):
        find_policy("teacache", "stdit3", 2)


def test_the_proposal_follows_the_changes():
    def constant(kind: Any, value: float) -> tuple[Branch, tuple[float, ...]]:
        return Branch(kind, "spatial", 0), (1.0, *[value] * 8, 1.0)

    rows = dict([constant("spatial", 0.4), constant("temporal", 0.2), constant("cross", 0.01)])
    found = propose(Recording("m", tuple(1000.0 - i for i in range(11)), rows, rows, (), ()), times=2.0)
    assert (found.window.start, found.window.stop) == (round(2 / 11, 4), round(10 / 11, 4))
    assert found.ranges == {"spatial": 2, "temporal": 3, "cross": 9}


def test_what_is_wrong_is_said_before_anything_is_measured(folder: Path, prompts: Path, tmp_path: Path):
    out = tmp_path / "a.json"
    given = ("--model", folder, "-o", out)
    assert "one aim" in refused(*given, "--speedup", "1.3", "--error", "0.1")
    assert "speed-up is a number above 1, not 0.5" in refused(*given, "--speedup", "0.5")
    assert "speed-up is a number, not 'fast'" in refused(*given, "--speedup", "fast")
    assert "no predictor named 'magic'" in refused(*given, "--predictor", "magic")
    assert "by kind, block or model, not by 'layer'" in refused(*given, "--by", "layer")
    assert "found in a search by model alone" in refused(*given, "--predictor", "best", "--by", "kind", "--error", "1")
    assert "found by a search" in refused(*given, "--predictor", "best")
    assert "Of 10 calls of the model, 1 to 9 can be computed, not 10" in refused(*given, "--computed", "10")
    assert "in a search by model alone" in refused(*given, "--computed", "5", "--by", "block")
    assert "one aim" in refused(*given, "--computed", "5", "--like", "pab246")
    assert "groups must be a whole number from 1 to 2, not '3'" in refused(*given, "--groups", "3")
    assert "no policy named 'pab24'" in refused(*given, "--like", "pab24")
    assert "cannot be read" in refused(*given, "--prompts", tmp_path / "none.txt")
    assert "There are 2 prompts in" in refused(*given, "--prompts", prompts, "--clips", "3")
    assert "There are 8 prompts for this model, and 9" in refused(*given, "--clips", "9")
    assert "a .json file" in refused("--model", folder, "-o", tmp_path / "a.txt")
    assert "small letters and digits" in refused("--model", folder, "--name", "A b")
    assert "--teacache without" in refused(*given, "--teacache", "--speedup", "1.2")
    assert "seconds above 0, not '-1'" in refused(*given, "--seconds", "-1")
    out.write_text("{}", encoding="utf-8")
    assert "exists already" in refused(*given)
    assert not (tmp_path / "a.calibration").exists()
    assert "costs" not in refused("--model", folder, "-o", tmp_path / "b.json", "--device", "nowhere")


def test_costs_of_another_family_are_refused(folder: Path, prompts: Path, tmp_path: Path):
    given = ("--model", folder, "--prompts", prompts, "--clips", "1", "-o", tmp_path / "a.json")
    assert "is not built like Latte-1" in refused(*given, "--speedup", "1.1", "--costs", "latte")
    assert "Costs are measured, or counted" in refused(*given, "--speedup", "1.1", "--costs", "guessed")
    assert not (tmp_path / "a.json").exists()


def test_a_policy_without_a_schedule_is_nothing_to_be_like(folder: Path, prompts: Path, tmp_path: Path):
    given = ("--model", folder, "--prompts", prompts, "--clips", "1", "--costs", "flops", "-o", tmp_path / "a.json")
    assert "no schedule of this many steps" in refused(*given, "--like", "steps8")


def test_a_killed_calibration_leaves_no_half_file_and_goes_on(folder: Path, prompts: Path, tmp_path: Path):
    out = tmp_path / "a.json"
    command = ["calibrate", "--model", str(folder), "--prompts", str(prompts), "--clips", "2", "-o", str(out)]
    command += ["--speedup", "1.2", "--costs", "flops", "--json"]
    lines = tmp_path / "a.calibration" / "search.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pab_core", *command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 120
        while not (lines.is_file() and lines.read_text(encoding="utf-8").count("\n") > 4):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert not out.exists()
    known = lines.read_text(encoding="utf-8").count("\n")
    with lines.open("a", encoding="utf-8") as file:
        file.write('{"digest": "cut o')
    result = pab(*command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["judged"] == lines.read_text(encoding="utf-8").count("\n") - known
    assert find_policy(out, "stdit3", 2)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_ctrl_c_says_how_to_go_on(folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pab_core.evaluate import calibration

    def interrupt(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(calibration, "spread", interrupt)
    out = tmp_path / "a.json"
    try:
        result = pab(
            "calibrate", "--model", folder, "--prompts", prompts, "--clips", "1", "--speedup", "1.1", "-o", out
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.stderr
    assert not out.exists()


def test_a_search_ends_in_time_with_what_it_has(pipe: Pipeline, tmp_path: Path):
    clips, search = [Clip("a red ball rolls left", 1)], Search(costs="flops", rounds=50)
    folder = tmp_path / "a"
    with pytest.raises(PabError, match="too short to try every computation once"):
        calibrate(pipe, clips, folder, Aim(speedup=1.1), search, until=0.0)
    calibrate(pipe, clips, folder, Aim(speedup=1.01), Search(costs="flops", rounds=0))
    made = calibrate(pipe, clips, folder, Aim(speedup=1.1), search, until=0.0)
    assert made.share <= 1 / 1.1
    assert made.judged <= 1


def test_the_users_schedule_comes_before_the_packages(schedules: Path):
    assert own_folder() == schedules
    assert own_path("stdit3", 5, "fast").name == "stdit3-5-fast.json"
    schedules.mkdir()
    (schedules / "stdit3-5.json").write_text("{}", encoding="utf-8")
    assert calibrated_path("stdit3", 5) == schedules / "stdit3-5.json"
    assert calibrated_path("stdit3", 6).parent.name == "schedules"
    assert not calibrated_path("stdit3", 6).is_relative_to(schedules)
