"""What `pab bench scaling` measures, in what order and how long that may take; what it makes of what was measured."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pab_core.broadcast import calibrated
from pab_core.cli_scaling import scaling
from pab_core.errors import PabError
from pab_core.evaluate import scaling as measuring
from pab_core.evaluate.links import ONE_GPU, extrapolate
from pab_core.evaluate.scaling import Asked, check_asked, measure_scaling
from pab_core.evaluate.scaling_cases import METHODS, WORKLOADS, Cell, find_workloads, plan_cells
from pab_core.evaluate.scaling_estimate import ASSUMED, Loop, predict
from pab_core.evaluate.scaling_report import PAPER, ScalingReport, read_report, report_of
from pab_core.evaluate.scaling_steps import Key, busiest_steps, choose_steps, shorten, step_keys, whole_run
from pab_core.evaluate.scaling_world import AllFailed

app = typer.Typer()
app.command()(scaling)


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2, done.output
    return done.stderr.splitlines()[-1]


def asked(**changes: Any) -> Asked:
    about: dict[str, Any] = {
        "workloads": WORKLOADS,
        "policies": ("off", "pab246"),
        "methods": METHODS,
        "devices": (1, 2, 4),
        "device": "cpu",
        "tiny": True,
        "speed": "auto",
        "minutes": 9.0,
    }
    return Asked(**{**about, **changes})


# steps that stand for others


def cost(key: Key) -> float:
    """Of a step, made up: each branch costs something of its own, and something more where it is kept."""
    computed, kept = key
    return sum(1 + number % 3 / 3 for number, yes in enumerate(computed) if yes) + sum(kept) / 20


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
@pytest.mark.parametrize("policy", ["off", "pab246", "pab579", "tgate", "pab246+linear"])
def test_some_steps_stand_for_all(workload: Any, policy: str):
    table = workload.table(policy)
    steps = choose_steps(table)
    if steps is None:
        assert policy == "pab579", "few of its steps are alike"
        return
    assert len(steps) <= 0.75 * table.steps
    part = shorten(table, steps, range(len(steps) + 2), len(steps))
    values = [cost(key) for key in step_keys(part)][: len(steps)]
    values[0] += 5  # the start of a run, which is nobody's cost
    # Whether an update is kept is not always met with in the same company.
    assert whole_run(table, part, values) == pytest.approx(sum(map(cost, step_keys(table))), rel=0.01)


def test_the_busiest_steps_hold_what_they_reuse():
    table = WORKLOADS[0].table("pab246")
    steps = busiest_steps(table)
    part = shorten(table, steps, range(len(steps)), len(steps))
    most = max(sum(table.reuses(branch, step) for branch in table.branches) for step in range(table.steps))
    assert sum(part.reuses(branch, part.steps - 1) for branch in part.branches) == most
    assert len(steps) < 8


def test_a_run_that_decides_itself_is_run_whole():
    assert choose_steps(WORKLOADS[0].table("teacache")) is None


# what is measured


def without_calibrated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package came without schedules; those in `folder` are found."""
    monkeypatch.setenv("PAB_SCHEDULES", str(folder))
    monkeypatch.setattr(calibrated, "PACKAGED", folder / "none")


def test_the_most_telling_cells_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without_calibrated(tmp_path, monkeypatch)
    plan = plan_cells(WORKLOADS, (), METHODS, (1, 2, 4, 8))
    first = "open-sora-480p-2s"
    assert plan.cells[:2] == (Cell(first, "off", "none", 1), Cell(first, "pab246", "none", 1))
    assert set(plan.cells[2:8]) == {Cell(first, p, "dsp", n) for p in ("off", "pab246") for n in (2, 4, 8)}
    assert plan.cells[2].devices == 8
    clips = list(dict.fromkeys(cell.workload for cell in plan.cells))
    assert clips == [workload.name for workload in WORKLOADS]
    assert len(plan.cells) == len(set(plan.cells)) == 5 * 2 * (1 + 4 * 3)
    for cell in plan.cells:  # what a cell is compared with is there before it
        alone = Cell(cell.workload, cell.policy, "none", 1)
        assert plan.cells.index(alone) <= plan.cells.index(cell)


def test_calibrated_schedules_are_measured_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without_calibrated(tmp_path, monkeypatch)
    absent = plan_cells(WORKLOADS, (), ("dsp",), (1, 2))
    assert {cell.policy for cell in absent.cells} == {"off", "pab246", "pab236"}
    assert len([note for note in absent.notes if "calibrated is left out" in note]) == 5
    rules = [{"kinds": ["spatial", "temporal"], "windows": [{"start": 0.3, "stop": 0.85, "range": 2}]}]
    about = {"pab_schedule": 1, "name": "mine", "model": {"family": "stdit3", "depth": 28}, "rules": rules}
    (tmp_path / "stdit3-28.json").write_text(json.dumps(about))
    there = plan_cells(WORKLOADS, (), ("dsp",), (1, 2))
    assert {cell.workload for cell in there.cells if cell.policy == "calibrated"} == {w.name for w in WORKLOADS[:3]}
    assert len(there.notes) == 2


def test_a_clip_whose_sampler_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    plan = plan_cells(WORKLOADS, ("off",), ("dsp",), (1, 2))
    assert {cell.workload for cell in plan.cells} == {w.name for w in WORKLOADS[:3]}
    assert "Latte-1, 512x512, 16 frames is left out, for diffusers is not installed." in plan.notes


def test_what_a_method_cannot_use_is_left_out_and_told():
    plan = plan_cells(WORKLOADS[:1], ("off",), ("dsp", "cfg+dsp", "cfg"), (1, 2, 3, 16))
    assert {(cell.method, cell.devices) for cell in plan.cells} == {
        ("none", 1),
        ("dsp", 2),
        ("cfg+dsp", 2),
        ("cfg", 2),
        ("dsp", 3),
        ("cfg+dsp", 16),
    }
    assert any("15 ranks at most, not 16" in note for note in plan.notes)
    assert any("3 cannot be halved" in note for note in plan.notes)


def test_fewer_devices_than_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measuring.dist, "is_nccl_available", lambda: True)
    found, notes = check_asked(asked(device="cuda", devices=(1, 2, 4, 8)), present=2)
    assert found.devices == (1, 2)
    assert notes == ["This machine has 2 GPUs: 4, 8 cannot be measured here, and 1 and 2 are."]
    found, notes = check_asked(asked(device="cuda", devices=(4,)), present=1)
    assert found.devices == (1,)
    with pytest.raises(PabError, match="no CUDA GPU"):
        check_asked(asked(device="cuda"), present=0)
    monkeypatch.setattr(measuring.dist, "is_nccl_available", lambda: False)
    with pytest.raises(PabError, match="no NCCL"):
        check_asked(asked(device="cuda"), present=2)


# how long it takes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", ONE_GPU)
def test_the_prediction_is_that_of_bench_comm(method: str, policy: str):
    loop = Loop(WORKLOADS[0], policy, tiny=False)
    row = extrapolate(8, method, policy)
    assert predict(ONE_GPU[policy].value, loop, method, 8, ASSUMED) == pytest.approx(row.seconds)


class Clock:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class MadeUpWorld:
    """Ranks that compute nothing: a loop takes `unit` seconds a step, shared out evenly."""

    unit = 1.0
    clock = Clock()
    lacks: tuple[Cell, ...] = ()
    why = "memory"

    def __init__(self, ranks: int, device: str):
        self.ranks = ranks
        self.built: list[str] = []

    def __enter__(self) -> MadeUpWorld:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def meet(self, devices: list[int], seconds: float) -> list[Mapping[str, Any]]:
        self.clock.now += 20
        return [{"machine": {"processor": "made up"}}] * self.ranks

    def ask(self, kind: str, about: Mapping[str, Any], seconds: float, working: int = 1) -> list[Mapping[str, Any]]:
        if kind == "link":
            return [{"bytes": 1.0, "start": 1e-5, "bandwidth": 1e11}] * self.ranks
        if kind == "build":
            self.clock.now += 2
            return [{"notes": [], "speed": "exact"}] * self.ranks
        cell = Cell(**about["cell"])
        if cell in self.lacks:
            raise AllFailed("Rank 0 failed: " + self.why, lacking=self.why == "memory")
        (workload,) = find_workloads([cell.workload])
        every = range(workload.table(cell.policy, tiny=True).steps)
        step = self.unit / cell.devices
        counts = [len(every if about[name] is None else about[name]) for name in ("warm_up", "steps")]
        warm_up, loop = (count * step for count in counts)
        self.clock.now += warm_up + about["loops"] * loop + 0.1
        answer = {
            "warm_up": warm_up,
            "loops": [loop] * about["loops"],
            "steps": [[step] * counts[1]] * about["loops"],
            "bytes": [[8, 4, 4, 1]] * counts[1],
            "peak": 2**30,
            "difference": None,
        }
        return [answer] * self.ranks


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> type[MadeUpWorld]:
    class Own(MadeUpWorld):
        clock = Clock()

    monkeypatch.setattr(measuring, "World", Own)
    monkeypatch.setattr(measuring, "time", Own.clock)
    return Own


def test_all_is_measured_whole_where_there_is_time(world: type[MadeUpWorld], tmp_path: Path):
    found = measure_scaling(asked(minutes=200.0), tmp_path / "a.jsonl")
    cells = [line for line in found.lines if "workload" in line]
    assert len(cells) == len(found.plan.cells)
    assert not found.not_run
    assert all(line["steps_measured"] == line["steps"] for line in cells)
    assert all(line["seconds"] == pytest.approx(line["steps"] / line["devices"]) for line in cells)


def test_the_time_is_kept_by_some_steps_and_by_leaving_out(world: type[MadeUpWorld], tmp_path: Path):
    world.unit = 3.0
    begin, minutes = world.clock.now, 9.0
    found = measure_scaling(asked(minutes=minutes), tmp_path / "a.jsonl")
    assert world.clock.now - begin <= 60 * minutes
    cells = [line for line in found.lines if "workload" in line]
    assert 0 < len(found.not_run) == len(found.plan.cells) - len(cells)
    first = [line for line in cells if line["workload"] == WORKLOADS[0].name]
    assert len(first) == 2 * (1 + 4 * 2)
    assert all(line["steps_measured"] == line["steps"] for line in first)
    others = [line for line in cells if line["workload"] != WORKLOADS[0].name]
    assert all(line["steps_measured"] < line["steps"] for line in others if line["policy"] == "off")
    # Of each clip all is measured alike, and what some steps stand for is as long as the whole.
    assert all(line["seconds"] == pytest.approx(3 * line["steps"] / line["devices"]) for line in cells)
    assert all("no time was left" in why for _, why in found.not_run)
    left = {cell for cell, _ in found.not_run}
    markdown = report_of(found).to_markdown()
    assert "### Not run" in markdown
    assert markdown.count("no time was left") == len(left)


def test_another_start_goes_on(world: type[MadeUpWorld], tmp_path: Path):
    path = tmp_path / "a.jsonl"
    world.unit = 3.0
    first = measure_scaling(asked(), path)
    begun = len([line for line in first.lines if "workload" in line])
    assert first.not_run
    told: list[Any] = []
    second = measure_scaling(asked(minutes=200.0), path, lambda done, total, line: told.append((done, line)))
    assert told[0] == (begun, None)
    assert not second.not_run
    cells = [
        Cell(**{name: line[name] for name in vars(second.plan.cells[0])}) for line in second.lines if "steps" in line
    ]
    assert len(cells) == len(set(cells)) == len(second.plan.cells)
    with pytest.raises(PabError, match="of other settings"):
        measure_scaling(asked(speed="exact"), path)


def test_what_does_not_fit_into_memory_is_told(world: type[MadeUpWorld], tmp_path: Path):
    world.lacks = (Cell(WORKLOADS[0].name, "pab246", "none", 1),)
    found = measure_scaling(asked(workloads=WORKLOADS[:1], minutes=200.0), tmp_path / "a.jsonl")
    report = report_of(found)
    (row,) = [row for row in report.rows if row["seconds"] is None]
    assert row["lacking"] == "memory"
    assert "| pab246 | one | 1 | no memory |" in report.to_markdown()
    # Without it there is nothing to compare with.
    assert all(row["speedup"] is None for row in report.rows if row["policy"] == "pab246" and row["devices"] > 1)


def test_what_all_ranks_fail_at_is_told_and_the_others_are_measured(world: type[MadeUpWorld], tmp_path: Path):
    world.lacks, world.why = (Cell(WORKLOADS[0].name, "off", "dsp", 2),), "ValueError: no such thing"
    found = measure_scaling(asked(workloads=WORKLOADS[:1], minutes=200.0), tmp_path / "a.jsonl")
    assert found.not_run == [(world.lacks[0], "Rank 0 failed: ValueError: no such thing")]
    assert not found.lost
    # Unlike memory, it may be mended: the next start tries again.
    world.lacks = ()
    assert not measure_scaling(asked(workloads=WORKLOADS[:1], minutes=200.0), tmp_path / "a.jsonl").not_run


# what is told


@pytest.fixture
def report(world: type[MadeUpWorld], tmp_path: Path) -> ScalingReport:
    return report_of(
        measure_scaling(asked(workloads=WORKLOADS[:2], minutes=200.0), tmp_path / "some" / "scaling.jsonl")
    )


def test_the_rows(report: ScalingReport):
    for row in report.rows:
        steps = row["steps"]
        assert row["fps"] == pytest.approx(row["devices"] * (51 if "2s" in row["workload"] else 102) / steps)
        assert row["speedup"] == row["speedup_off"] == pytest.approx(row["devices"])
        assert row["sent"] == 8 * steps
        assert row["temporal"] == 4 * steps  # the made-up ranks say so, each of them
        assert row["peak"] == [2**30] * row["devices"]
        if row["devices"] > 1:
            assert row["predicted"] is None, "the figures of links are of GPUs"
            assert row["predicted_link"] == pytest.approx(row["seconds"] * (1 + row["predicted_link_error"]))


def test_the_papers_figures_are_beside(report: ScalingReport):
    markdown = report.to_markdown()
    assert "speed auto (exact)" in markdown
    assert all(f"| {seconds:.2f} |" in markdown for seconds in PAPER.values())
    assert "10.50x" in markdown  # 97.51 / 9.29
    assert report.to_json()["paper"]["fps"] == 21.6


@pytest.mark.parametrize("name", ["scaling.json", "scaling.jsonl"])
def test_table_and_figure_can_be_made_later(report: ScalingReport, tmp_path: Path, name: str):
    source = tmp_path / "some" / name
    if name == "scaling.json":
        source.write_text(json.dumps(report.to_json()))
    done = CliRunner().invoke(app, ["--from", str(source), "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"] == json.loads(json.dumps(report.to_json()))["runs"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scaling.json",
        "scaling.md",
        "scaling.png",
        "scaling.svg",
    ]
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "scaling.svg").read_text(encoding="utf-8")


def test_a_line_that_was_cut_off_is_left_out(report: ScalingReport, tmp_path: Path):
    source = tmp_path / "some" / "scaling.jsonl"
    text = source.read_text()
    source.write_text(text[:-20])
    assert len(read_report(source).rows) == len(report.rows) - 1


def test_without_matplotlib_all_but_the_figure_is_made(
    report: ScalingReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    imported = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["--from", str(tmp_path / "some" / "scaling.jsonl"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "matplotlib is not installed" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["scaling.json", "scaling.md"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "none", '{"header": {}}\n', '{"bench": "scaling"}', '{"header": 3}\n']
)
def test_a_file_of_something_else(text: str, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert "holds no results of pab bench scaling" in refused("--from", str(path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "0"], "from 1 to 64, not 0"),
        (["--devices", "1,x"], "from 1 to 64, not 'x'"),
        (["--devices", "65"], "from 1 to 64, not 65"),
        (["--clip", "latter"], "no clip named 'latter'"),
        (["--method", "ulises"], "Did you mean ulysses?"),
        (["--policy", "pab"], "There is no policy named 'pab'"),
        (["--speed", "slow"], "no speed named 'slow'"),
        (["--minutes", "0"], "minutes above 0"),
        (["--minutes", "soon"], "minutes above 0, not 'soon'"),
        (["--device", "tpu"], "cuda or cpu"),
        (["--from", "nowhere.json"], "cannot be read"),
    ],
)
def test_bad_input(arguments: list[str], said: str):
    device = [] if "--device" in arguments else ["--device", "cpu"]
    answer = refused(*arguments, *device, "--tiny")
    assert answer.startswith("Error: ")
    assert said in answer
