"""Create in a real browser, with the trained demo models: from a prompt to a video, and what may go wrong."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect
from running_studio import RunningStudio, open_studio
from studio_page import fill_in, shoot, wait_until


def cells(page: Page, kind: str) -> int:
    """Cells of a row in the schedule picture that are reused."""
    return page.locator(f"#pab-schedule g[data-kind={kind}] rect[stroke]").count()


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
    expect(page.locator("#pab-policy input:checked")).to_have_value("calibrated")  # where nobody has chosen
    expect(page.locator("#pab-schedule")).to_contain_text(
        re.compile(r"1\.\d+ times as fast as Off, 0\.0000\d+ from its")
    )
    page.locator("#pab-policy").get_by_text("Quality", exact=True).click()
    wait_until(lambda: cells(page, "cross") == 14)
    assert (cells(page, "spatial"), cells(page, "cross")) == (9, 14)
    saving = page.locator(".pab-saving strong").inner_text()
    page.locator("#pab-policy").get_by_text("Fast", exact=True).click()
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


def test_what_was_calibrated_is_chosen_and_a_slider_leaves_it(page: Page):
    policy = page.locator("#pab-policy")
    policy.get_by_text("Calibrated", exact=True).click()
    expect(page.locator("#pab-schedule")).to_contain_text("Moving a slider begins a schedule of your own, from Off.")
    wait_until(lambda: cells(page, "spatial") == cells(page, "mlp") > 0)
    gentle = cells(page, "spatial")
    policy.get_by_text("Calibrated, fast").click()
    wait_until(lambda: cells(page, "spatial") > gentle)
    page.get_by_text("中文").click()
    expect(policy.get_by_text("校准（快速）")).to_be_visible()
    expect(policy.locator("input:checked")).to_have_value(re.compile("^calibrated-"))
    page.get_by_role("tab", name="对比").click()
    page.locator("#pab-right").get_by_text("校准（快速）").click()
    page.get_by_role("tab", name="创作").click()
    page.get_by_text("English").click()
    page.locator("#pab-spatial input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_until(lambda: (cells(page, "spatial"), cells(page, "cross")) == (9, 0))
    expect(policy.locator("input:checked")).to_have_value("custom")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.locator("#pab-model input").click()
    page.get_by_role("option", name="The demo model of Latte's kind").click()
    expect(policy.locator("input:checked")).to_have_value("calibrated")  # not custom: that was another model's
    expect(page.locator("#pab-schedule g[data-kind=spatial] rect")).to_have_count(50)
    policy.get_by_text("Calibrated, fast").click()
    expect(page.locator("#pab-schedule")).to_contain_text("Chosen by trials")
    expect(page.locator("#pab-schedule g[data-kind=spatial] rect")).to_have_count(50)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#pab-right input:checked")).to_have_value(re.compile("^calibrated-"))


def test_leaving_the_list_of_models_as_it_was_changes_nothing(page: Page):
    page.locator("#pab-policy").get_by_text("Quality", exact=True).click()
    slider = page.locator("#pab-spatial input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.locator("#pab-steps input").fill("12")
    wait_until(lambda: page.locator("#pab-schedule g[data-kind=spatial] rect").count() == 12)
    page.locator("#pab-model input").focus()
    page.keyboard.press("Tab")
    page.locator("#pab-model input").click()
    page.get_by_role("option", name="The demo model", exact=True).click()
    page.wait_for_timeout(1000)
    expect(page.locator("#pab-steps input")).to_have_value("12")
    expect(page.locator("#pab-policy input:checked")).to_have_value("custom")
    expect(slider).to_have_value("3")


@pytest.mark.parametrize(("before", "click"), [("Quality", "Fast"), ("Fast", "Calibrated"), ("custom", "Off")])
def test_a_level_chosen_while_the_fields_are_filled_in_for_a_model_stays(page: Page, before: str, click: str):
    policy, slider = page.locator("#pab-policy"), page.locator("#pab-temporal input[type=range]")
    if before == "custom":
        slider.focus()
        page.keyboard.press("ArrowRight")
    else:
        policy.get_by_text(before, exact=True).click()
    held: list[Route] = []

    def hold(route: Route) -> None:
        if (route.request.post_data or "").startswith('{"data":["demo-latte",'):
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", hold)
    page.locator("#pab-model input").click()
    page.get_by_role("option", name="The demo model of Latte's kind").click()
    wait_until(lambda: page.evaluate("1") and bool(held))  # asking the page lets its requests come in
    policy.get_by_text(click, exact=True).click()
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*")
    expect(page.locator("#pab-frames input")).to_have_value("16")
    expect(page.locator("#pab-schedule g[data-kind=spatial] rect")).to_have_count(50)
    name = {"Fast": "fast", "Calibrated": "calibrated", "Off": "off"}[click]
    page.wait_for_timeout(500)
    expect(policy.locator("input:checked")).to_have_value(name)
    # The sliders show what the level is for the new model, and moving one begins from there.
    expect(slider).to_have_value({"fast": "6", "calibrated": "1", "off": "1"}[name])
    expect(page.get_by_role("alert")).to_have_count(0)


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
