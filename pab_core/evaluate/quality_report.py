"""What was measured of policies over many clips, as a table, JSON and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metrics import METRICS, Summary, paired, summarise

FAR_APART = 50  # times: distances that differ by more are drawn on a logarithmic scale


@dataclass(frozen=True)
class QualityRow:
    """One policy over all clips."""

    policy: str
    seconds: float  # median of the denoise loop of one clip
    speedup: float  # off's seconds over these
    reused: float  # share of all branch calls
    values: Mapping[str, tuple[float, ...]]  # psnr, ssim, lpips and, where judged, adherence: a value for each clip
    rival: str | None  # fewer steps of the same time
    plain: str | None = None  # the same policy as it is, where this one keeps updates otherwise or has another speed
    over_plain: tuple[float, ...] = ()  # its time over that one's, round by round

    def summary(self, metric: str) -> Summary:
        return summarise(self.values[metric])


@dataclass(frozen=True)
class QualityReport:
    """`rows` begins with off, which has no distances, and ends with the rivals of fewer steps."""

    header: Mapping[str, Any]
    clips: int
    rows: tuple[QualityRow, ...]

    def row(self, policy: str) -> QualityRow:
        return next(row for row in self.rows if row.policy == policy)

    def against_rival(self, row: QualityRow, metric: str) -> Summary | None:
        """The policy's values less those of fewer steps in the same time, clip by clip."""
        if row.rival is None or metric not in row.values:
            return None
        return paired(row.values[metric], self.row(row.rival).values[metric])

    def against_plain(self, row: QualityRow, metric: str) -> Summary | None:
        """The values with updates kept otherwise, or at another speed, less those of the policy as it is."""
        if row.plain is None or metric not in row.values or metric not in self.row(row.plain).values:
            return None
        return paired(row.values[metric], self.row(row.plain).values[metric])

    @property
    def about(self) -> str:
        """What was measured, and on which machine, in a line."""
        h = self.header
        machine = ", ".join(f"{name} {value}" for name, value in h["machine"].items())
        timed, kept = h.get("timed_clips", 1), f", updates also kept as {h['kept']}" if "kept" in h else ""
        first, *others = h.get("speeds", [""])
        speeds = f", {first} ({h['precision']}) and at {' and '.join(others)}" if others else ""
        return (
            f"{h['model']}, {h['weights']} weights, {h['steps']} steps, {self.clips} clips"
            f"{f', timed {timed} together' if timed > 1 else ''}{kept}{speeds}; {machine}"
        )

    def to_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            told: dict[str, Any] = {"policy": row.policy, "seconds": round(row.seconds, 6)}
            told |= {"speedup": round(row.speedup, 4), "reused": round(row.reused, 4)}
            told |= {metric: row.summary(metric).to_json() for metric in row.values}
            if row.rival is not None:
                differences = {metric: self.against_rival(row, metric) for metric in row.values}
                told["rival"] = row.rival
                told["less_rival"] = {m: d.to_json() for m, d in differences.items() if d is not None}
            if row.plain is not None:
                differences = {metric: self.against_plain(row, metric) for metric in row.values}
                told |= {"plain": row.plain, "time_over_plain": summarise(row.over_plain).to_json()}
                told["less_plain"] = {m: d.to_json() for m, d in differences.items() if d is not None}
            rows.append(told)
        return {"header": dict(self.header), "clips": self.clips, "policies": rows}

    def to_markdown(self) -> str:
        judged, rated = (any(metric in row.values for row in self.rows) for metric in ("adherence", "vmaf"))
        columns = ["policy", "seconds", "speed-up", "reused", "PSNR dB", "SSIM", "LPIPS", "LPIPS less fewer steps'"]
        columns += ["VMAF"] * rated + ["prompt followed"] * judged
        lines = ["| " + " | ".join(columns) + " |", "|" + "-|" * len(columns)]
        for row in self.rows:
            cells = [row.policy, f"{row.seconds:.3f}", f"{row.speedup:.2f}x", f"{row.reused:.0%}"]
            cells += [row.summary(metric).text if metric in row.values else "-" for metric in METRICS]
            against = self.against_rival(row, "lpips")
            cells.append("-" if against is None else f"{against.text} ({row.rival})")
            if rated:
                cells.append(row.summary("vmaf").text if "vmaf" in row.values else "-")
            if judged:
                cells.append(row.summary("adherence").text)
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, *self._made_otherwise()]) + f"\n\n{self.about}\n"

    def _made_otherwise(self) -> list[str]:
        """Lines of a table of what that costs."""
        rows = [row for row in self.rows if row.plain is not None]
        if not rows:
            return []
        speeds = self.header.get("speeds")
        usual = f"policy | time over {speeds[0]}" if speeds else "policy, updates kept as | time over as they are"
        lines = ["", f"| {usual} | LPIPS more | PSNR dB more |", "|-|-|-|-|"]
        for row in rows:
            more = (self.against_plain(row, metric) for metric in ("lpips", "psnr"))
            cells = [row.policy, summarise(row.over_plain).text, *("-" if m is None else m.text for m in more)]
            lines.append("| " + " | ".join(cells) + " |")
        return lines


def draw_quality(report: QualityReport, path: Path, metric: str = "lpips") -> None:
    """Distance against time: the policies, and the line of fewer steps. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in report.rows if metric in row.values and not row.summary(metric).not_numbers]
    steps = (row for row in shown if row.policy.startswith("steps") and row.plain is None)
    fewer = sorted(steps, key=lambda row: row.seconds)
    others = [row for row in shown if row not in fewer]
    for rows, style in ((fewer, "o--"), (others, "s")):
        means = [row.summary(metric) for row in rows]
        label = "fewer steps" if rows is fewer else "policies"
        seconds, heights = [row.seconds for row in rows], [mean.mean for mean in means]
        axes.errorbar(seconds, heights, [mean.error for mean in means], fmt=style, label=label)
        for row, mean in zip(rows, means, strict=True):
            axes.annotate(row.policy, (row.seconds, mean.mean), xytext=(5, 4), textcoords="offset points", fontsize=8)
    means = [row.summary(metric).mean for row in shown]
    least = min((mean for mean in means if mean > 0), default=0.0)
    if 0 < FAR_APART * least < max(means):
        if min(means) > 0:
            axes.set_yscale("log")
        else:  # what reuses nothing has no power of ten: 0 stands below the least of them
            power = 10.0 ** math.floor(math.log10(least))
            axes.set_yscale("symlog", linthresh=power, linscale=0.5)
            axes.set_ylim(bottom=-0.1 * power)
    axes.set(xlabel="seconds of the denoise loop", ylabel=f"{metric.upper()} from the video without reuse")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{report.header['model']}, {report.clips} clips")
    figure.savefig(path, dpi=110)
