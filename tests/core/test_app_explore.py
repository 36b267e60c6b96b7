"""What Explore finds of calibrations and benches, as these write it, and the charts of it."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from pab_core.app.charts import draw_curves, draw_quality
from pab_core.app.measured import measured_of, show_measured
from pab_core.app.models import Offered
from pab_core.app.reports import Point, Quality, find_curves, find_quality, find_speed, packaged_quality
from pab_core.broadcast import find_policy
from pab_core.broadcast.calibrated import own_path
from pab_core.checkpoints import DEMOS, known_model
from pab_core.evaluate.calibration import propose
from pab_core.evaluate.generation import Clip
from pab_core.evaluate.packaged import Curves, packaged_curves
from pab_core.evaluate.quality import measure_quality
from pab_core.evaluate.recording import record, save_recording
from pab_core.evaluate.results import write_report
from pab_core.pipeline import Pipeline
from pab_core.settings import schedule_for

CLIPS = [Clip("a red ball", 1), Clip("a blue cube", 2)]
SVG = "{http://www.w3.org/2000/svg}"


def test_the_curves_are_those_that_a_calibration_recorded(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path))
    spec = pipe.spec
    assert find_curves(spec) is None
    folder = own_path(spec.family, spec.depth).with_suffix(".calibration")
    folder.mkdir(parents=True)
    made = record(pipe, CLIPS, folder / "recording.jsonl")
    save_recording(made, folder / "changes.json")
    proposal = propose(made)
    (folder / "proposal.json").write_text(json.dumps(proposal.to_json()))
    found = find_curves(spec)
    assert found is not None
    assert list(found.kinds) == made.kinds
    for kind in made.kinds:
        assert found.kinds[kind] == pytest.approx(made.of_kind(kind), abs=1e-5)
    assert found.clips == 2
    assert found.calm == pytest.approx((proposal.window.start * spec.steps, proposal.window.stop * spec.steps - 1))
    assert find_curves(replace(spec, name="another")) is None


def test_the_chart_is_of_what_the_newest_bench_measured(pipe: Pipeline, tmp_path: Path):
    report = measure_quality(pipe, ["pab246", "pab579"], CLIPS, tmp_path / "x.jsonl", lpips=None, repeat=1)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, "quality", report)
    old = tmp_path / "old" / "quality.json"
    old.write_text(old.read_text("utf-8").replace('"clips": 2', '"clips": 99'), encoding="utf-8")
    os.utime(old, (1, 1))
    found = find_quality([tmp_path, tmp_path / "nowhere"], pipe.spec.name)
    assert found is not None
    assert found.metric == "psnr"
    assert found.clips == 2
    assert found.machine
    row = report.row("pab579")
    (point,) = (point for point in found.points if point.policy == "pab579")
    assert (point.speedup, point.distance) == pytest.approx((row.speedup, row.summary("psnr").mean), abs=1e-3)
    assert all(point.is_rival == point.policy.startswith("steps") for point in found.points)
    assert find_quality([tmp_path], "another") is None


@pytest.mark.parametrize("name", DEMOS)
def test_every_demo_model_comes_with_curves_of_all_that_it_has(name: str):
    curves, (spec, sampler) = packaged_curves(name), known_model(name)
    assert curves is not None
    table = schedule_for(spec, find_policy("off", spec.family, spec.depth), sampler)
    assert sorted(curves.kinds) == sorted(table.kinds)
    assert {len(row) for row in curves.kinds.values()} == {table.steps - 1}
    assert curves.clips == (32 if name == "demo-plan" else 16)
    assert curves.machine["gpu"]
    assert curves.twice == (name == "demo-plan")  # PNDM
    # The U of the paper: attention changes most at the ends of the run, in the window little.
    assert curves.calm is not None
    start, stop = (round(end) for end in curves.calm)
    for kind in ("spatial", "temporal", "cross"):
        if row := curves.kinds.get(kind):
            assert max(row[0], row[-1]) > 3 * min(row[start:stop])


def test_on_a_fresh_machine_explore_shows_what_comes_with_the_demo_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    demo = Offered("demo", "demo", *known_model("demo"))
    shown = show_measured(demo, tmp_path / "bench", "en")
    assert shown.count("<svg") == 2
    assert "twice" not in shown
    curves, quality = packaged_curves("demo"), packaged_quality("demo")
    assert curves is not None
    assert quality is not None
    assert f"recorded elsewhere: {curves.clips} clips on one {curves.machine['gpu']}." in shown
    told = f"one {quality.machine['gpu']}" if "gpu" in quality.machine else f"a CPU ({quality.machine['processor']}"
    assert f"measured elsewhere: {quality.clips} clips on {told}" in shown
    assert "<code>pab calibrate --model demo</code>" in shown
    assert {"pab246", "pab357", "pab579"} <= {point.policy for point in quality.points}
    assert any(point.is_rival for point in quality.points)
    # Of a folder that bears the name of a demo model, nobody measured anything.
    other = show_measured(replace(demo, source=tmp_path / "demo"), tmp_path / "bench", "en")
    assert "<svg" not in other
    assert "Not recorded for this model yet." in other
    released = show_measured(Offered("open-sora", "open-sora", *known_model("open-sora")), tmp_path, "en")
    assert "<svg" not in released


def test_what_was_measured_here_goes_before_what_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "bench" / "x"
    mine.mkdir(parents=True)
    header = {"model": "demo", "machine": {"device": "2 x NVIDIA A"}}
    rows = [{"policy": "a", "speedup": 2, "lpips": {"mean": 1}}]
    recording = {"model": "demo", "relative": {"spatial/0/0": [1, 2]}, "signal": [[1]] * 3, "timesteps": [3, 2, 1]}
    (mine / "quality.json").write_text(json.dumps({"header": header, "clips": 5, "policies": rows}))
    (mine / "changes.json").write_text(json.dumps(recording))
    shown = show_measured(Offered("demo", "demo", *known_model("demo")), tmp_path / "bench", "en")
    assert "Recorded by pab calibrate on 3 clips" in shown
    assert "Measured here: 5 clips on 2 x NVIDIA A." in shown
    assert "elsewhere" not in shown


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        '{"header": 3, "policies": []}',
        '{"header": {"model": "tiny"}, "policies": [1, {"lpips": 3}, {"lpips": {"mean": "x"}, "speedup": 1}]}',
        '{"header": {"model": "tiny"}, "policies": [{"policy": "a", "lpips": {"mean": NaN}, "speedup": 1}]}',
        '{"model": "tiny", "relative": {"spatial/0/0": ["x"]}, "signal": [], "timesteps": []}',
        '{"model": "tiny", "relative": {"spatial/0/0": [NaN]}, "signal": [], "timesteps": []}',
        '{"model": "tiny", "relative": 3, "signal": [], "timesteps": []}',
    ],
)
def test_other_and_broken_files_are_passed_over(pipe: Pipeline, tmp_path: Path, content: str):
    for name in ("a.json", "b/changes.json", "b/quality.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert find_quality([tmp_path], "tiny") is None
    assert find_curves(replace(pipe.spec, name="tiny"), [tmp_path]) is None
    assert find_speed([tmp_path], "tiny") == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("calm", [None, (9.0, 24.5), (-5.0, 90.0)])
def test_the_u_lies_within_its_frame(language: str, calm: tuple[float, float] | None):
    kinds = {
        "spatial": (0.9, 0.1, 0.5),
        "temporal": (2.0, 0.3, 0.0),
        "cross": (1e-4, 1e-5, 1e-4),
        "mlp": (1.0, 1.0, 1.0),
    }
    picture = ET.fromstring(draw_curves(Curves(kinds, 3, calm), language))
    check_inside(picture, 4 + 4)
    assert "0.9 - 0.1 - 0.5" in (picture.get("aria-label") or "")


@pytest.mark.parametrize(
    "points",
    [
        [Point("pab246", 1.2, 0.02, 0.001), Point("steps20", 1.3, 0.1, 0.01), Point("steps25", 1.1, 0.05, 0)],
        [Point("slow", 0.8, 0.02, 0)],
        [Point("<b>", 3.0, 0.0, 0.0)],
        [Point("pab246", 1.3, 0.002, 0), Point("calibrated-fast", 2.3, 0.0008, 0), Point("steps12", 2.3, 0.06, 0)],
    ],
)
@pytest.mark.parametrize("metric", ["lpips", "psnr"])
def test_the_points_lie_within_their_frame(points: list[Point], metric: str):
    picture = ET.fromstring(draw_quality(Quality(metric, tuple(points), 1, {}), "en"))
    fewer = sum(point.is_rival for point in points)
    check_inside(picture, 2 if fewer else 0)
    names = {text.text: float(text.get("x") or 0) for text in picture.iter(f"{SVG}text")}
    told = {point.policy.removeprefix("steps") for point in points}
    assert set(names) >= told
    assert "steps20: 1.30x" in (picture.get("aria-label") or "") or "20" not in told
    wide = float((picture.get("viewBox") or "").split()[2])
    assert all(names[name] + 6.6 * len(name) <= wide for name in told)


def test_names_that_would_cover_each_other_are_moved_apart():
    """A bench of all policies, many of which are as fast and as near as another."""
    points = [Point(f"pab{i}{i}{i}", 1.3 + 0.01 * i, 0.02 + 0.002 * (i % 3), 0) for i in range(6)]
    points += [Point(f"steps{20 + i}", 1.3 + 0.02 * i, 0.03, 0) for i in range(3)]
    picture = ET.fromstring(draw_quality(Quality("lpips", tuple(points), 1, {}), "en"))
    names = {point.policy.removeprefix("steps") for point in points}
    boxes = [
        (float(e.get("x") or 0), float(e.get("y") or 0), 6.0 * len(e.text or ""))
        for e in picture.iter(f"{SVG}text")
        if e.text in names
    ]
    assert len(boxes) == len(points)
    for i, (x, y, wide) in enumerate(boxes):
        for left, up, across in boxes[i + 1 :]:
            assert abs(y - up) >= 9 or x + wide <= left or left + across <= x


def test_distances_far_apart_are_told_apart():
    points = (
        Point("calibrated", 1.3, 1e-5, 5e-5),
        Point("pab246", 1.32, 1e-3, 1e-4),
        Point("steps20", 1.4, 0.09, 0.01),
    )
    picture = ET.fromstring(draw_quality(Quality("lpips", points, 1, {}), "en"))
    assert {"10⁻⁵", "0.001", "0.1"} <= {text.text for text in picture.iter(f"{SVG}text")}
    near, far = (float(square.get("y") or 0) for square in list(picture.iter(f"{SVG}rect"))[:2])
    assert near - far > 60
    check_inside(picture, 2)


def test_what_reuses_nothing_stands_below_the_least_distance():
    points = (Point("delta-dit", 1, 0, 0), Point("calibrated", 1.4, 1e-3, 3e-4), Point("pab246", 1.4, 0.2, 0.01))
    picture = ET.fromstring(draw_quality(Quality("lpips", points, 1, {}), "en"))
    heights = {text.text: float(text.get("y") or 0) for text in picture.iter(f"{SVG}text")}
    assert heights["0"] > heights["0.001"] > heights["0.01"] > heights["0.1"] > heights["1"]
    none, near, far = (float(square.get("y") or 0) for square in list(picture.iter(f"{SVG}rect"))[:3])
    assert none - near > 20
    assert near - far > 60
    check_inside(picture, 0)


def test_no_name_stands_on_a_mark():
    quality = packaged_quality("demo-plan")
    assert quality is not None
    picture = ET.fromstring(draw_quality(quality, "en"))
    marks = [(float(e.get("cx") or 0), float(e.get("cy") or 0)) for e in picture.iter(f"{SVG}circle")]
    marks += [(float(e.get("x") or 0) + 4, float(e.get("y") or 0) + 4) for e in picture.iter(f"{SVG}rect")]
    assert len(marks) == len(quality.points) + 1  # and that of the legend
    for name in picture.iter(f"{SVG}text"):
        if name.get("class") == "pab-name":
            left, low = float(name.get("x") or 0), float(name.get("y") or 0)
            wide = 6 * len(name.text or "")
            assert not any(left < x < left + wide and low - 8 < y < low for x, y in marks), name.text


def test_each_policy_is_told_with_what_was_measured_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    demo, quality = Offered("demo", "demo", *known_model("demo")), packaged_quality("demo")
    assert quality is not None
    points = {point.policy: point for point in quality.points}

    def told(policy: str, steps: int | None = None, language: str = "en") -> str:
        table = schedule_for(demo.spec, find_policy(policy, "stdit3", demo.spec.depth), demo.sampler, steps)
        return measured_of(demo, table, tmp_path / "bench", language)

    near, far = points["calibrated"], points["pab246"]
    assert told("calibrated") == (
        f"Measured on one {quality.machine['gpu']}: {near.speedup:.2f} times as fast as Off, {near.distance:.6f} from "
        "its video (LPIPS, lower is nearer)"
    )
    assert f"{far.speedup:.2f} 倍，与其视频相比 {far.distance:.4f}（LPIPS" in told("pab246", language="zh")
    assert told("calibrated", steps=20) == told("off") == told("pab999") == ""
    other = replace(demo, source=tmp_path / "demo")
    assert measured_of(other, schedule_for(demo.spec, "pab246", demo.sampler), tmp_path, "en") == ""
    (tmp_path / "bench").mkdir()
    rows = [{"policy": "pab246", "speedup": 1.5, "psnr": {"mean": 44.04}}]
    report = {"header": {"model": "demo", "machine": {"device": "cpu"}}, "clips": 3, "policies": rows}
    (tmp_path / "bench" / "quality.json").write_text(json.dumps(report), encoding="utf-8")
    assert "1.50 times as fast as Off, 44.0 dB from its video (PSNR, higher is nearer)" in told("pab246")
    assert told("calibrated") == ""


def check_inside(picture: ET.Element, lines: int) -> None:
    wide, high = (float(side) for side in (picture.get("viewBox") or "").split()[2:])
    found = list(picture.iter(f"{SVG}polyline"))
    assert len(found) == lines
    places = [tuple(map(float, place.split(","))) for line in found for place in (line.get("points") or "").split()]
    places += [
        (float(e.get("x") or 0), float(e.get("y") or 0)) for kind in ("rect", "text") for e in picture.iter(SVG + kind)
    ]
    assert all(0 <= x <= wide and 0 <= y <= high for x, y in places)
