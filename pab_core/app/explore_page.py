"""Explore: the policies of a model as pictures, what calibration and bench measured of it, and what devices do now."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..broadcast import find_policy, preset_names
from ..broadcast.picture_svg import draw_schedule_svg
from ..errors import PabError
from ..pipeline import schedule_for
from .charts import draw_curves, draw_quality
from .labels import Labels
from .models import Offered
from .offering import title_of
from .reports import find_curves, find_quality, find_speed
from .request import LEVELS
from .service import Studio
from .stage import message, table_of
from .texts import schedule_texts, text

_STATES = {"off": "worker_off", "starting": "worker_starting", "ready": "worker_ready", "working": "worker_working"}


class ExplorePage:
    """Lays the page out inside the open gr.Blocks."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State):
        self.studio = studio
        self.language = language
        with gr.Column(elem_id="pab-explore"):
            self.model = labels(
                gr.Dropdown,
                words={"label": "model"},
                choices=[(title_of(offered), name) for name, offered in studio.offered.items()],
                value=next(iter(studio.offered)),
                elem_id="pab-explore-model",
            )
            self.content = gr.HTML()
            self.refresh = labels(gr.Button, words={"value": "refresh"}, size="sm")

    def connect(self, tab: gr.Tab) -> None:
        gr.on(
            [tab.select, self.model.input, self.refresh.click],
            self._show,
            [self.model, self.language],
            self.content,
            show_progress="hidden",
            api_visibility="private",
        )

    def _show(self, model: str, language: str) -> str:
        offered = self.studio.offered[model]
        return (
            f"<h3>{escape(text('policies', language))}</h3>{self._policies(offered, language)}"
            f"<h3>{escape(text('figures', language))}</h3>{self._measured(offered, language)}"
            f"{show_reports(find_speed([self.studio.settings.data / 'bench'], offered.name), language)}"
            f"<h3>{escape(text('worker', language))}</h3>{show_machine(self.studio, language)}"
        )

    def _policies(self, offered: Offered, language: str) -> str:
        spec, cards = offered.spec, []
        levels = dict(zip(preset_names(spec.family)[1:], LEVELS, strict=False))
        for name, level in levels.items():
            policy = find_policy(name, spec.family, spec.depth)
            table = schedule_for(spec, policy, offered.sampler)
            picture = draw_schedule_svg(table, policy, texts=schedule_texts(language))
            words = text("saving", language, share=f"{self.studio.table_saving(offered, table):.0%}")
            cards.append(
                f'<section class="pab-card"><h4>{escape(text(level, language))} <code>{escape(name)}</code></h4>'
                f'{picture}<p class="pab-saving"><strong>{escape(words)}</strong></p></section>'
            )
        return f'<div class="pab-grid">{"".join(cards)}</div>'

    def _measured(self, offered: Offered, language: str) -> str:
        """The U-curve of a calibration and the chart of a bench, or the commands that make them."""
        folders = [self.studio.settings.data / "bench", Path("pab-quality")]
        curves, quality = find_curves(offered.spec, folders), find_quality(folders, offered.name)
        model = offered.name if offered.name == str(offered.source) else shlex.quote(str(offered.source))
        output = shlex.quote(str(folders[0] / f"{offered.name}-quality"))
        return (
            '<div class="pab-grid">'
            + "".join(
                f'<section class="pab-card"><h4>{escape(title)}</h4>{content}</section>'
                for title, content in (
                    (
                        text("u_title", language),
                        _command(text("no_curves", language), f"pab calibrate --model {model}")
                        if curves is None
                        else draw_curves(curves, language)
                        + message(text("u_note", language, clips=curves.clips), "note"),
                    ),
                    (
                        text("quality_title", language, metric=quality.metric.upper() if quality else "LPIPS"),
                        _command(text("no_quality", language), f"pab bench quality --model {model} --output {output}")
                        if quality is None
                        else draw_quality(quality, language)
                        + message(f"{text('measured_on', language, clips=quality.clips)} {quality.machine}", "note"),
                    ),
                )
            )
            + "</div>"
        )


def _command(words: str, command: str) -> str:
    return f"{message(words, 'note')}<pre class='pab-command'><code>{escape(command)}</code></pre>"


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
