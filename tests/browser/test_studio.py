"""The studio in a real browser, with the trained demo model.

PAB_SCREENSHOTS=folder keeps a picture of every page.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from pathlib import Path

import psutil
import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Page, expect
from running_studio import RunningStudio, open_studio

from pab_core.app.history import History
from pab_core.app.making import write_thumbnail
from pab_core.video_io import write_mp4

PROMPT = "a blue cube slides right over a wooden floor"


def shoot(page: Page, name: str) -> None:
    """Keeps a screenshot where the tests are asked to."""
    folder = os.environ.get("PAB_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fill_in(page: Page, seed: int, steps: int | None = None) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    page.locator("#pab-seed").locator("input, textarea").fill(str(seed))
    if steps is not None:
        page.locator("#pab-steps input").fill(str(steps))


def cells(page: Page, kind: str) -> int:
    """Cells of a row in the schedule picture that are reused."""
    return page.locator(f"#pab-schedule g[data-kind={kind}] rect[stroke]").count()


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_generate_shows_progress_a_preview_and_a_playing_video(page: Page):
    fill_in(page, 4)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-stage img")).to_be_visible()
    bar = page.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"\d+"))
    expect(page.locator("#pab-stage .pab-status")).to_contain_text(re.compile(r"Step \d+ of 30 · about \d+ s left"))
    shoot(page, "generating")
    video = page.locator("#pab-stage video")
    expect(video).to_be_visible()
    wait_until(lambda: video.evaluate("v => v.readyState >= 2 && v.currentTime > 0"))
    assert video.evaluate("v => [v.videoWidth, v.videoHeight, Math.round(v.duration * 16)]") == [192, 128, 34]
    expect(page.locator("#pab-stage .pab-status")).to_contain_text("seed 4")
    expect(page.locator("#pab-generate")).to_be_enabled()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert re.fullmatch(r"pab-[0-9a-f]{32}\.mp4", download.value.suggested_filename)
    shoot(page, "create")


def test_the_schedule_follows_levels_and_sliders(page: Page):
    assert (cells(page, "spatial"), cells(page, "cross")) == (9, 14)
    saving = page.locator(".pab-saving strong").inner_text()
    page.locator("#pab-policy").get_by_text("Fast").click()
    wait_until(lambda: cells(page, "spatial") == 13)
    assert page.locator(".pab-saving strong").inner_text() != saving
    slider = page.locator("#pab-spatial input[type=range]")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 4 / 11, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    wait_until(lambda: cells(page, "spatial") == 0)
    expect(page.locator("#pab-policy input:checked")).to_have_value("custom")
    assert cells(page, "temporal") > 0
    slider.focus()
    page.keyboard.press("ArrowRight")
    wait_until(lambda: cells(page, "spatial") == 9)
    page.locator("#pab-policy").get_by_text("Off").click()
    wait_until(lambda: "Everything is computed" in page.locator(".pab-saving").inner_text())


def test_an_idea_fills_in_what_the_model_can_make(page: Page):
    expect(page.locator("#pab-knows")).to_contain_text("a coloured ball, cube, cylinder or cone")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    before = prompt.input_value()
    page.locator("#pab-idea").click()
    expect(prompt).not_to_have_value(before)
    assert re.search("ball|sphere|cube|box|block|cylinder|can|tube|cone", prompt.input_value())


def test_cancel_ends_a_run_and_nothing_is_kept(page: Page, studio: RunningStudio):
    before = set((studio.data / "videos").iterdir())
    fill_in(page, 1, steps=200)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-stage .pab-status")).to_contain_text("Step")
    clicked = time.monotonic()
    page.locator("#pab-cancel").click()
    expect(page.locator("#pab-stage")).to_contain_text("Cancelled. Nothing was kept.")
    assert time.monotonic() - clicked < 5
    expect(page.locator("#pab-generate")).to_be_enabled()
    assert set((studio.data / "videos").iterdir()) == before


def test_mistakes_stand_beside_their_fields(page: Page):
    fill_in(page, 1, steps=0)
    expect(page.get_by_role("alert")).to_contain_text("The number of steps must be a whole number")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-generate")).to_be_enabled()
    expect(page.locator("#pab-stage video")).to_have_count(0)
    page.locator("#pab-steps input").fill("2")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_broken_picture_is_told_and_a_good_one_is_shown(page: Page, tmp_path: Path):
    from PIL import Image

    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (96, 64), (200, 30, 30)).save(tmp_path / "red.png")
    page.locator("#pab-pictures").get_by_text("Start from a picture").click()
    upload = page.locator("input[type=file]").first
    upload.set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("could not be read as a picture")
    upload.set_input_files(tmp_path / "red.png")
    expect(page.get_by_alt_text("First frame")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_compare_plays_both_in_step_and_is_found_again(page: Page, studio: RunningStudio):
    fill_in(page, 3, steps=0)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#pab-what")).to_contain_text("Steps: The number of steps must be a whole number")
    page.get_by_role("tab", name="Create").click()
    page.locator("#pab-steps input").fill("10")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#pab-what")).to_contain_text(PROMPT)
    expect(page.locator("#pab-what")).to_contain_text("192x128, 34 frames, 10 steps, seed 3")
    page.get_by_role("button", name="Make both").click()
    expect(page.locator(".pab-pair video")).to_have_count(2)
    expect(page.locator("#pab-compared table")).to_contain_text("SSIM")
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
    expect(explore.locator("svg.pab-schedule")).to_have_count(3)
    expect(explore).to_contain_text("pab calibrate --model demo")
    explore.get_by_text("More exactly").click()
    expect(explore).to_contain_text("pab bench quality --model demo --output")
    expect(explore).to_contain_text("cpu: ready")
    write_measurements(studio.data / "bench")
    page.get_by_role("button", name="Refresh").click()
    expect(explore.locator("svg.pab-chart")).to_have_count(2)
    expect(
        explore.get_by_role("img", name=re.compile("Speed against quality .*pab246: 1.20x, LPIPS 0.02"))
    ).to_be_visible()
    expect(
        explore.get_by_role("img", name=re.compile("How much attention changes .*Spatial: 0.8 - 0.1 - 0.6"))
    ).to_be_visible()
    shoot(page, "explore")


def test_a_measurement_shows_how_far_it_is_and_is_cancelled(page: Page, studio: RunningStudio):
    page.get_by_role("tab", name="Explore").click()
    machine = page.locator("#pab-machine")
    expect(machine).to_contain_text("cpu: ready")
    page.get_by_role("button", name="Measure on this machine").click()
    progress = page.locator("#pab-measuring")
    expect(progress.get_by_role("progressbar")).to_be_visible()
    expect(machine).to_contain_text("cpu: working")  # by itself: nothing is pressed
    expect(progress).to_contain_text(re.compile(r"Video 1 of 21 · Step \d+ of 30"))
    shoot(page, "measuring")
    open_studio(page, studio.url)
    page.get_by_role("tab", name="Explore").click()
    expect(progress).to_contain_text("of 21")
    page.locator("#pab-cancel-measure").click()
    expect(progress).to_contain_text("Cancelled. The chart is as it was.")
    expect(machine).to_contain_text("cpu: ready")
    expect(page.locator("#pab-measure")).to_be_enabled()
    assert not (studio.data / "bench" / "demo-studio").exists()


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


def test_a_reloaded_page_finds_its_running_job_and_then_its_video(page: Page, studio: RunningStudio):
    fill_in(page, 21, steps=60)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-stage .pab-status")).to_contain_text("Step")
    open_studio(page, studio.url)
    expect(page.locator("#pab-stage .pab-status")).to_contain_text(re.compile(r"Step \d+ of 60"))
    expect(page.locator("#pab-generate")).to_be_disabled()
    page.get_by_text("中文").click()
    expect(page.get_by_role("button", name="生成")).to_be_visible()
    video = page.locator("#pab-stage video")
    expect(video).to_be_visible()
    expect(page.locator("#pab-generate")).to_be_enabled()
    page.get_by_text("English").click()
    expect(page.locator("#pab-stage .pab-status")).to_contain_text("seed 21")
    open_studio(page, studio.url)
    expect(video).to_be_visible()
    fill_in(page, 22, steps=200)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-stage .pab-status")).to_contain_text("Step")
    open_studio(page, studio.url)
    expect(page.locator("#pab-cancel")).to_be_enabled()
    page.locator("#pab-cancel").click()
    expect(page.locator("#pab-stage")).to_contain_text("Cancelled. Nothing was kept.")


@pytest.mark.parametrize("model", ["demo-latte", "demo-plan"])
def test_the_other_families_demo_models_make_videos(page: Page, model: str):
    page.locator("#pab-model input").click()
    page.get_by_role("option", name=re.compile("Latte" if model == "demo-latte" else "Plan")).click()
    expect(page.locator("#pab-negative")).to_be_visible()
    wait_until(lambda: page.locator("#pab-frames input").input_value() == ("16" if model == "demo-latte" else "29"))
    fill_in(page, 2, steps=6)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-stage video")).to_be_visible()
    shoot(page, model)


def test_history_survives_a_restart(studio: RunningStudio, context: BrowserContext):
    page = context.new_page()
    open_studio(page, studio.url)
    fill_in(page, 11, steps=6)
    page.locator("#pab-policy").get_by_text("Fast").click()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#pab-stage video")).to_be_visible()
    studio.stop()
    studio.start()
    open_studio(page, studio.url)
    page.get_by_role("tab", name="History").click()
    pictures = page.locator("#pab-gallery button.thumbnail-item")
    expect(pictures.first).to_be_visible()
    count = pictures.count()
    pictures.first.click()
    details = page.locator("#pab-details")
    expect(details.locator("table")).to_contain_text(PROMPT)
    video = details.locator("video")
    wait_until(lambda: video.evaluate("v => v.readyState >= 2"))
    shoot(page, "history")
    with page.expect_download() as download:
        page.locator("#pab-workflow").click()
    assert '"PABSampler"' in Path(download.value.path()).read_text(encoding="utf-8")
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt")).to_have_value(PROMPT)
    expect(page.locator("#pab-seed").locator("input, textarea")).to_have_value("11")
    expect(page.locator("#pab-steps input")).to_have_value("6")
    expect(page.locator("#pab-policy input:checked")).to_have_value("fast")
    page.get_by_role("tab", name="History").click()
    pictures.first.click()
    page.locator("#pab-delete").click()
    page.locator("#pab-sure").click()
    expect(pictures).to_have_count(count - 1)


@pytest.mark.parametrize(("wide", "high"), [(1280, 500), (390, 844)])
def test_every_video_of_a_long_history_can_be_chosen_and_is_then_seen(
    browser: Browser, studio: RunningStudio, wide: int, high: int
):
    fill_history(studio, 9)
    context = browser.new_context(viewport={"width": wide, "height": high}, locale="en-US")
    page = context.new_page()
    open_studio(page, studio.url)
    page.get_by_role("tab", name="History").click()
    pictures = page.locator("#pab-gallery button.thumbnail-item")
    expect(pictures.nth(8)).to_be_attached()
    for place in range(pictures.count()):
        pictures.nth(place).scroll_into_view_if_needed()
        box = pictures.nth(place).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= wide
    pictures.nth(8).click()
    expect(page.locator("#pab-details video")).to_be_in_viewport()
    shoot(page, f"history-{wide}")
    context.close()


def fill_history(studio: RunningStudio, count: int) -> None:
    """Videos of a former run, as far as the page needs them."""
    history = History(studio.data / "history.sqlite", studio.data / "videos")
    about = {"model": "demo", "policy": "off", "steps": 30, "guidance": 4.0, "fps": 16, "seconds": {"denoise": 1.0}}
    about |= {"width": 192, "height": 128, "num_frames": 34}
    for seed in range(count):
        video, thumbnail = history.files_of(secrets.token_hex(16))
        frames = torch.full((2, 128, 192, 3), 25 * seed, dtype=torch.uint8)
        write_mp4(video, frames, 16, {})
        write_thumbnail(frames, thumbnail)
        request = {"prompt": PROMPT, "seed": str(seed)}
        history.add(video.stem.removeprefix("pab-"), "", request, {**about, **request, "seed": seed})


def test_chinese_by_the_switch_and_by_the_browser(page: Page, browser: Browser, studio: RunningStudio):
    page.get_by_text("中文").click()
    expect(page.get_by_role("button", name="生成")).to_be_visible()
    expect(page.get_by_role("tab", name="历史")).to_be_visible()
    expect(page.locator("#pab-schedule")).to_contain_text("空间")
    expect(page.locator("#pab-model input")).to_have_value("演示模型")
    expect(page.locator("html")).to_have_attribute("lang", "zh")  # by which screen readers pronounce it
    shoot(page, "chinese")
    page.get_by_text("English").click()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    chinese = browser.new_context(locale="zh-CN")
    other = chinese.new_page()
    open_studio(other, studio.url)
    expect(other.get_by_role("button", name="生成")).to_be_visible()
    chinese.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, studio: RunningStudio, scheme):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, locale="en-US")
    page = phone.new_page()
    open_studio(page, studio.url)
    for tab in ("Create", "Compare", "Explore", "History"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page.get_by_role("tab", name="Create").click()
    order = [
        page.locator(part).bounding_box() for part in ("#pab-prompt", "#pab-generate", "#pab-stage", "#pab-spatial")
    ]
    tops = [box["y"] for box in order if box]
    assert tops == sorted(tops)
    start, cancel = (page.locator(f"#pab-{name}").bounding_box() for name in ("generate", "cancel"))
    assert start is not None
    assert cancel is not None
    assert start["y"] == cancel["y"]  # side by side: nothing is pushed off the first screen
    assert len(tops) == 4
    shoot(page, f"phone-{scheme}")
    phone.close()


def test_a_killed_worker_is_told_in_words_and_the_next_video_is_made(context: BrowserContext, tmp_path: Path):
    studio = RunningStudio(tmp_path, devices="cpu*2")
    try:
        page = context.new_page()
        open_studio(page, studio.url)
        fill_in(page, 1, steps=100)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#pab-stage .pab-status")).to_contain_text("Step")
        page.get_by_role("tab", name="Explore").click()
        expect(page.locator("#pab-explore")).to_contain_text("cpu: working")
        shoot(page, "explore-pool")
        page.get_by_role("tab", name="Create").click()
        workers = [child for child in psutil.Process(studio.process.pid).children(True) if is_worker(child)]
        assert len(workers) == 2
        workers[1].kill()
        expect(page.locator("#pab-stage").get_by_role("alert")).to_contain_text(
            re.compile(r"The worker of rank \d \(cpu\)")
        )
        shoot(page, "worker-died")
        fill_in(page, 1, steps=4)
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#pab-stage video")).to_be_visible()
    finally:
        studio.stop()


def is_worker(process: psutil.Process) -> bool:
    return "pab_core.parallel.pool.worker" in process.cmdline()


@pytest.mark.parametrize("tab", ["Create", "Compare", "Explore", "History"])
def test_every_control_has_a_name(page: Page, studio: RunningStudio, tab: str):
    """What a screen reader says of it; hidden ones aside."""
    if tab == "History":
        fill_history(studio, 1)
    page.get_by_role("tab", name=tab).click()
    if tab == "Create":
        page.locator("#pab-pictures").get_by_text("Start from a picture").click()
    elif tab == "History":
        page.locator("#pab-gallery button.thumbnail-item").first.click()
        expect(page.locator("#pab-details video")).to_be_visible()
    page.wait_for_timeout(500)
    names = page.evaluate(
        """[...document.querySelectorAll('main input, main textarea, main button, main video, main svg[role=img]')]
        .filter(e => e.getClientRects().length && e.type !== 'file')
        .map(e => [e.outerHTML.slice(0, 120), (e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
                   || e.textContent.trim() || [...(e.labels || [])].map(l => l.textContent.trim()).join(''))])"""
    )
    assert len(names) > 8
    assert [what for what, name in names if not name] == []
