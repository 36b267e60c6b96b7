"""The studio for all who read it: in Chinese, on a phone, by a screen reader."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect
from running_studio import RunningStudio, open_studio
from studio_page import fill_history, shoot


def test_chinese_by_the_switch_and_by_the_browser(page: Page, browser: Browser, studio: RunningStudio):
    page.get_by_text("中文").click()
    expect(page.get_by_role("button", name="生成")).to_be_visible()
    expect(page.get_by_role("tab", name="历史")).to_be_visible()
    expect(page.locator("#pab-schedule")).to_contain_text("空间")
    expect(page.locator("#pab-model input")).to_have_value("演示模型")
    expect(page.locator("html")).to_have_attribute("lang", "zh")  # by which screen readers pronounce it
    expect(page.locator("#pab-schedule")).to_contain_text("30 次调用中计算 22 次")  # what its maker noted
    assert not re.search("[a-z]{3,} [a-z]{3,}", page.locator("#pab-schedule").inner_text())
    shoot(page, "chinese")
    page.locator("#pab-steps input").fill("0")
    expect(page.get_by_role("alert")).to_contain_text(
        "请填写可用的步数（正整数）。 The number of steps must be a whole"
    )
    page.get_by_text("English").click()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    chinese = browser.new_context(locale="zh-CN")
    other = chinese.new_page()
    open_studio(other, studio.url)
    expect(other.get_by_role("button", name="生成")).to_be_visible()
    chinese.close()


def test_a_warning_is_told_in_chinese(page: Page):
    page.get_by_text("中文").click()
    page.locator("#pab-size input").fill("96x64")
    page.keyboard.press("Tab")
    page.locator("#pab-steps input").fill("2")
    page.get_by_role("button", name="生成", exact=True).click()
    expect(page.locator("#pab-stage video")).to_be_visible()
    warning = page.locator("#pab-stage .pab-warning")
    expect(warning).to_have_text("该模型以 192x128 像素、34 帧训练；96x64 像素、34 帧的效果可能较差。")
    page.get_by_text("English").click()
    expect(warning).to_contain_text("96x64 may look worse.")


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
