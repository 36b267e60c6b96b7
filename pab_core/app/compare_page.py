"""Compare: one prompt and seed with two settings, side by side and in step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from ..errors import PabError
from .create_page import CreatePage
from .following import JobOfBrowser, follow, owner_of
from .history import Entry
from .jobs import View
from .labels import Labels, choices
from .request import FieldErrors
from .service import Studio
from .stage import empty_stage, message, show_progress, table_of
from .texts import text

_LEVELS = ("off", "quality", "balanced", "fast")
_PLAIN: dict[str, Any] = {"spatial": None, "temporal": None, "cross": None, "mlp": None, "window": ""}


class ComparePage:
    """Lays the page out inside the open gr.Blocks."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State, job: gr.BrowserState):
        self.studio = studio
        self.language = language
        self.job = JobOfBrowser(studio, job, self._show)
        with gr.Column(elem_id="pab-compare"):
            labels(gr.HTML, words={"value": lambda language: message(text("compare_intro", language), "note")})
            with gr.Row(equal_height=True):
                self.left = labels(
                    gr.Radio,
                    words={"label": "left_side", "choices": choices(*_LEVELS)},
                    value="off",
                    elem_id="pab-left",
                )
                self.right = labels(
                    gr.Radio,
                    words={"label": "right_side", "choices": choices("as_create", *_LEVELS[1:])},
                    value="as_create",
                    elem_id="pab-right",
                )
            with gr.Row(elem_classes="pab-buttons"):
                self.go = labels(
                    gr.Button, words={"value": "run_compare"}, variant="primary", elem_id="pab-run-compare", scale=3
                )
                self.stop_button = labels(
                    gr.Button, words={"value": "cancel"}, interactive=False, elem_id="pab-cancel-compare", scale=1
                )
            self.result = gr.HTML(empty_stage("en", "empty_compare"), elem_id="pab-compared")
        self.resumed = [self.result, self.go, self.stop_button]

    def connect(self, create: CreatePage) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        async def run(request: gr.Request, left: str, right: str, *values: Any) -> AsyncIterator[list[Any]]:
            async for update in self._run(create, left, right, values, request):
                yield update

        self.go.click(
            run,
            [self.left, self.right, *create.inputs],
            [self.result, self.job.id, self.go, self.stop_button],
            concurrency_limit=None,
            **quiet,
        )
        self.stop_button.click(self.job.cancel, [self.job.id], [self.stop_button], **quiet)

    async def _run(
        self, create: CreatePage, left: str, right: str, values: tuple[Any, ...], request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        language = values[-1]
        owner, visitor = owner_of(request)
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        try:
            wish, language = create.read(values)
            if right != "as_create":
                wish = replace(wish, policy=right, **_PLAIN)
            job = await asyncio.to_thread(self.studio.submit, wish, owner, visitor, against=left)
        except PabError as error:
            # The fields are in Create: their names go before what is wrong with them.
            wrong = error.by_field if isinstance(error, FieldErrors) else {"": str(error)}
            words = "".join(
                message(f"{text(name, language)}: {said}" if name else said) for name, said in wrong.items()
            )
            yield [f'<div class="pab-stage pab-empty">{words}</div>', gr.skip(), *idle]
            return
        busy: list[Any] = [gr.update(interactive=False), gr.update(interactive=True)]
        async for view in follow(self.studio, job, owner):
            yield [self._show(view, owner, language), job, *(idle if view.ended else busy)]
            busy = [gr.skip(), gr.skip()]

    def _show(self, view: View | None, owner: str, language: str) -> str:
        if view is None:
            return empty_stage(language, "empty_compare")
        if view.state != "done":
            return show_progress(view, language)
        entries = self.studio.entries(view, owner)
        if len(entries) < 2:
            return empty_stage(language, "empty_compare")
        return show_pair(self.studio, entries, view.measured, language)


def show_pair(studio: Studio, entries: list[Entry], measured: dict[str, Any], language: str) -> str:
    """Two videos with one play button and one time line (page.js keeps them in step), and what was measured."""
    figures = "".join(
        f'<figure><video src="{escape(studio.url(entry.video), quote=True)}" muted playsinline preload="auto" '
        f'aria-label="{escape(entry.about["policy"], quote=True)}"></video>'
        f"<figcaption>{escape(entry.about['policy'])}</figcaption></figure>"
        for entry in entries
    )
    play, pause = escape(text("play", language)), escape(text("pause", language))
    fps = entries[0].about["fps"]
    return (
        f'<div class="pab-pair" data-fps="{fps}"><div class="pab-two">{figures}</div>'
        f'<div class="pab-transport"><button type="button" class="pab-play" data-play="{play}" data-pause="{pause}">'
        f'{play}</button><input type="range" class="pab-time" min="0" max="1000" value="0" '
        f'aria-label="{escape(text("timeline", language), quote=True)}"><output>0.0 s</output></div></div>'
        f"{_figures(measured, language)}"
    )


def _figures(measured: dict[str, Any], language: str) -> str:
    first, second = measured["seconds"]
    memory = measured["gpu_bytes"]
    psnr = text("identical", language) if measured["identical"] else f"{measured['psnr']:.2f} dB"
    rows = [
        (text("speedup", language), f"{measured['speedup']:.2f}x" if measured["speedup"] else "-"),
        (text("seconds", language), f"{first:.2f} / {second:.2f}"),
        (text("psnr", language), psnr),
        *((text(name, language), f"{measured[name]:.4f}") for name in ("ssim", "lpips") if name in measured),
        *([(text("memory", language), " / ".join(f"{n / 1e6:.0f} MB" for n in memory))] if all(memory) else []),
    ]
    return f"<h3>{escape(text('measured', language))}</h3>{table_of(rows)}{message(text('one_run', language), 'note')}"
