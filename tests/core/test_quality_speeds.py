"""Policies measured at other speeds beside exact: bfloat16 on a CPU, and weights in eight bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from test_quality import CLIPS, random_lpips
from test_quality_cli import FAST, names, refused, told

from pab_core.acceleration import cpu, fp8_products
from pab_core.broadcast.teacache import TeaCache
from pab_core.checkpoints import find_model
from pab_core.errors import PabError
from pab_core.evaluate import quality
from pab_core.evaluate.candidates import digest
from pab_core.evaluate.generation import Clip, make_videos
from pab_core.evaluate.metrics import compare
from pab_core.evaluate.quality import measure_quality
from pab_core.evaluate.quality_report import QualityReport, QualityRow, draw_quality
from pab_core.evaluate.quality_speeds import check_beside, load_beside
from pab_core.models.fp8 import Fp8Linear
from pab_core.models.registry import model_spec
from pab_core.pipeline import Pipeline

CPU = torch.device("cpu")


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that multiplies bfloat16; others do it too, slowly."""
    monkeypatch.setattr(cpu, "why_not", lambda: None)


@pytest.fixture
def eight_bits(bfloat16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU could multiply in eight bits: weights are in eight bits, products in the model's precision."""
    monkeypatch.setattr(fp8_products, "why_not", lambda *_: None)
    monkeypatch.setattr("pab_core.models.fp8.LEAST_WEIGHTS", 1)


@pytest.fixture
def pipes(folder: Path, bfloat16: None) -> list[Pipeline]:
    return load_beside(find_model(folder), ["fast"], CPU)


def measured(pipes: list[Pipeline], path: Path, clips: list[Clip] = CLIPS, **more: Any) -> QualityReport:
    given: dict[str, Any] = {"lpips": None, "batch": 2, "repeat": 1} | more
    return measure_quality(pipes[0], ["pab246"], clips, path, others=pipes[1:], **given)


@pytest.mark.usefixtures("bfloat16")
def test_policies_at_another_speed_beside_exact(folder: Path, tmp_path: Path):
    out = tmp_path / "a"
    given = ("quality", "--model", folder, "-p", "pab246", "-p", "steps8", *FAST, "--repeat", "3", "-o", out)
    report = told(*given, "--speed", "fast")
    assert names(report)[:6] == ["off", "pab246", "steps8", "off at fast", "pab246 at fast", "steps8 at fast"]
    assert (report["header"]["speeds"], report["header"]["precision"]) == (["exact", "fast"], "float32")
    rows = {row["policy"]: row for row in report["policies"]}
    for name in ("off", "pab246", "steps8"):
        plain, fast = rows[name], rows[f"{name} at fast"]
        assert fast["plain"] == name
        assert fast["time_over_plain"]["count"] == 2  # the first of three rounds warms up
        assert fast["reused"] == plain["reused"]
        assert 20 < fast["psnr"]["mean"] < 100, "computed otherwise, and near"
        assert "rival" not in fast
    assert rows["off at fast"]["less_plain"] == {}, "exact without reuse is what all are compared with"
    plain, fast = rows["pab246"]["psnr"], rows["pab246 at fast"]
    assert plain["mean"] != fast["psnr"]["mean"]
    assert fast["less_plain"]["psnr"]["mean"] == pytest.approx(fast["psnr"]["mean"] - plain["mean"])
    markdown = (out / "quality.md").read_text(encoding="utf-8")
    table = markdown.partition("| policy | time over exact | LPIPS more | PSNR dB more |")[2]
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == [
        "| off at fast",
        "| pab246 at fast",
        "| steps8 at fast",
    ]
    assert "2 clips, exact (float32) and at fast; device cpu" in table
    assert told(*given, "--speed", "fast") == report, "nothing is measured anew"
    assert "holds results of other settings" in refused(*given)


@pytest.mark.usefixtures("bfloat16")
def test_results_without_other_speeds_are_not_taken_for_them(folder: Path, tmp_path: Path):
    given = ("quality", "--model", folder, "-p", "pab246", *FAST, "-o", tmp_path / "a")
    report = told(*given)
    assert "speeds" not in report["header"]
    assert "holds results of other settings" in refused(*given, "--speed", "fast")
    assert told(*given) == report


def test_videos_at_another_speed_are_those_of_a_model_loaded_so(folder: Path, tmp_path: Path, pipes: list[Pipeline]):
    lpips = random_lpips()
    report = measured(pipes, tmp_path / "a.jsonl", CLIPS[:1], lpips=lpips)
    exact, fast = (Pipeline.load(folder, device="cpu", speed=speed) for speed in ("exact", "fast"))
    (plain,), _ = make_videos(exact, CLIPS[:1], exact.schedule("off"))
    assert plain is not None
    for policy in ("off", "pab246"):
        (video,), _ = make_videos(fast, CLIPS[:1], fast.schedule(policy))
        assert video is not None
        far = compare(video, plain, lpips)
        found = report.row(f"{policy} at fast").values
        assert [found[metric][0] for metric in ("psnr", "ssim", "lpips")] == [far.psnr, far.ssim, far.lpips]
    more = report.against_plain(report.row("pab246 at fast"), "lpips")
    assert more is not None
    (at_fast,), (as_it_is,) = (report.row(name).values["lpips"] for name in ("pab246 at fast", "pab246"))
    assert more.mean == at_fast - as_it_is
    assert report.against_plain(report.row("off at fast"), "lpips") is None


def test_an_interrupted_measurement_goes_on_at_each_speed(
    tmp_path: Path, pipes: list[Pipeline], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.jsonl"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 6:  # off, pab246 and off at fast, of the first two clips
            raise Stop

    with pytest.raises(Stop):
        measured(pipes, path, on_progress=stop)
    before = path.read_text(encoding="utf-8")
    made: list[tuple[str, str, str]] = []
    real = quality.make_videos

    def noted(pipe: Pipeline, clips: Any, table: Any, **more: Any) -> Any:
        made.append((table.policy, pipe.speed, clips[0].prompt))
        return real(pipe, clips, table, **more)

    monkeypatch.setattr(quality, "make_videos", noted)
    report = measured(pipes, path)
    first = [(policy, speed) for policy, speed, prompt in made if prompt == CLIPS[0].prompt]
    assert first[:2] == [("off", "exact"), ("pab246", "fast")], "the reference, and what lacked"
    assert ("off", "fast") not in first
    assert ("pab246", "exact") not in first
    second = [(policy, speed) for policy, speed, prompt in made if prompt != CLIPS[0].prompt]
    assert {("off", "exact"), ("pab246", "exact"), ("off", "fast"), ("pab246", "fast")} <= set(second)
    assert path.read_text(encoding="utf-8").startswith(before)
    count = len(made)
    assert measured(pipes, path) == report
    assert len(made) == count


def written(pipe: Pipeline, path: Path, about: dict[str, Any], times: dict[str, Any], lines: dict[str, Any]) -> None:
    """Results as a measurement of one clip leaves them: of each policy its table's policy and its values."""
    header = {"model": "tiny", "weights": "random", "steps": 10, "clips": [["a red ball rolls left", 1]]}
    clip = {"prompt": "a red ball rolls left", "seed": 1}
    found: list[Any] = [{"header": header | {"lpips": False} | about}]
    found.append({"what": "times", "rivals": {}, "machine": {"device": "cpu"}} | times)
    for name, (policy, values) in lines.items():
        found.append({"policy": name, "table": digest(pipe.schedule(policy)), **clip, **values})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in found), encoding="utf-8")


@pytest.fixture
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(quality, "make_videos")
    monkeypatch.delattr(quality, "measure_speed")


@pytest.mark.usefixtures("nothing_made")
def test_results_from_before_there_were_speeds_go_on(pipe: Pipeline, tmp_path: Path):
    path, near = tmp_path / "a.jsonl", {"reused": 0.25, "psnr": 40.0, "ssim": 0.99}
    times = {
        "policies": {"pab246": digest(pipe.schedule("pab246"))},
        "seconds": {"off": 2.0, "pab246": 1.6, "pab246, fp8": 1.5, "steps8": 1.6},
        "reused": {"off": 0.0, "pab246": 0.25, "pab246, fp8": 0.25},
        "over_plain": {"pab246, fp8": [0.9, 1.0]},
        "rivals": {"pab246": "steps8"},
    }
    lines = {"off": ("off", {"reused": 0.0}), "pab246": ("pab246", near), "pab246, fp8": ("pab246", near)}
    lines["steps8"] = ("steps8", {"reused": 0.0, "psnr": 30.0, "ssim": 0.9})
    written(pipe, path, {"kept": "fp8"}, times, lines)
    before = path.read_bytes()
    report = measure_quality(pipe, ["pab246"], CLIPS[:1], path, lpips=None, kept="fp8", repeat=1)
    assert path.read_bytes() == before
    assert [row.policy for row in report.rows] == ["off", "pab246", "pab246, fp8", "steps8"]
    kept = report.to_json()["policies"][2]
    assert (kept["plain"], kept["seconds"], kept["speedup"]) == ("pab246", 1.5, 1.3333)
    assert kept["time_over_plain"]["mean"] == 0.95
    assert kept["less_plain"]["psnr"]["mean"] == 0
    assert "| policy, updates kept as | time over as they are | LPIPS more | PSNR dB more |" in report.to_markdown()
    assert list(report.to_json()["header"]) == ["model", "weights", "steps", "lpips", "kept", "machine"]


@pytest.mark.usefixtures("nothing_made")
def test_what_decides_in_the_run_is_timed_by_what_it_reuses_at_its_speed(pipe: Pipeline, tmp_path: Path):
    path, policy = tmp_path / "a.jsonl", TeaCache(50, (1e-9, 0.0))
    times = {
        "policies": {"teacache": digest(pipe.schedule(policy))},
        "seconds": {"off": 4.0, "teacache": 3.0, "off at fast": 2.0, "teacache at fast": 1.6},
        "reused": {"off": 0.0, "teacache": 0.4, "off at fast": 0.0, "teacache at fast": 0.4},
        "over_plain": {"off at fast": [0.5], "teacache at fast": [0.53]},
    }
    near = {"reused": 0.8, "psnr": 40.0, "ssim": 0.99}  # twice what the timed clip reused
    lines = {"off": ("off", {"reused": 0.0}), "off at fast": ("off", near | {"reused": 0.0})}
    lines |= {"teacache": (policy, near), "teacache at fast": (policy, near)}
    written(pipe, path, {"speeds": ["exact", "fast"], "precision": "float32"}, times, lines)
    others = [replace(pipe, speed="fast")]
    report = measure_quality(pipe, [policy], CLIPS[:1], path, lpips=None, others=others, repeat=1)
    assert [(row.policy, row.seconds) for row in report.rows] == [
        ("off", 4.0),
        ("teacache", pytest.approx(2.0)),
        ("off at fast", 2.0),
        ("teacache at fast", pytest.approx(1.2)),
    ]
    assert report.row("teacache at fast").speedup == pytest.approx(4 / 1.2)


@pytest.mark.usefixtures("eight_bits")
def test_eight_bits_are_put_beside_bfloat16(folder: Path, tmp_path: Path):
    exact, fast, fp8 = load_beside(find_model(folder), ["fast", "fp8"], CPU)
    assert (exact.speed, fast.speed, fp8.speed) == ("exact", "fast", "fp8")
    assert {weight.dtype for weight in exact.transformer.parameters()} == {torch.bfloat16}
    assert fast.transformer is exact.transformer, "the same weights"
    assert any(isinstance(layer, Fp8Linear) and layer.products for layer in fp8.transformer.modules())
    assert exact.text_encoder is fast.text_encoder is fp8.text_encoder
    given = ("quality", "--model", folder, "-p", "pab246", *FAST, "--kept", "fp8", "-o", tmp_path / "a")
    report = told(*given, "--speed", "fast", "--speed", "fp8")
    assert (report["header"]["speeds"], report["header"]["precision"]) == (["exact", "fast", "fp8"], "bfloat16")
    rows = {row["policy"]: row for row in report["policies"]}
    assert rows["off at fast"]["psnr"]["mean"] == 100, "on a CPU this is bfloat16, which exact is here, too"
    assert 20 < rows["off at fp8"]["psnr"]["mean"] < 60
    forms = {name for name in rows if name.startswith("pab246")}
    assert forms == {f"pab246{kept}{speed}" for kept in ("", ", fp8") for speed in ("", " at fast", " at fp8")}
    assert rows["pab246, fp8 at fp8"]["plain"] == "pab246"


def test_without_other_speeds_the_model_is_loaded_as_for_a_video(folder: Path):
    (alone,) = load_beside(find_model(folder), [], CPU)
    usual = Pipeline.load(folder, device="cpu")
    assert alone.speed == usual.speed
    for ours, theirs in zip(alone.transformer.parameters(), usual.transformer.parameters(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_speeds_that_cannot_be_are_told_before_anything_is_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "a"
    given = ("quality", "--model", folder, "-p", "pab246", *FAST, "--device", "cpu", "-o", out)
    monkeypatch.setattr(cpu, "why_not", lambda: None)
    said = refused(*given, "--speed", "fast", "--speed", "fp8")
    assert "Arithmetic in eight bits needs an NVIDIA GPU" in said
    assert "So the speed fp8 cannot be measured on this machine: leave it out." in said
    assert "It runs without that" not in said
    assert "no speed named 'warp' is measured: choose fast or fp8" in refused(*given, "--speed", "warp")
    assert "no speed named 'exact' is measured" in refused(*given, "--speed", "exact")
    assert "fast is given twice" in refused(*given, "--speed", "fast", "--speed", "fast")
    monkeypatch.setattr(cpu, "why_not", lambda: "This processor is old.")
    assert "This processor is old. So the speed fast cannot be measured" in refused(*given, "--speed", "fast")
    assert not out.exists()


def test_a_gpu_is_asked_for_eight_bits_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """The demo models run in float32 otherwise, in which no GPU has them."""
    asked: list[torch.dtype] = []

    def choose(speed: str, device: torch.device, dtype: torch.dtype, *, trying: bool) -> tuple[str, str]:
        asked.append(dtype)
        return (speed, "") if len(asked) < 4 else ("fast", "A GPU is too old. It runs without that.")

    monkeypatch.setattr("pab_core.evaluate.quality_speeds.choose_speed", choose)
    spec, gpu = model_spec("demo"), torch.device("cuda")
    check_beside(spec, ["fast"], gpu)
    check_beside(spec, ["fast", "fp8"], gpu)
    assert asked == [torch.float32, torch.bfloat16, torch.bfloat16]
    with pytest.raises(PabError, match=r"^A GPU is too old\. So the speed fp8 cannot be measured"):
        check_beside(spec, ["fp8"], gpu)


def test_fewer_steps_at_another_speed_are_not_of_the_line_of_fewer_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    near = {"lpips": (0.1, 0.2)}
    rows = (
        QualityRow("steps8", 1.0, 2.0, 0.0, near, None),
        QualityRow("steps8 at fast", 0.5, 4.0, 0.0, near, None, "steps8", (0.5,)),
        QualityRow("pab246", 1.5, 1.3, 0.3, near, None),
    )
    draw_quality(QualityReport({"model": "tiny"}, 2, rows), tmp_path / "a.png")
    made: list[Any] = drawn[0].axes[0].containers
    found = {bars.get_label(): list(bars.lines[0].get_xdata()) for bars in made}
    assert found == {"fewer steps": [1.0], "policies": [0.5, 1.5]}
