"""What was measured of a model, as Explore shows it: tables and charts, with where each was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..broadcast import ScheduleTable
from ..evaluate.packaged import packaged_curves
from ..settings import schedule_for
from .charts import draw_curves, draw_quality
from .models import Offered
from .reports import Quality, find_curves, find_quality, find_speed, packaged_quality
from .stage import message
from .texts import text


def show_measured(offered: Offered, bench: Path, language: str) -> str:
    """The tables of `pab bench speed`, the U-curve of a calibration, and speed against quality.

    bench: the studio's folder of what was measured on this machine, which goes before what comes with the package.
    """
    curves, (metric, quality) = _show_curves(offered, bench, language), _show_quality(offered, bench, language)
    title = text("quality_title", language, metric=text(f"{metric}_title", language))
    return (
        f"{show_reports(find_speed([bench], offered.name), language)}"
        '<div class="pab-grid">'
        f'<section class="pab-card"><h3>{escape(text("u_title", language))}</h3>{curves}</section>'
        f'<section class="pab-card"><h3>{escape(title)}</h3>{quality}</section>'
        "</div>"
    )


def _show_curves(offered: Offered, bench: Path, language: str) -> str:
    command = f"pab calibrate --model {_argument(offered)}"
    own = find_curves(offered.spec, _folders(bench))
    found = own or (packaged_curves(offered.name) if _is_ours(offered) else None)
    if found is None:
        return message(text("no_curves", language), "note") + _command(command, language)
    key = "u_note" if own else "u_note_elsewhere"
    note = text(key, language, clips=found.clips, machine=_machine(found.machine, language))
    if found.twice:
        note = f"{note} {text('u_twice', language)}"
    again = _command(command, language, text("record_here", language))
    return draw_curves(found, language) + message(note, "note") + again


def _show_quality(offered: Offered, bench: Path, language: str) -> tuple[str, str]:
    """-> the metric, and the chart."""
    output = shlex.quote(str(bench / f"{offered.name}-quality"))
    command = f"pab bench quality --model {_argument(offered)} --output {output}"
    again = _command(command, language, text("more_exactly", language))
    found, own = _find_quality(offered, bench)
    if found is None:
        return "lpips", message(text("no_quality", language), "note") + again
    key = "measured_here" if own else "measured_elsewhere"
    note = text(key, language, clips=found.clips, machine=_machine(found.machine, language))
    return found.metric, draw_quality(found, language) + message(note, "note") + again


def _find_quality(offered: Offered, bench: Path) -> tuple[Quality | None, bool]:
    """-> the report, if any, and whether it was made on this machine."""
    own = find_quality(_folders(bench), offered.name)
    return own or (packaged_quality(offered.name) if _is_ours(offered) else None), own is not None


def measured_of(offered: Offered, table: ScheduleTable, bench: Path, language: str) -> str:
    """How fast a policy was, and how near to Off, in a line; "" where that was not measured, with so many steps."""
    found, _ = _find_quality(offered, bench)
    point = next((point for point in found.points if point.policy == table.policy), None) if found else None
    if found is None or point is None or table.steps != schedule_for(offered.spec, "off", offered.sampler).steps:
        return ""
    return text(
        "measured_of",
        language,
        machine=_machine(found.machine, language),
        speedup=f"{point.speedup:.2f}",
        distance=few_digits(point.distance) if found.metric == "lpips" else f"{point.distance:.1f} dB",
        metric=text(f"{found.metric}_title", language),
    )


def few_digits(value: float) -> str:
    """Of an SSIM or LPIPS; what was calibrated is near."""
    return f"{value:.4f}" if value == 0 or value >= 0.001 else f"{value:.6f}"


def _folders(bench: Path) -> list[Path]:
    return [bench, Path("pab-quality")]  # the second is where `pab bench quality` writes if nothing else is said


def _is_ours(offered: Offered) -> bool:
    """Known by its name, as those in the package are; another folder may bear the name of one."""
    return offered.name == str(offered.source)


def _argument(offered: Offered) -> str:
    return offered.name if _is_ours(offered) else shlex.quote(str(offered.source))


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


def _machine(found: Mapping[str, Any], language: str) -> str:
    """What describe_machine told, in few words."""
    device = str(found.get("gpu") or found.get("device") or text("some_machine", language))
    if device == "cpu":
        return text("a_cpu", language, name=found.get("processor", "CPU"), threads=found.get("threads", 1))
    return text("a_gpu", language, name=device) if "gpu" in found else device


def _command(command: str, language: str, fold: str = "") -> str:
    """A command to type; folded away where there is a title to `fold` it under."""
    words = message(text("then_refresh", language), "note")
    shown = f"{words}<pre class='pab-command'><code>{escape(command)}</code></pre>"
    return f"<details class='pab-fold'><summary>{escape(fold)}</summary>{shown}</details>" if fold else shown


def _figure(value: Any, unit: str, absent: str = "-") -> str:
    return f"{value:.2f}{unit}" if isinstance(value, (int, float)) else escape(absent)
