"""`pab bench scaling` with real processes: gloo on the CPU, tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_scaling import app, asked
from typer.testing import CliRunner

from pab_core.evaluate import scaling as measuring
from pab_core.evaluate import scaling_steps, scaling_world
from pab_core.evaluate.scaling import measure_scaling
from pab_core.evaluate.scaling_cases import METHODS, WORKLOADS, Cell
from pab_core.evaluate.scaling_estimate import Loop
from pab_core.evaluate.scaling_steps import shorten, whole_run
from pab_core.evaluate.scaling_world import AllFailed, RankLost, World
from pab_core.parallel.pool.member import LocalMember

CLIPS = ("open-sora-480p-2s", "open-sora-plan")
ARGUMENTS = ["--devices", "1,2,4", "--device", "cpu", "--tiny", "--json", *(p for c in CLIPS for p in ("--clip", c))]
PATIENCE = 300  # seconds; seconds only on a machine that is not busy


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scaling")


@pytest.fixture(scope="module")
def told(out: Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*ARGUMENTS, "-o", str(out), "--minutes", "20"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_cell_is_measured(told: dict[str, Any], out: Path):
    cells = {(row["workload"], row["policy"], row["method"], row["devices"]) for row in told["runs"]}
    pairs = [("none", 1), *((method, count) for method in METHODS for count in (2, 4))]
    assert cells == {(clip, policy, *pair) for clip in CLIPS for policy in ("off", "pab246") for pair in pairs}
    assert told["sizes"] == "tiny"
    assert told["not_run"] == []
    names = {"scaling.json", "scaling.jsonl", "scaling.md", "scaling.png", "scaling.svg"}
    assert {path.name for path in out.iterdir()} == names


def test_all_methods_make_what_one_device_makes(told: dict[str, Any]):
    for row in told["runs"]:
        assert row["seconds"] > 0
        assert row["fps"] > 0
        if row["devices"] > 1:
            assert row["difference"] < 1e-5, row
    assert [link["devices"] for link in told["links"]] == [2, 4]
    assert all(link["bandwidth"] > 0 and link["start"] > 0 for link in told["links"])


def test_the_bytes_are_those_of_the_methods(told: dict[str, Any]):
    rows = {(row["workload"], row["policy"], row["method"], row["devices"]): row for row in told["runs"]}
    clip = CLIPS[0]
    loop = Loop(WORKLOADS[0], "off", tiny=True)
    m = 2 * loop.sizes.frames * loop.sizes.tokens * loop.width * 4
    for count in (2, 4):
        dsp, ulysses, megatron = (rows[clip, "off", name, count] for name in ("dsp", "ulysses", "megatron"))
        assert dsp["temporal"] == pytest.approx(2 * m / count * loop.passes)
        assert ulysses["temporal"] == pytest.approx(2 * dsp["temporal"])
        assert megatron["temporal"] == pytest.approx(2 * m * loop.passes)
        assert dsp["sent"] < ulysses["sent"] < megatron["sent"]
        assert rows[clip, "pab246", "dsp", count]["temporal"] < dsp["temporal"]
    assert rows[clip, "off", "none", 1]["sent"] == 0
    # With two devices the guidance alone is shared out, and no frames.
    assert rows[clip, "off", "cfg+dsp", 2]["temporal"] == 0
    assert rows[clip, "off", "cfg+dsp", 4]["temporal"] > 0


def test_a_schedule_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As calibration writes them: whole blocks, predicted between the steps that are computed."""
    monkeypatch.chdir(tmp_path)
    kinds = ["spatial", "temporal", "cross", "mlp"]
    about = {
        "pab_schedule": 1,
        "name": "mine",
        "model": {"family": "stdit3", "depth": 2},
        "merge": True,
        "predictor": "linear",
        "rules": [{"kinds": kinds, "windows": [{"start": 0.1, "stop": 1.0, "range": 2, "count_from": "window"}]}],
    }
    Path("mine.json").write_text(json.dumps(about))
    choices = ["--clip", CLIPS[0], "--policy", "off", "--policy", "mine.json", "--method", "cfg+dsp"]
    arguments = ["--devices", "1,4", "--device", "cpu", "--tiny", "--json", *choices, "-o", "out", "--minutes", "20"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["not_run"] == []
    rows = {(row["policy"], row["devices"]): row for row in told["runs"]}
    assert rows["mine.json", 4]["difference"] < 1e-5
    assert 0 < rows["mine.json", 4]["temporal"] < 0.7 * rows["off", 4]["temporal"]


def test_what_was_measured_is_not_measured_again(told: dict[str, Any], out: Path):
    before = (out / "scaling.jsonl").read_text(encoding="utf-8")
    done = CliRunner().invoke(app, [*ARGUMENTS, "-o", str(out), "--minutes", "20"])
    assert done.exit_code == 0, done.output
    assert (out / "scaling.jsonl").read_text(encoding="utf-8") == before
    assert json.loads(done.stdout)["runs"] == told["runs"]
    other = CliRunner().invoke(app, [*ARGUMENTS, "-o", str(out), "--speed", "exact"])
    assert other.exit_code == 2
    assert "of other settings" in other.stderr


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2, "cpu") as made:
        made.meet([1, 2], PATIENCE)
        yield made


@pytest.mark.parametrize("number", [0, 4], ids=lambda number: WORKLOADS[number].name)
@pytest.mark.parametrize("policy", ["off", "pab246"])
def test_some_steps_tell_the_bytes_of_the_whole_loop(
    world: World, number: int, policy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scaling_steps, "_WORTH", 1.0)  # of so few steps nearly all are needed
    workload = WORKLOADS[number]
    loop = Loop(workload, policy, tiny=True)
    assert loop.few is not None
    assert len(loop.few) < loop.table.steps
    world.ask("build", {"model": workload.model, "tiny": True, "speed": "exact"}, PATIENCE)
    found: dict[bool, list[Any]] = {}
    for method, count in (("none", 1), ("dsp", 2)):
        for few in (False, True):
            cell = Cell(workload.name, policy, method, count).to_json()
            about = {"cell": cell, "steps": loop.few if few else None, "warm_up": [0], "loops": 1}
            found[few] = list(world.ask("cell", about, PATIENCE))
    part = shorten(loop.table, loop.few, range(len(loop.few)), len(loop.few))
    for whole, some in zip(found[False], found[True], strict=True):
        assert len(whole["bytes"]) == len(whole["steps"][0]) == loop.table.steps
        assert len(some["bytes"]) == len(some["steps"][0]) == len(loop.few)
        for of_all, of_some in zip(zip(*whole["bytes"], strict=True), zip(*some["bytes"], strict=True), strict=True):
            assert whole_run(loop.table, part, of_some) == pytest.approx(sum(of_all))
        assert sum(whole["steps"][0]) <= whole["loops"][0]
    assert found[True][0]["difference"] < 1e-5, "to one device, after as many steps"


def test_a_rank_that_dies_ends_the_measurement_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    worlds: list[World] = []

    class Watched(World):
        def __init__(self, ranks: int, device: str):
            super().__init__(ranks, device)
            worlds.append(self)

    monkeypatch.setattr(measuring, "World", Watched)

    def on_row(done: int, total: int, line: Any) -> None:
        if done == 3:
            worlds[0].members[1]._process.kill()

    few = asked(workloads=WORKLOADS[:1], devices=(1, 2), policies=("off", "pab246"), minutes=20.0)
    found = measure_scaling(few, tmp_path / "scaling.jsonl", on_row)
    assert found.lost
    assert len([line for line in found.lines if "workload" in line]) == 3
    assert len(found.not_run) == len(found.plan.cells) - 3
    (note,) = [note for note in found.notes if "ended early" in note]
    assert note.startswith("The measurement ended early: Rank 1 (cpu) was killed (signal 9")
    assert all(member.wait(10) for member in worlds[0].members), "nobody is left behind"
    # The next start measures the rest.
    monkeypatch.setattr(measuring, "World", World)
    again = measure_scaling(few, tmp_path / "scaling.jsonl")
    assert not again.not_run
    assert not again.lost


def test_ranks_that_fail_together_go_on(world: World):
    with pytest.raises(AllFailed, match=r"Rank \d \(cpu\) failed: PabError: There is no model named 'nothing'"):
        world.ask("build", {"model": "nothing", "tiny": True, "speed": "exact"}, PATIENCE)
    assert world.ask("build", {"model": "latte", "tiny": True, "speed": "exact"}, PATIENCE)[1]["speed"] == "exact"
    # The same, told of one that should not have had anything to do: then it is no matter of what was asked.
    with pytest.raises(RankLost) as lost:
        world.ask("build", {"model": "nothing", "tiny": True, "speed": "exact"}, PATIENCE, working=1)
    assert not isinstance(lost.value, AllFailed)


def test_a_rank_that_does_not_answer_ends_the_wait():
    with World(1, "cpu") as made, pytest.raises(RankLost, match="did not answer within 0 s"):
        made.meet([1], 0.01)


@pytest.mark.parametrize("given", [None, "1"])
def test_the_callers_environment_holds(given: str | None, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    class Noted(LocalMember):
        def __init__(self, *arguments: Any, environment: Any, **named: Any):
            seen.append(environment)
            super().__init__(*arguments, environment=environment, **named)

    monkeypatch.setattr(scaling_world, "LocalMember", Noted)
    if given is None:
        monkeypatch.delenv("NCCL_NVLS_ENABLE", raising=False)
    else:
        monkeypatch.setenv("NCCL_NVLS_ENABLE", given)
    with World(1, "cpu"):
        assert seen[0]["NCCL_NVLS_ENABLE"] == (given or "0")
