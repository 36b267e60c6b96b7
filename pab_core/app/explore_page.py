"""Explore: the policies of a model as pictures, what `pab bench` measured of it, and what the machine does now."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..broadcast import find_policy, preset_names
from ..broadcast.picture_svg import draw_schedule_svg
from ..pipeline import schedule_for
from .labels import Labels
from .models import Offered
from .offering import title_of
from .request import LEVELS
from .service import Studio
from .stage import table_of
from .texts import schedule_texts, text


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
            f"{show_reports(find_reports(self.studio.settings.data / 'bench', offered), language)}"
            f"<h3>{escape(text('worker', language))}</h3>{self._machine(language)}"
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

    def _machine(self, language: str) -> str:
        counts = self.studio.queue.counts()
        running = text("yes" if counts["running"] else "no", language)
        return table_of(
            [
                (text("device", language), self.studio.device),
                (text("loaded", language), self.studio.maker.loaded.name or text("nothing", language)),
                (text("running", language), running),
                (text("waiting", language), str(counts["waiting"])),
            ]
        )


def find_reports(folder: Path, offered: Offered) -> list[dict[str, Any]]:
    """What `pab bench speed --json` printed of the model into files of the folder; others are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(report, dict) and report.get("model") == offered.name and isinstance(report.get("runs"), list):
            found.append(report)
    return found


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
    return f"<h3>{escape(text('figures', language))}</h3>{''.join(parts)}" if parts else ""


def _figure(value: Any, unit: str, absent: str = "-") -> str:
    return f"{value:.2f}{unit}" if isinstance(value, (int, float)) else escape(absent)
