"""The layout of the page: head, language, four tabs. Each tab is a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base
from gradio.themes.utils import colors, sizes

from .api import add_endpoints
from .compare_page import ComparePage
from .create_page import CreatePage
from .explore_page import ExplorePage
from .following import remembered
from .history_page import HistoryPage
from .labels import Labels
from .service import Studio
from .texts import LANGUAGES, preferred_language, text

_HERE = Path(__file__).resolve().parent
_FONTS = ["Inter", "system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC"]


def build_page(studio: Studio) -> gr.Blocks:
    """The page with everything that it does."""
    labels = Labels()
    with gr.Blocks(title=text("title"), analytics_enabled=False, fill_width=False, delete_cache=(3600, 3600)) as page:
        add_endpoints(studio)  # first: gradio gives names to what the page does, too, and must not take these
        language = gr.State("en")
        made, compared, measured = (remembered(f"pab-{tab}-job") for tab in ("create", "compare", "explore"))
        with gr.Row(elem_id="pab-head"):
            labels(gr.HTML, words={"value": _head}, elem_id="pab-title")
            switch = labels(
                gr.Radio,
                words={"label": "language"},
                choices=list(LANGUAGES.items()),
                value="en",
                show_label=False,
                container=False,
                min_width=200,
                elem_id="pab-language",
            )
        with gr.Tabs(elem_id="pab-tabs") as tabs:
            with labels(gr.Tab, words={"label": "create"}, id=0) as create_tab:
                create = CreatePage(studio, labels, language, made)
            with labels(gr.Tab, words={"label": "compare"}, id=1) as compare_tab:
                compare = ComparePage(studio, labels, language, compared, create)
            with labels(gr.Tab, words={"label": "explore"}, id=2) as explore_tab:
                explore = ExplorePage(studio, labels, language, measured)
            with labels(gr.Tab, words={"label": "history"}, id=3) as history_tab:
                history = HistoryPage(studio, labels, language, create)
        create.connect(page)
        compare.connect(compare_tab)
        explore.connect(explore_tab, (create_tab, compare_tab, history_tab))
        history.connect(history_tab, tabs)
        _connect_language(page, labels, switch, language, create, compare, explore)
    page.queue(default_concurrency_limit=4, api_open=False)
    return page


def _head(language: str) -> str:
    return f"<h1>{text('title', language)}</h1><p>{text('subtitle', language)}</p>"


def _connect_language(
    page: gr.Blocks,
    labels: Labels,
    switch: gr.Radio,
    language: gr.State,
    create: CreatePage,
    compare: ComparePage,
    explore: ExplorePage,
) -> None:
    """What changes with the language, and what a page shows that has just been opened."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def speak(chosen: str) -> list[Any]:
        return [chosen, *labels.updates(chosen)]

    def greet(request: gr.Request) -> list[Any]:
        chosen = preferred_language(request.headers.get("accept-language", ""))
        # The page comes in English: where that is right, nothing need be sent.
        words = labels.updates(chosen) if chosen != "en" else [gr.skip()] * len(labels.controls)
        return [chosen, chosen, *words]

    spoken = switch.input(speak, switch, [language, *labels.controls], **quiet)
    greeted = page.load(greet, None, [switch, language, *labels.controls], **quiet)
    sides = [compare.left, compare.right]
    for first in (spoken, greeted):
        first.then(compare.offer, compare.offered, sides, **quiet)
        # For screen readers, which pronounce the page by it.
        first.then(None, switch, None, js="(spoken) => { document.documentElement.lang = spoken; }")
    for part in (create, compare, explore):
        job, told = part.job, [part.job.id, language]
        spoken.then(job.look, told, part.resumed[0], **quiet)
        resumed = greeted.then(job.resume, told, part.resumed, concurrency_limit=None, **quiet)
        if part is explore:
            resumed.then(explore.show, [explore.model, language], explore.shown, **quiet)
    seen = [explore.model, language]
    spoken.then(explore.show, seen, explore.shown, **quiet).then(compare.tell, create.inputs, compare.what, **quiet)


def launch_options() -> dict[str, Any]:
    """What the page needs from `launch`: looks and script. All of it is here; nothing comes from the network."""
    return {
        "theme": Base(
            primary_hue=colors.blue,
            neutral_hue=colors.slate,
            radius_size=sizes.radius_md,
            font=[*_FONTS, "sans-serif"],
            font_mono=["ui-monospace", "Consolas", "monospace"],
        ).set(body_text_color_subdued="#5b6779", body_text_color_subdued_dark="#a3aec0"),
        "css": (_HERE / "style.css").read_text(encoding="utf-8"),
        "head": f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        "footer_links": ["api"],
    }
