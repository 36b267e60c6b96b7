"""Explore: the policies of a model as pictures, what calibration and bench measured of it, and what devices do now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from ..broadcast import find_policy, preset_names
from ..broadcast.picture_svg import draw_schedule_svg
from ..errors import PabError
from ..settings import schedule_for
from .explaining import explained
from .following import JobOfBrowser
from .illustration import about_calibrated
from .jobs import View
from .labels import Labels
from .measured import measured_of, show_measured
from .measuring import CLIPS, most_videos
from .models import Offered
from .offering import calibrated_levels, model_choices, title_of
from .request import LEVELS
from .service import Studio
from .stage import message, show_bar, show_warnings, table_of
from .texts import level_title, model_title, schedule_texts, text

_LOOK = 2.0  # seconds between two looks at the devices, while they are shown
_STATES = {"off": "worker_off", "starting": "worker_starting", "ready": "worker_ready", "working": "worker_working"}


class ExplorePage:
    """Lays the page out inside the open gr.Blocks."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State, job: gr.BrowserState):
        self.studio = studio
        self.language = language
        self.job = JobOfBrowser(studio, job, self._show_job)
        with gr.Column(elem_id="pab-explore"):
            self.model = labels(
                gr.Dropdown,
                words={"label": "model", "choices": model_choices(studio.offered)},
                value=next(iter(studio.offered)),
                elem_id="pab-explore-model",
            )
            self.content = gr.HTML(elem_id="pab-explore-content")
            self.progress = gr.HTML(elem_id="pab-measuring")
            with gr.Row(elem_classes="pab-buttons"):
                self.go = labels(gr.Button, words={"value": "measure_here"}, elem_id="pab-measure", scale=3)
                self.stop_button = labels(
                    gr.Button, words={"value": "cancel"}, interactive=False, elem_id="pab-cancel-measure", scale=1
                )
            self.length = gr.HTML()
            self.machine = gr.HTML(elem_id="pab-machine")
            self.refresh = labels(gr.Button, words={"value": "refresh"}, size="sm", elem_id="pab-refresh")
            self.clock = gr.Timer(_LOOK, active=False)
        self.resumed = [self.progress, self.go, self.stop_button]
        self.shown = [self.content, self.length]

    def connect(self, tab: gr.Tab, others: Sequence[gr.Tab]) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        told = [self.model, self.language]
        gr.on([tab.select, self.model.input, self.refresh.click], self.show, told, self.shown, **quiet)
        gr.on(
            [tab.select, self.refresh.click, self.clock.tick], self._show_machine, self.language, self.machine, **quiet
        )
        # Nobody is asked every other second about what they do not see.
        tab.select(lambda: gr.Timer(active=True), None, self.clock, **quiet)
        gr.on([other.select for other in others], lambda: gr.Timer(active=False), None, self.clock, **quiet)
        self.go.click(
            self._measure,
            told,
            [self.progress, self.job.id, self.go, self.stop_button],
            concurrency_limit=None,
            **quiet,
        ).then(self.show, told, self.shown, **quiet)
        self.stop_button.click(self.job.cancel, [self.job.id], [self.stop_button], **quiet)

    def show(self, model: str, language: str) -> list[str]:
        """What there is of a model, and how long measuring it takes."""
        offered = self.studio.offered[model]
        length = text("measure_note", language, clips=CLIPS, videos=most_videos(offered))
        content = (
            f"<h2>{escape(text('policies', language))}</h2>{self._policies(offered, language)}"
            f"<h2>{escape(text('figures', language))}</h2>"
            f"{show_measured(offered, self.studio.settings.bench, language)}"
        )
        return [content, message(length, "note")]

    def _show_machine(self, language: str) -> str:
        return f"<h2>{escape(text('worker', language))}</h2>{show_machine(self.studio, language)}"

    async def _measure(self, model: str, language: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        def submit(owner: str, visitor: str) -> str:
            return self.studio.measure(model, owner, visitor)

        refused = lambda error: message(explained(str(error), language))  # noqa: E731
        async for update in self.job.start(submit, refused, language, request):
            yield update

    def _show_job(self, view: View | None, owner: str, language: str) -> str:
        """Nothing of a measurement that is done: its chart stands above."""
        if view is None or view.state == "done":
            return ""
        if view.state == "failed":
            return message(f"{text('failed', language)}: {explained(view.error, language)}")
        if view.state == "cancelled":
            return message(text("measure_cancelled", language), "note")
        offered = self.studio.offered.get(view.measures)
        title = title_of(offered, language) if offered else view.measures
        return message(text("measuring", language, model=title), "note") + show_bar(view, language)

    def _policies(self, offered: Offered, language: str) -> str:
        spec, cards = offered.spec, []
        calibrated = [(name, name) for name in calibrated_levels(offered)]
        published = zip(LEVELS, preset_names(spec.family)[1:], strict=True)
        for level, name in [*calibrated, *published]:
            policy = find_policy(name, spec.family, spec.depth)
            table = schedule_for(spec, policy, offered.sampler)
            picture = draw_schedule_svg(table, policy, texts=schedule_texts(language))
            words = text("saving", language, share=f"{self.studio.table_saving(offered, table):.0%}")
            cards.append(
                f'<section class="pab-card"><h3>{escape(level_title(level, language))} <code>{escape(name)}</code></h3>'
                f'{picture}<p class="pab-saving"><strong>{escape(words)}</strong>'
                f"<small>{escape(measured_of(offered, table, self.studio.settings.bench, language))}</small></p>"
                f"{about_calibrated(policy, language, 'calibrated_note')}</section>"
            )
        cards.append(
            f'<section class="pab-card pab-reading"><h3>{escape(text("reading", language))}</h3>'
            f"<p>{escape(text('reading_note', language))}</p></section>"
        )
        return f'<div class="pab-grid">{"".join(cards)}</div>'


def show_machine(studio: Studio, language: str) -> str:
    """The devices, what they do, and the queue before them."""
    counts = studio.queue.counts()
    rows = [
        (text("running", language), str(counts["running"])),
        (text("waiting", language), str(counts["waiting"])),
    ]
    try:
        found = studio.renderer.status()
    except PabError as error:
        return message(explained(str(error), language)) + table_of(rows)
    for place, row in enumerate(found["workers"]):
        name = row["device"] + (f" ({row['name']})" if row["name"] not in (None, row["device"]) else "")
        number = f" {place + 1}" if len(found["workers"]) > 1 else ""
        rows.insert(place, (text("device", language) + number, f"{name}: {text(_STATES[row['state']], language)}"))
    if "loaded" in found:
        rows.append((text("loaded", language), _title(found["loaded"], language)))
    else:
        rows.append((text("method", language), found["method"]))
        if studio.settings.workers:  # in which other programs have a part, too
            rows.append((text("pool_jobs", language), f"{len(found['running'])} / {len(found['waiting'])}"))
    trouble = [words.split(" Its log ends:")[0] for words in found["trouble"]]
    return table_of(rows) + show_warnings([*found["warnings"], *trouble], language)


def _title(name: str | None, language: str) -> str:
    return model_title(name, name, language) if name else text("nothing", language)
