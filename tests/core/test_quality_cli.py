"""`pab bench quality`, `ablation`, `ranges` and `scores` on a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import pab
from torch import Tensor

from pab_core import cli_measuring
from pab_core.broadcast import Policy
from pab_core.cli_measuring import CALIBRATION, MEASUREMENT, demo_prompts, prompts_of
from pab_core.cli_quality import each_alone, given_or_all, scores_too, without_each
from pab_core.errors import PabError
from pab_core.evaluate.prompts import PROMPTS
from pab_core.evaluate.results import ResultFile
from pab_core.evaluate.vmaf import Vmaf
from pab_core.models.registry import model_spec

ROOT = Path(__file__).resolve().parent.parent.parent
FAST = ("--clips", "2", "--seeds", "1", "--repeat", "1", "--no-lpips", "--no-vmaf", "--json")


def told(*arguments: str | Path) -> dict[str, Any]:
    result = pab("bench", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = pab("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    return result.stderr


def names(report: dict[str, Any]) -> list[str]:
    return [row["policy"] for row in report["policies"]]


def test_quality_writes_json_markdown_and_a_figure(folder: Path, tmp_path: Path):
    out = tmp_path / "results"
    given = ("quality", "--model", folder, "-p", "pab246", "-p", "steps5", "-p", "pab246+linear", "-o", out, *FAST)
    report = told(*given)
    assert names(report)[:4] == ["off", "pab246", "steps5", "pab246+linear"]
    assert report["clips"] == 2
    assert sorted(p.name for p in out.iterdir()) == ["quality.json", "quality.jsonl", "quality.md", "quality.png"]
    assert json.loads((out / "quality.json").read_text(encoding="utf-8")) == report
    assert "| pab246+linear |" in (out / "quality.md").read_text(encoding="utf-8")
    assert (out / "quality.png").stat().st_size > 5000
    # Again: nothing is measured anew, so times are the same to the digit.
    assert told(*given) == report
    shown = pab("bench", *given[:-1])
    assert "2 of 2 clips, in" in shown.stdout


def test_quality_with_vmaf_and_more_clips_timed_together(folder: Path, tmp_path: Path):
    given = ("quality", "--model", folder, "-p", "pab246", "-o", tmp_path / "a", "--timed-clips", "2")
    report = told(*given, "--clips", "1", "--seeds", "1", "--repeat", "1", "--no-lpips", "--json")
    assert Vmaf.find() is not None, "imageio-ffmpeg's ffmpeg has libvmaf"
    assert 0 <= report["policies"][1]["vmaf"]["mean"] <= 100
    assert report["header"]["timed_clips"] == 2


def test_updates_kept_in_eight_bits_beside_those_kept_as_they_are(folder: Path, tmp_path: Path):
    given = ("quality", "--model", folder, "-p", "pab246", "-p", "steps8", *FAST, "-o", tmp_path / "a", "--kept", "fp8")
    report = told(*given)
    rows = {row["policy"]: row for row in report["policies"]}
    plain, fp8 = rows["pab246"], rows["pab246, fp8"]
    assert "steps8, fp8" not in rows  # nothing is kept
    assert plain["psnr"]["mean"] != fp8["psnr"]["mean"]
    assert fp8["psnr"]["mean"] == pytest.approx(plain["psnr"]["mean"], abs=1)
    assert fp8["plain"] == "pab246"
    assert fp8["less_plain"]["psnr"]["mean"] == pytest.approx(fp8["psnr"]["mean"] - plain["psnr"]["mean"])
    assert fp8["time_over_plain"]["count"] == 1
    assert fp8["time_over_plain"]["mean"] == pytest.approx(fp8["seconds"] / plain["seconds"], rel=1e-2)
    assert "rival" not in fp8
    assert report["header"]["kept"] == "fp8"
    markdown = (tmp_path / "a" / "quality.md").read_text(encoding="utf-8")
    assert "updates also kept as fp8" in markdown
    assert "| pab246, fp8 |" in markdown.partition("time over as they are")[2]
    assert told(*given) == report
    assert "no storage named 'disk'" in refused(*given[:-1], "disk")


def test_a_killed_measurement_goes_on(folder: Path, tmp_path: Path):
    out = tmp_path / "a"
    more = ["-p", "pab246", "-p", "pab444", "-o", str(out), *FAST, "--clips", "8", "--batch", "1"]
    command = ["bench", "quality", "--model", str(folder), *more]
    lines = out / "quality.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pab_core", *command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 120
        while not (lines.is_file() and lines.read_text(encoding="utf-8").count("\n") > 6):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert not (out / "quality.json").exists()
    before = lines.read_text(encoding="utf-8")
    report = told(*command[1:])
    assert report["clips"] == 8
    whole = before[: before.rfind("\n") + 1]
    assert lines.read_text(encoding="utf-8").startswith(whole)


def test_in_little_time_it_reports_whole_clips_and_goes_on(folder: Path, tmp_path: Path):
    given = ("quality", "--model", folder, "-p", "pab246", "-o", tmp_path / "a", *FAST, "--batch", "1")
    short = told(*given, "--seconds", "0.001")
    assert short["clips"] == 1
    assert told(*given)["clips"] == 2


def test_the_ablation_leaves_out_each_part(folder: Path, tmp_path: Path):
    report = told("ablation", "--model", folder, "-o", tmp_path / "a", *FAST)
    wanted = ["off", "pab246", "pab246 spatial=1", "pab246 temporal=1", "pab246 cross=1", "pab246 mlp=off"]
    assert names(report)[:6] == wanted
    reused = {row["policy"]: row["reused"] for row in report["policies"]}
    assert all(reused[name] < reused["pab246"] for name in wanted[2:])


def test_scores_are_put_beside_outputs(folder: Path, tmp_path: Path):
    report = told("scores", "--model", folder, "-o", tmp_path / "a", *FAST)
    assert names(report)[:3] == ["off", "pab246", "scores246"]
    with pytest.raises(PabError, match="for a policy named pab, not for tgate"):
        scores_too(model_spec("demo"), ["tgate"])


def test_the_sweep_changes_one_range_at_a_time():
    found = each_alone(model_spec("latte"), [])
    assert [policy.name for policy in found][:2] == ["off spatial=2", "off spatial=3"]
    assert len(found) == 3 * 8
    for policy in found:
        assert isinstance(policy, Policy)
        assert sorted(policy.range_of(kind) > 1 for kind in ("spatial", "temporal", "cross")) == [False, False, True]
        assert not policy.mlp_spatial
        assert policy.window.start > 0


def test_the_policies_to_choose_from():
    spec = model_spec("demo")
    assert given_or_all(spec, ["tgate"]) == ["tgate"]
    usual = given_or_all(spec, [])
    assert "off" not in usual
    assert {"pab246", "pab444", "tgate", "delta-dit", "teacache", "steps20"} <= set(usual)
    assert [p.name for p in without_each(spec, ["pab2-1-1"])] == ["pab2-1-1", "pab2-1-1 spatial=1", "pab2-1-1 mlp=off"]


def test_what_is_wrong_is_said_before_anything_is_measured(folder: Path, tmp_path: Path):
    out = tmp_path / "a"
    given = ("quality", "--model", folder, "-o", out, "--no-lpips")
    assert "no policy named 'pab24'" in refused(*given, "-p", "pab24")
    assert "given twice" in refused(*given, "-p", "pab246", "-p", "pab246")
    assert "prompts must be a whole number from 1 to 10000, not '0'" in refused(*given, "--clips", "0")
    assert "seeds must be a whole number" in refused(*given, "--clips", "1", "--seeds", "x")
    assert "8 prompts for this model, and 9" in refused(*given, "--clips", "9")
    assert "no ranges to leave out" in refused("ablation", "--model", folder, "-p", "delta-dit")
    assert "no ranges to leave out" in refused("ablation", "--model", folder, "-p", "off")
    assert "give one" in refused("ablation", "--model", folder, "-p", "pab246", "-p", "pab357")
    assert "ranges of its own" in refused("ranges", "--model", folder, "-p", "pab246")
    assert "no predictor named 'fast'" in refused(*given, "-p", "pab246+fast")
    assert "keeps no single updates" in refused(*given, "-p", "tgate+linear", "-p", "delta-dit+linear")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    assert "holds no prompt" in refused(*given, "--prompts", empty)
    missing = refused("quality", "--model", folder, "--clips", "1", "--lpips", tmp_path / "none.ckpt")
    assert "does not hold LPIPS' weights" in missing
    assert not out.exists()


def test_a_folder_of_other_settings_is_refused(folder: Path, tmp_path: Path):
    given = ("quality", "--model", folder, "-p", "pab246", "-o", tmp_path / "a", *FAST)
    told(*given)
    assert "holds results of other settings" in refused(*given, "--clips", "1")


def test_a_damaged_result_file_is_told(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    file = ResultFile(path, {"a": (1, 2)})
    file.add({"b": 1})
    assert ResultFile(path, {"a": [1, 2]}).lines == [{"b": 1}]
    path.write_text('{"header": {"a": [1, 2]}}\n{"b": \n{"b": 2}\n', encoding="utf-8")
    with pytest.raises(PabError, match="is damaged"):
        ResultFile(path, {"a": [1, 2]})


def test_results_that_cannot_be_written_are_told(tmp_path: Path):
    file = ResultFile(tmp_path / "out" / "a.jsonl", {})
    file.path.unlink()
    file.path.parent.rmdir()
    with pytest.raises(PabError, match=r"a\.jsonl cannot be written.*the same command goes on"):
        file.add({"b": 1})
    assert not file.lines


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the package alone is installed, which ComfyUI's users and those who make a video have."""
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_all_but_the_figure_is_made(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    told("differences", "--model", folder, "--clips", "1", "-o", tmp_path / "a", "--json")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "differences.json",
        "differences.md",
        "recording.jsonl",
    ]
    assert "matplotlib is not installed, so there is no differences.png" in caplog.text
    schedule = tmp_path / "made.json"
    result = pab("calibrate", "--model", folder, "--clips", "1", "-o", schedule)
    assert result.exit_code == 0, result.output
    assert schedule.is_file()
    assert "so there is no changes.png" in caplog.text


def test_without_torchmetrics_no_clip_is_made_in_vain(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"] or ["torchmetrics"]:
        monkeypatch.setitem(sys.modules, name, None)
    said = refused("quality", "--model", folder, "-p", "pab246", "-o", tmp_path / "a", *FAST)
    assert "SSIM needs the package torchmetrics" in said
    assert not (tmp_path / "a").exists()


def test_prompts_of_calibration_and_of_measurement_share_none():
    asked, seen = (demo_prompts(count, draw) for count, draw in ((64, CALIBRATION), (128, MEASUREMENT)))
    assert (len(asked), len(seen)) == (64, 128)
    assert not set(asked) & set(seen)
    assert all(prompt.text == text for text, prompt in seen.items())
    general = [set(prompts_of(model_spec("latte"), None, 8, draw=draw)) for draw in (CALIBRATION, MEASUREMENT)]
    assert not general[0] & general[1]
    assert set(PROMPTS) == general[0] | general[1]


# VMAF


def clip() -> Tensor:
    """A smooth picture that moves."""
    x = torch.linspace(0, 6, 96)
    rows = [(x[None] + x[:64, None] + 0.3 * t).sin() * 100 + 128 for t in range(8)]
    return torch.stack(rows)[..., None].expand(-1, -1, -1, 3).to(torch.uint8)


def test_vmaf_falls_with_the_distance():
    vmaf = Vmaf.find()
    assert vmaf is not None, "imageio-ffmpeg's ffmpeg has libvmaf"
    plain = clip()
    torch.manual_seed(0)
    noisy, worse = ((plain.float() + n * torch.randn(plain.shape)).clamp(0, 255).to(torch.uint8) for n in (6, 40))
    same, near, far = vmaf(plain, plain), vmaf(noisy, plain), vmaf(worse, plain)
    assert 100 >= same > near > far >= 0
    with pytest.raises(PabError, match="cannot be compared"):
        vmaf(plain[:4], plain)


def test_where_no_ffmpeg_has_vmaf_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    assert Vmaf.find([str(tmp_path / "ffmpeg"), sys.executable]) is None
    monkeypatch.setattr(Vmaf, "find", lambda: None)
    assert cli_measuring.vmaf_of(False) is None
    assert "built without libvmaf" in capsys.readouterr().err
    with pytest.raises(PabError, match="VMAF could not be measured with"):
        Vmaf(str(tmp_path / "ffmpeg"))(clip(), clip())
