"""`pab bench speed` on a tiny random model, and what it measures with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import pab

from pab_core.evaluate.bench import measure_speed, psnr
from pab_core.evaluate.machine import describe_machine, peak_memory
from pab_core.pipeline import Pipeline


def test_bench_speed(folder: Path):
    result = pab("bench", "speed", "--model", folder, "--policy", "pab246", "--repeat", "2", "--steps", "8", "--json")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["model"], told["weights"]) == ("tiny", "random")
    assert told["machine"]["threads"] == 1
    assert told["machine"]["torch"] == torch.__version__
    assert {"seed": 1, "repeat": 2, "steps": 8, "num_frames": 17, "height": 32, "width": 48}.items() <= told[
        "settings"
    ].items()
    off, pab246 = told["runs"]
    assert (off["policy"], pab246["policy"]) == ("off", "pab246")
    assert off["speedup"] == 1
    assert off["psnr"] is None
    assert pab246["psnr"] > 20
    assert set(off["reused"].values()) == {0}
    assert all(share > 0 for share in pab246["reused"].values())
    for run in (off, pab246):
        assert len(run["seconds"]) == 2
        assert all(seconds > 0 for seconds in run["seconds"])
        assert run["speedup"] == pytest.approx(off["median"] / run["median"], rel=0.05)


def test_bench_speed_of_two_ways_to_compute(folder: Path):
    more = ["--repeat", "1", "--steps", "5", "--frames", "1", "--policy", "pab246"]
    found = json.loads(
        pab("bench", "speed", "--model", folder, "--speed", "exact", "--speed", "fast", *more, "--json").stdout
    )
    assert [(run["policy"], run["speed"]) for run in found["runs"]] == [
        ("off", "exact"),
        ("pab246", "exact"),
        ("off", "fast"),
        ("pab246", "fast"),
    ]
    assert found["runs"][0]["difference"] == 0
    assert found["runs"][2]["difference"] < 0.1
    for wrong, words in ((["exact", "fp8"], "Only exact and fast can take turns"), (["warp"], "no speed named 'warp'")):
        refused = pab("bench", "speed", "--model", folder, *(f"--speed={speed}" for speed in wrong))
        assert refused.exit_code == 2
        assert words in refused.stderr


def test_bench_speed_as_a_table(folder: Path):
    result = pab("bench", "speed", "--model", folder, "--repeat", "1", "--steps", "3", "--frames", "1")
    assert result.exit_code == 0, result.output
    assert "tiny, random weights; device cpu" in result.stdout
    names = [line.split()[0] for line in result.stdout.splitlines()[-4:]]
    assert names == ["off", "pab246", "pab357", "pab579"]
    assert "identical" in result.stdout


def test_the_bench_takes_turns(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = Pipeline.load(folder, device="cpu")
    order: list[str] = []
    plain = Pipeline.denoise

    def recorded(self: Pipeline, latents: Any, text: Any, table: Any, **options: Any) -> Any:
        order.append(table.policy)
        return plain(self, latents, text, table, **options)

    monkeypatch.setattr(Pipeline, "denoise", recorded)
    events: list[tuple[int, int]] = []
    report = measure_speed(
        pipe, ["pab246", "pab579"], repeat=2, steps=3, on_run=lambda done, total: events.append((done, total))
    )
    assert order == ["off", "off", "pab246", "pab579", "pab246", "pab579", "off"]
    assert events == [(i, 6) for i in range(7)]
    assert [len(row.seconds) for row in report.rows] == [2, 2, 2]


def test_psnr():
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert psnr(black, black) is None
    assert psnr(black + 255, black) == pytest.approx(0)
    assert psnr(black + 1, black) == pytest.approx(48.13, abs=0.01)


def test_the_machine_is_told():
    told = describe_machine("cpu")
    assert told["device"] == "cpu"
    assert all(value for value in told.values())
    before = peak_memory()
    assert before is not None
    block = torch.ones(40_000_000)  # 160 MB
    after = peak_memory()
    assert after is not None
    assert after >= 150e6
    assert after >= before
    del block
