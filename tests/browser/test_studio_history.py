"""History in a real browser: it survives a restart, and a long one can be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from running_studio import RunningStudio, open_studio
from studio_page import PROMPT, fill_history, fill_in, shoot, wait_until


def test_history_survives_a_restart(studio: RunningStudio, context: BrowserContext):
    page = context.new_page()
    open_studio(page, studio.url)
    fill_in(page, 11, steps=6)
    page.locator("#pab-policy").get_by_text("Calibrated", exact=True).click()
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
    expect(page.locator("#pab-policy input:checked")).to_have_value("calibrated")
    page.get_by_role("tab", name="History").click()
    pictures.first.click()
    page.locator("#pab-delete").click()
    page.locator("#pab-sure").click()
    expect(pictures).to_have_count(count - 1)


def test_settings_of_another_model_are_used_as_they_were(page: Page, studio: RunningStudio):
    fill_history(studio, 1, model="demo-latte", policy="fast", temporal=7, steps=9, guidance=5.5)
    page.get_by_role("tab", name="History").click()
    page.locator("#pab-gallery button.thumbnail-item").first.click()
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#pab-negative")).to_be_visible()  # what Latte has beside the demo model's fields
    expect(page.locator("#pab-schedule g[data-kind=temporal] rect").first).to_be_visible()
    wait_until(lambda: page.locator("#pab-schedule g[data-kind=temporal] rect").count() == 9)
    page.wait_for_timeout(500)
    expect(page.locator("#pab-model input")).to_have_value("The demo model of Latte's kind")
    expect(page.locator("#pab-steps input")).to_have_value("9")
    expect(page.locator("#pab-guidance input")).to_have_value("5.5")
    expect(page.locator("#pab-frames input")).to_have_value("16")
    expect(page.locator("#pab-policy input:checked")).to_have_value("custom")
    expect(page.locator("#pab-temporal input[type=range]")).to_have_value("7")
    expect(page.locator("#pab-spatial input[type=range]")).to_have_value("4")
    page.locator("#pab-policy").get_by_text("Balanced", exact=True).click()
    expect(page.locator("#pab-temporal input[type=range]")).to_have_value("4")  # Latte's
    expect(page.get_by_role("alert")).to_have_count(0)


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
