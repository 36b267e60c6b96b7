"""Explore: the policies of a model as pictures, what calibration and bench measured of it, and what devices do now."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..broadcast import find_policy, preset_names
from ..broadcast.picture_svg import draw_schedule_svg
from ..errors import PabError
from ..settings import schedule_for
from .charts import draw_curves, draw_quality
from .following import JobOfBrowser
from .jobs import View
from .labels import Labels
from .measuring import CLIPS, POLICIES
from .models import Offered
from .offering import model_choices
from .reports import find_curves, find_quality, find_speed
from .request import LEVELS
from .service import Studio
from .stage import message, show_bar, table_of
from .texts import schedule_texts, text

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
            count = CLIPS * (2 * len(POLICIES) - 1)
            labels(
                gr.HTML,
                words={
                    "value": lambda language: message(text("measure_note", language, clips=CLIPS, videos=count), "note")
                },
            )
            self.machine = gr.HTML(elem_id="pab-machine")
            self.refresh = labels(gr.Button, words={"value": "refresh"}, size="sm", elem_id="pab-refresh")
            self.clock = gr.Timer(_LOOK, active=False)
        self.resumed = [self.progress, self.go, self.stop_button]

    def connect(self, tab: gr.Tab, others: Sequence[gr.Tab]) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        told = [self.model, self.language]
        gr.on([tab.select, self.model.input, self.refresh.click], self.show, told, self.content, **quiet)
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
        ).then(self.show, told, self.content, **quiet)
        self.stop_button.click(self.job.cancel, [self.job.id], [self.stop_button], **quiet)

    def show(self, model: str, language: str) -> str:
        offered = self.studio.offered[model]
        return (
            f"<h2>{escape(text('policies', language))}</h2>{self._policies(offered, language)}"
            f"<h2>{escape(text('figures', language))}</h2>"
            f"{show_reports(find_speed([self.studio.settings.data / 'bench'], offered.name), language)}"
            f"{self._measured(offered, language)}"
        )

    def _show_machine(self, language: str) -> str:
        return f"<h2>{escape(text('worker', language))}</h2>{show_machine(self.studio, language)}"

    async def _measure(self, model: str, language: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        def submit(owner: str, visitor: str) -> str:
            return self.studio.measure(model, owner, visitor)

        async for update in self.job.start(submit, lambda error: message(str(error)), language, request):
            yield update

    def _show_job(self, view: View | None, owner: str, language: str) -> str:
        """Nothing of a measurement that is done: its chart stands above."""
        if view is None or view.state == "done":
            return ""
        if view.state == "failed":
            return message(f"{text('failed', language)}: {view.error}")
        if view.state == "cancelled":
            return message(text("measure_cancelled", language), "note")
        return show_bar(view, language)

    def _policies(self, offered: Offered, language: str) -> str:
        spec, cards = offered.spec, []
        levels = dict(zip(preset_names(spec.family)[1:], LEVELS, strict=False))
        for name, level in levels.items():
            policy = find_policy(name, spec.family, spec.depth)
            table = schedule_for(spec, policy, offered.sampler)
            picture = draw_schedule_svg(table, policy, texts=schedule_texts(language))
            words = text("saving", language, share=f"{self.studio.table_saving(offered, table):.0%}")
            cards.append(
                f'<section class="pab-card"><h3>{escape(text(level, language))} <code>{escape(name)}</code></h3>'
                f'{picture}<p class="pab-saving"><strong>{escape(words)}</strong></p></section>'
            )
        cards.append(
            f'<section class="pab-card pab-reading"><h3>{escape(text("reading", language))}</h3>'
            f"<p>{escape(text('reading_note', language))}</p></section>"
        )
        return f'<div class="pab-grid">{"".join(cards)}</div>'

    def _measured(self, offered: Offered, language: str) -> str:
        """The U-curve of a calibration and the chart of a measurement, with the commands that make them."""
        folders = [self.studio.settings.data / "bench", Path("pab-quality")]
        curves, quality = find_curves(offered.spec, folders), find_quality(folders, offered.name)
        model = offered.name if offered.name == str(offered.source) else shlex.quote(str(offered.source))
        output = shlex.quote(str(folders[0] / f"{offered.name}-quality"))
        calibrate, bench = f"pab calibrate --model {model}", f"pab bench quality --model {model} --output {output}"
        if curves is None:
            change = message(text("no_curves", language), "note") + _command(calibrate, language)
        else:
            note = text("u_note_elsewhere" if curves.packaged else "u_note", language, clips=curves.clips)
            change = draw_curves(curves, language) + message(note, "note")
        if quality is None:
            chart = message(text("no_quality", language), "note")
        else:
            key = "measured_elsewhere" if quality.packaged else "measured_here"
            note = text(key, language, clips=quality.clips, machine=quality.machine)
            chart = draw_quality(quality, language) + message(note, "note")
        chart += _command(bench, language, text("more_exactly", language))
        metric = text(f"{quality.metric if quality else 'lpips'}_title", language)
        return (
            '<div class="pab-grid">'
            f'<section class="pab-card"><h3>{escape(text("u_title", language))}</h3>{change}</section>'
            f'<section class="pab-card"><h3>{escape(text("quality_title", language, metric=metric))}</h3>{chart}'
            "</section></div>"
        )


def _command(command: str, language: str, fold: str = "") -> str:
    """A command to type; folded away where there is a title to `fold` it under."""
    words = message(text("then_refresh", language), "note")
    shown = f"{words}<pre class='pab-command'><code>{escape(command)}</code></pre>"
    return f"<details class='pab-fold'><summary>{escape(fold)}</summary>{shown}</details>" if fold else shown


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
        return message(str(error)) + table_of(rows)
    for place, row in enumerate(found["workers"]):
        name = row["device"] + (f" ({row['name']})" if row["name"] not in (None, row["device"]) else "")
        number = f" {place + 1}" if len(found["workers"]) > 1 else ""
        rows.insert(place, (text("device", language) + number, f"{name}: {text(_STATES[row['state']], language)}"))
    if "loaded" in found:
        rows.append((text("loaded", language), found["loaded"] or text("nothing", language)))
    else:
        rows.append((text("method", language), found["method"]))
        if studio.settings.workers:  # in which other programs have a part, too
            rows.append((text("pool_jobs", language), f"{len(found['running'])} / {len(found['waiting'])}"))
    said = "".join(
        message(words.split(" Its log ends:")[0], "warning") for words in [*found["warnings"], *found["trouble"]]
    )
    return table_of(rows) + said


def show_reports(reports: list[dict[str, Any]], language: str) -> str:
    """A table for each report; nothing for none."""
    parts = []
    head = "".join(
        f'<th scope="col">{escape(words)}</th>'
        for words in (text("policy_column", language), text("speed_column", language), "PSNR")
    )
    for report in reports:
        machine = report.get("machine", {})
        about = " · ".join(str(machine[key]) for key in ("gpu", "processor", "torch") if key in machine)
        rows = "".join(
            f'<tr><th scope="row">{escape(str(run.get("policy")))}</th><td>{_figure(run.get("speedup"), "x")}</td>'
            f"<td>{_figure(run.get('psnr'), ' dB', text('identical', language))}</td></tr>"
            for run in report["runs"]
            if isinstance(run, dict)
        )
        parts.append(
            f'<table class="pab-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
            f'<p class="pab-note">{escape(about)}</p>'
        )
    return "".join(parts)


def _figure(value: Any, unit: str, absent: str = "-") -> str:
    return f"{value:.2f}{unit}" if isinstance(value, (int, float)) else escape(absent)
