"""`pab bench differences`, `breakdown` and `sizes` on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import pab
from tiny_families import LATTE, PLAN, write_tiny_latte

from pab_core import cli_timing
from pab_core.broadcast.teacache import teacache
from pab_core.evaluate import latency
from pab_core.evaluate.breakdown import measure_breakdown
from pab_core.evaluate.generation import Clip
from pab_core.evaluate.latency import measure_latency, usual_sizes
from pab_core.evaluate.random_weights import random_pipe, random_text
from pab_core.models.registry import ARCHITECTURES
from pab_core.pipeline import Pipeline

SMALL: dict[str, dict[str, Any]] = {
    "open-sora": {"hidden_size": 32, "depth": 1, "num_heads": 2, "caption_channels": 16},
    "latte": LATTE | {"num_layers": 1},
    "open-sora-plan": PLAN | {"num_layers": 1},
}


def told(*arguments: str | Path) -> dict[str, Any]:
    result = pab("bench", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = pab("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    return result.stderr


def small(model: str) -> Pipeline:
    """The model with random weights, but small."""
    family = {"open-sora": "stdit3"}.get(model, model)
    return random_pipe(model, torch.device("cpu"), ARCHITECTURES[family].read_config(SMALL[model]))


# differences


def test_the_u_shape(folder: Path, tmp_path: Path):
    out = tmp_path / "a"
    report = told("differences", "--model", folder, "--clips", "2", "-o", out, "--json")
    assert set(report) >= {"timesteps", "relative", "squared", "signal"}
    assert sorted(p.name for p in out.iterdir()) == [
        "differences.json",
        "differences.md",
        "differences.png",
        "recording.jsonl",
    ]
    text = (out / "differences.md").read_text(encoding="utf-8")
    assert all(f"| {kind} |" in text for kind in ("spatial", "temporal", "cross", "mlp"))
    assert "calibrate on" not in refused("differences", "--model", folder, "--clips", "0")


def test_latte_is_recorded_and_calibrated_for_teacache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path / "schedules"))
    folder = write_tiny_latte(tmp_path / "latte")
    result = pab("calibrate", "--model", folder, "--teacache", "--clips", "2", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    pipe = Pipeline.load(folder, device="cpu")
    policy = teacache("latte", 2, 5.0)
    assert policy.coefficients == tuple(made["coefficients"])
    taken = pipe.generate("a red ball rolls left", policy=policy, seed=1).table
    assert taken.reused_share() >= 0
    assert taken.source[taken.branches[0]][0] == 0


# breakdown


def test_the_parts_of_a_step_are_the_whole_of_it(folder: Path, tmp_path: Path):
    report = told("breakdown", "--model", folder, "-p", "pab246", "-o", tmp_path / "a", "--json")
    off, pab246 = report["policies"]
    assert (off["policy"], pab246["policy"]) == ("off", "pab246")
    expected = {"spatial", "temporal", "cross, spatial blocks", "cross, temporal blocks"}
    expected |= {"mlp, spatial blocks", "mlp, temporal blocks", "embedding", "final layer", "rest"}
    assert set(off["parts"]) == expected
    for row in (off, pab246):
        assert sum(row["parts"].values()) == pytest.approx(row["step"])
        assert min(row["parts"].values()) >= 0
    assert "| embedding |" in (tmp_path / "a" / "breakdown.md").read_text(encoding="utf-8")
    assert (tmp_path / "a" / "breakdown.png").stat().st_size > 5000
    assert "given twice" in refused("breakdown", "--model", folder, "-p", "pab246", "-p", "pab246")


def test_a_breakdown_leaves_nothing_on_the_model(pipe: Pipeline):
    measure_breakdown(pipe, [], [Clip("a red ball", 1)])
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks


# sizes


def test_latency_against_length_and_size(folder: Path, tmp_path: Path):
    out = tmp_path / "a"
    given = ("sizes", "--model", folder, "--frames", "17", "--frames", "34", "--size", "48x32", "--repeat", "1")
    report = told(*given, "-o", out, "--json")
    assert report["weights"] == "random"
    assert [(row["num_frames"], row["tokens"]) for row in report["runs"]] == [(17, 30), (34, 60)]
    assert all(row["seconds"]["off"] > 0 for row in report["runs"])
    assert told(*given, "-o", out, "--json") == report
    assert "| 34 | 48x32 | 60 |" in (out / "sizes.md").read_text(encoding="utf-8")
    assert (out / "sizes.png").stat().st_size > 5000
    assert "do not fit" in refused("sizes", "--model", folder, "--frames", "18", "-o", out)
    assert "is not a size" in refused("sizes", "--model", folder, "--size", "big", "-o", out)


def test_a_model_that_is_not_downloaded_has_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PAB_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("pab_core.evaluate.random_weights.random_pipe", lambda model, device, speed: model)
    assert cli_timing.pipe_or_random("latte", torch.device("cpu")) == "latte"
    assert "Latte-1 is not downloaded: timed with random weights of its size." in capsys.readouterr().err


@pytest.mark.parametrize("model", SMALL)
def test_every_family_runs_with_random_weights(model: str, tmp_path: Path):
    pipe = small(model)
    assert not pipe.spec.trained
    text = random_text(pipe, 7)
    assert text.tokens.shape == (1, 7, 16)
    assert torch.equal(text.tokens, random_text(pipe, 7).tokens)
    frames = {"open-sora": 17, "latte": 2, "open-sora-plan": 5}[model]
    report = measure_latency(pipe, [(frames, 32, 48)], ["pab246"], tmp_path / "a.jsonl", steps=4, repeat=1)
    assert report.rows[0].seconds["pab246"]
    assert "random weights, float32, 4 steps" in report.to_markdown()
    assert len(usual_sizes(pipe)) == 4


def test_where_memory_runs_out_the_rest_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = small("latte")
    real = Pipeline.denoise

    def scarce(self: Pipeline, latents: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        if latents.shape[2] > 2:
            raise torch.OutOfMemoryError
        return real(self, latents, *given, **named)

    monkeypatch.setattr(latency.Pipeline, "denoise", scarce)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    report = measure_latency(pipe, [(2, 32, 32), (4, 32, 32)], [], tmp_path / "a.jsonl", steps=2, repeat=1)
    assert report.rows[0].seconds["off"] is not None
    assert report.rows[1].seconds["off"] is None
    assert "no memory" in report.to_markdown()
