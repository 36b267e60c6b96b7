"""Compare: one prompt and seed with two settings, side by side and in step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from ..errors import PabError
from .comparing import has_lpips
from .create_page import CreatePage
from .explaining import explained
from .following import JobOfBrowser
from .history import Entry
from .jobs import View
from .labels import Labels
from .measured import few_digits
from .offering import level_choices, title_of
from .request import FieldErrors
from .service import Studio
from .stage import empty_stage, message, policy_title, refusal, show_progress, show_warnings, table_of
from .texts import text, wrong

_PLAIN: dict[str, Any] = {"spatial": None, "temporal": None, "cross": None, "mlp": None, "window": ""}


class ComparePage:
    """Lays the page out inside the open gr.Blocks."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State, job: gr.BrowserState, create: CreatePage):
        self.studio = studio
        self.language = language
        self.create = create
        self.job = JobOfBrowser(studio, job, self._show)
        left, right = self._sides(next(iter(studio.offered)), "en")
        with gr.Column(elem_id="pab-compare"):
            labels(gr.HTML, words={"value": lambda language: message(text("compare_intro", language), "note")})
            self.what = gr.HTML(elem_id="pab-what")
            with gr.Row(equal_height=True):
                self.left = labels(
                    gr.Radio,
                    words={"label": "left_side"},
                    choices=left,
                    value="off",
                    elem_id="pab-left",
                )
                self.right = labels(
                    gr.Radio,
                    words={"label": "right_side"},
                    choices=right,
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
        self.offered = [create.model, language, self.left, self.right]
        self.resumed = [self.result, self.go, self.stop_button]

    def connect(self, tab: gr.Tab) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        tab.select(self.tell, self.create.inputs, self.what, **quiet)
        tab.select(self.offer, self.offered, [self.left, self.right], **quiet)
        self.go.click(
            self._run,
            [self.left, self.right, *self.create.inputs],
            [self.result, self.job.id, self.go, self.stop_button],
            concurrency_limit=None,
            **quiet,
        )
        self.stop_button.click(self.job.cancel, [self.job.id], [self.stop_button], **quiet)

    def _sides(self, model: str, language: str) -> list[list[tuple[str, str]]]:
        """The choices at the left and at the right."""
        levels = level_choices(self.studio.offered[model], language)
        return [levels, [(text("as_create", language), "as_create"), *levels[1:]]]

    def offer(self, model: str, language: str, *chosen: str) -> list[Any]:
        """Both sides with the policies of the model in Create; what it does not have is chosen no longer."""
        changed = []
        for side, name in zip(self._sides(model, language), chosen, strict=True):
            # What stays chosen is not sent: somebody may choose another before this arrives.
            gone: dict[str, Any] = {} if name in [known for _, known in side] else {"value": side[0][1]}
            changed.append(gr.update(choices=side, **gone))
        return changed

    def tell(self, *values: Any) -> str:
        """What is filled in in Create, or what is wrong there."""
        language = values[-1]
        try:
            wish, language = self.create.read(values)
            clip = self.studio.check(wish)
        except FieldErrors as error:
            return message(text("correct_create", language), "note") + _by_field(error, language)
        words = text(
            "what_is_compared",
            language,
            model=title_of(clip.offered, language),
            size=f"{clip.width}x{clip.height}",
            frames=clip.num_frames,
            steps=clip.offered.spec.steps if clip.steps is None else clip.steps,
            seed=text("that_seed", language, seed=clip.seed) if wish.seed.strip() else text("any_seed", language),
        )
        return f'<blockquote class="pab-what"><p>{escape(clip.prompt)}</p><small>{escape(words)}</small></blockquote>'

    async def _run(self, request: gr.Request, left: str, right: str, *values: Any) -> AsyncIterator[list[Any]]:
        language = values[-1]

        def submit(owner: str, visitor: str) -> str:
            wish, _ = self.create.read(values)
            if right != "as_create":
                wish = replace(wish, policy=right, **_PLAIN)
            return self.studio.submit(wish, owner, visitor, against=left)

        def refused(error: PabError) -> str:
            if isinstance(error, FieldErrors):
                return refusal(_by_field(error, language))
            return refusal(message(explained(str(error), language)))

        async for update in self.job.start(submit, refused, language, request):
            yield update

    def _show(self, view: View | None, owner: str, language: str) -> str:
        if view is None:
            return empty_stage(language, "empty_compare")
        if view.state != "done":
            return show_progress(view, language)
        entries = self.studio.entries(view, owner)
        if len(entries) < 2:
            return empty_stage(language, "empty_compare")
        shown = show_pair(self.studio, entries, view.measured, language)
        return shown + show_warnings(view.warnings, language)


def _by_field(error: FieldErrors, language: str) -> str:
    """The fields are in Create: their names go before what is wrong with them."""
    return "".join(
        message(f"{text(name, language)}: {wrong(name, said, language)}") for name, said in error.by_field.items()
    )


def show_pair(studio: Studio, entries: list[Entry], measured: dict[str, Any], language: str) -> str:
    """Two videos with one play button and one time line (page.js keeps them in step), and what was measured."""
    figures = "".join(
        f'<figure><video src="{escape(studio.url(entry.video), quote=True)}" muted playsinline preload="auto" '
        f'aria-label="{escape(policy_title(entry.about["policy"], language), quote=True)}"></video>'
        f"<figcaption>{escape(_caption(entry, language))}</figcaption></figure>"
        for entry in entries
    )
    play, pause = escape(text("play", language)), escape(text("pause", language))
    fps = entries[0].about["fps"]
    return (
        f'<div class="pab-pair" data-fps="{fps}"><div class="pab-two">{figures}</div>'
        f'<div class="pab-transport"><button type="button" class="pab-play" data-play="{play}" data-pause="{pause}">'
        f'{play}</button><input type="range" class="pab-time" min="0" max="1000" value="0" '
        f'aria-label="{escape(text("timeline", language), quote=True)}"><output>0.0 s</output></div></div>'
        f"{show_figures(measured, language)}"
    )


def _caption(entry: Entry, language: str) -> str:
    seconds = text("seconds_denoised", language, seconds=f"{entry.about['seconds']['denoise']:.2f}")
    return f"{policy_title(entry.about['policy'], language)} · {seconds}"


def show_figures(measured: dict[str, Any], language: str) -> str:
    """What was measured of both, and what is missing to measure more."""
    first, second = measured["seconds"]
    memory = measured["gpu_bytes"]
    psnr = text("identical", language) if measured["identical"] else f"{measured['psnr']:.2f} dB"
    rows = [
        (text("speedup", language), f"{measured['speedup']:.2f}x" if measured["speedup"] else "-"),
        (text("seconds", language), f"{first:.2f} / {second:.2f}"),
        (text("psnr_title", language), psnr),
        *(
            (text(f"{name}_title", language), few_digits(measured[name]))
            for name in ("ssim", "lpips")
            if name in measured
        ),
        *([(text("memory", language), " / ".join(f"{n / 1e6:.0f} MB" for n in memory))] if all(memory) else []),
    ]
    notes = ["one_run", *(["get_lpips"] if "lpips" not in measured and not has_lpips() else [])]
    words = "".join(message(text(key, language), "note") for key in notes)
    return f"<h2>{escape(text('measured', language))}</h2>{table_of(rows)}{words}"
