"""A real browser on a real studio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page
from running_studio import RunningStudio, open_studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    made = RunningStudio(tmp_path_factory.mktemp("studio"))
    yield made
    made.stop()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 940}, locale="en-US")
    made.set_default_timeout(90_000)
    yield made
    made.close()


@pytest.fixture
def page(studio: RunningStudio, context: BrowserContext) -> Iterator[Page]:
    """The page, opened. That nothing but the studio was asked and no script failed is held at the end."""
    foreign: list[str] = []
    failed: list[str] = []
    page = context.new_page()
    page.on("request", lambda r: None if r.url.startswith((studio.url, "data:", "blob:")) else foreign.append(r.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    open_studio(page, studio.url)
    yield page
    assert not foreign
    assert not failed
