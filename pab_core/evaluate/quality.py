"""How near each policy's videos stay to those of the same seed that nothing was reused for, and at which time.

Every clip is made by every policy, so differences between policies are paired: what clips differ in cancels. Beside
each policy stands what plainly fewer steps give in the same measured time. All that is measured goes to a file of JSON
lines as it comes, and what is there already is not measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..broadcast import AnyPolicy
from ..errors import PabError
from ..pipeline import Pipeline
from .bench import measure_speed
from .calibrate import digest
from .generation import Clip, make_videos
from .lpips import Lpips
from .metrics import METRICS, Distance, Summary, compare, paired, summarise
from .results import ResultFile
from .vmaf import Vmaf

# videos uint8 [T, H, W, 3], their prompts -> for each a share, 0..1, of what the prompt asks for that is seen
Judge = Callable[[Sequence[Tensor], Sequence[str]], list[float]]
OnProgress = Callable[[int, int], None]
_WIDE = 50  # distances that differ by more are drawn on a logarithmic scale
Key = tuple[str, str, str, int]  # policy, digest of its table, prompt, seed


@dataclass(frozen=True)
class QualityRow:
    """One policy over all clips."""

    policy: str
    seconds: float  # median of the denoise loop of one clip
    speedup: float  # off's seconds over these
    reused: float  # share of all branch calls
    values: Mapping[str, tuple[float, ...]]  # psnr, ssim, lpips and, where judged, adherence: a value for each clip
    rival: str | None  # fewer steps of the same time

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

    @property
    def about(self) -> str:
        """What was measured, and on which machine, in a line."""
        h = self.header
        machine = ", ".join(f"{name} {value}" for name, value in h["machine"].items())
        timed, kept = h.get("timed_clips", 1), f", updates kept as {h['kept']}" if "kept" in h else ""
        return (
            f"{h['model']}, {h['weights']} weights, {h['steps']} steps, {self.clips} clips"
            f"{f', timed {timed} together' if timed > 1 else ''}{kept}; {machine}"
        )

    def to_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            told: dict[str, Any] = {"policy": row.policy, "seconds": round(row.seconds, 4)}
            told |= {"speedup": round(row.speedup, 4), "reused": round(row.reused, 4)}
            told |= {metric: row.summary(metric).to_json() for metric in row.values}
            if row.rival is not None:
                differences = {metric: self.against_rival(row, metric) for metric in row.values}
                told["rival"] = row.rival
                told["less_rival"] = {m: d.to_json() for m, d in differences.items() if d is not None}
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
        return "\n".join(lines) + f"\n\n{self.about}\n"


def measure_quality(
    pipe: Pipeline,
    policies: Sequence[str | AnyPolicy],
    clips: Sequence[Clip],
    path: Path,
    *,
    lpips: Lpips | None,
    judge: Judge | None = None,
    vmaf: Vmaf | None = None,
    batch: int = 8,
    kept: str = "plain",
    repeat: int = 3,
    timed_clips: int = 1,
    until: float | None = None,
    on_progress: OnProgress | None = None,
) -> QualityReport:
    """Times off and the policies, adds the rivals of fewer steps, makes all clips and compares them.

    Args:
        path: of the results, JSON lines. Where it exists, it must be of the same model, clips and machine.
        batch: clips made together; it changes the results by rounding only.
        kept: where updates wait, as in Pipeline.generate.
        timed_clips: made together where the time is measured, which is told for one clip.
        until: of time.monotonic(); from then on no more clips are made than the first batch, and the report is of
            those that all policies have made.
        on_progress: (clips done, clips in all), over all policies.

    Raises:
        PabError: the file is of other settings; unknown policies.
    """
    names = [policy if isinstance(policy, str) else policy.name for policy in policies]
    by_name: dict[str, str | AnyPolicy] = dict(zip(names, policies, strict=True))
    header = {
        "model": pipe.spec.name,
        "weights": "trained" if pipe.spec.trained else "random",
        "steps": pipe.spec.steps,
        "clips": [[clip.prompt, clip.seed] for clip in clips],
        "lpips": lpips is not None,
        **({"vmaf": True} if vmaf is not None else {}),
        **({"timed_clips": timed_clips} if timed_clips > 1 else {}),
        **({"kept": kept} if kept != "plain" else {}),
    }
    file = ResultFile(path, header)
    timing = _times(pipe, by_name, file, repeat, timed_clips, kept)
    everyone = ["off", *(name for name in timing["seconds"] if name != "off")]
    chosen = {name: name for name in everyone} | by_name
    tables = {name: pipe.schedule(chosen[name]) for name in everyone}
    # A name may come to mean another schedule, as that of one calibrated anew.
    keys = {name: (name, digest(table)) for name, table in tables.items()}
    made = {_key(line): line for line in file.lines if "prompt" in line}

    total, done, finished = len(everyone) * len(clips), 0, 0
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        reference: list[Tensor | None] | None = None
        for name in everyone:
            lacking = [clip for clip in part if (*keys[name], clip.prompt, clip.seed) not in made]
            if lacking:
                if finished and until is not None and time.monotonic() > until:
                    return _report(made, header, timing, keys, clips[:finished])
                if reference is None:
                    reference, _ = make_videos(pipe, part, tables["off"])
                videos, reused = (reference, 0.0) if name == "off" else make_videos(pipe, part, tables[name], kept=kept)
                for line in _lines(keys[name], part, videos, reference, reused, lpips, vmaf, judge):
                    if _key(line) not in made:
                        file.add(line)
                        made[_key(line)] = line
            done += len(part)
            if on_progress is not None:
                on_progress(done, total)
        finished = start + len(part)
    return _report(made, header, timing, keys, clips)


def _key(line: Mapping[str, Any]) -> Key:
    return line["policy"], line["table"], line["prompt"], line["seed"]


def _times(
    pipe: Pipeline,
    by_name: Mapping[str, str | AnyPolicy],
    file: ResultFile,
    repeat: int,
    timed_clips: int,
    kept: str = "plain",
) -> dict[str, Any]:
    """Measured, or as they were before: seconds of off, of the policies and of the rivals of fewer steps."""
    named = {name: digest(pipe.schedule(policy)) for name, policy in by_name.items()}
    if (found := file.find(what="times", policies=named)) is not None:
        return found
    speed = measure_speed(pipe, list(by_name.values()), repeat=repeat, clips=timed_clips, kept=kept)
    seconds = {row.policy: row.median / timed_clips for row in speed.rows}

    def calls(steps: int) -> int:
        try:
            return pipe.schedule("off", steps=steps).steps
        except PabError:  # some samplers make no run of so few
            return 0

    rivals = {name: fewer_steps(seconds[name] / seconds["off"], pipe.spec.steps, calls) for name in by_name}
    extra = [name for name in dict.fromkeys(rivals.values()) if name and name not in seconds]
    if extra:
        more = measure_speed(pipe, extra, repeat=repeat, clips=timed_clips)
        # Each measurement has its own off: times are told in units of it.
        scale = seconds["off"] / more.rows[0].median
        seconds |= {row.policy: row.median * scale for row in more.rows[1:]}
    timing = {"what": "times", "policies": named, "seconds": seconds, "rivals": rivals, "machine": speed.machine}
    timing["reused"] = {row.policy: row.reused_share for row in speed.rows}
    file.add(timing)
    return timing


def fewer_steps(share_of_time: float, steps: int, calls: Callable[[int], int] = int) -> str | None:
    """The policy of plainly fewer steps that takes at least the share of a whole run's time; None: that saves none.

    At least, so that the comparison favours the rival and not the policy.

    calls: of the model, in so many steps; some samplers make more.
    """
    wanted = share_of_time * calls(steps) - 1e-9
    count = next((n for n in range(1, steps) if calls(n) >= wanted), None)
    return None if count is None else f"steps{count}"


def _lines(
    key: tuple[str, str],
    clips: Sequence[Clip],
    videos: Sequence[Tensor | None],
    reference: Sequence[Tensor | None],
    reused: float,
    lpips: Lpips | None,
    vmaf: Vmaf | None,
    judge: Judge | None,
) -> Iterable[dict[str, Any]]:
    for clip, video, plain in zip(clips, videos, reference, strict=True):
        line: dict[str, Any] = {
            "policy": key[0],
            "table": key[1],
            "prompt": clip.prompt,
            "seed": clip.seed,
            "reused": reused,
        }
        if key[0] != "off":
            broken = Distance(math.nan, math.nan, math.nan)
            found = broken if video is None or plain is None else compare(video, plain, lpips)
            line |= {metric: _told(getattr(found, metric)) for metric in METRICS if metric != "lpips" or lpips}
            if vmaf is not None:
                line["vmaf"] = None if video is None or plain is None else _told(vmaf(video, plain))
        if judge is not None:
            line["adherence"] = None if video is None else _told(judge([video], [clip.prompt])[0])
        yield line


def _report(
    made: Mapping[Key, Mapping[str, Any]],
    header: Mapping[str, Any],
    timing: Mapping[str, Any],
    keys: Mapping[str, tuple[str, str]],
    clips: Sequence[Clip],
) -> QualityReport:
    seconds, rows = timing["seconds"], []
    for name, key in keys.items():
        found = [made[(*key, clip.prompt, clip.seed)] for clip in clips]
        metrics = [metric for metric in (*METRICS, "vmaf", "adherence") if metric in found[0]]
        values = {m: tuple(math.nan if line[m] is None else float(line[m]) for line in found) for m in metrics}
        reused = sum(line["reused"] for line in found) / len(found)
        off, own, timed = seconds["off"], seconds[name], timing["reused"].get(name, reused)
        if timed > 0:  # what decides in the run reuses more of one clip than of another
            own = off - (off - own) * reused / timed
        rows.append(QualityRow(name, own, off / own, reused, values, timing["rivals"].get(name)))
    about = {key: value for key, value in header.items() if key != "clips"}
    return QualityReport({**about, "machine": timing["machine"]}, len(clips), tuple(rows))


def _told(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None


def draw_quality(report: QualityReport, path: Path, metric: str = "lpips") -> None:
    """Distance against time: the policies, and the line of fewer steps. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in report.rows if metric in row.values and not row.summary(metric).not_numbers]
    fewer = sorted((row for row in shown if row.policy.startswith("steps")), key=lambda row: row.seconds)
    others = [row for row in shown if row not in fewer]
    for rows, style in ((fewer, "o--"), (others, "s")):
        means = [row.summary(metric) for row in rows]
        label = "fewer steps" if rows is fewer else "policies"
        seconds, heights = [row.seconds for row in rows], [mean.mean for mean in means]
        axes.errorbar(seconds, heights, [mean.error for mean in means], fmt=style, label=label)
        for row, mean in zip(rows, means, strict=True):
            axes.annotate(row.policy, (row.seconds, mean.mean), xytext=(5, 4), textcoords="offset points", fontsize=8)
    means = [row.summary(metric).mean for row in shown]
    if min(means, default=0) > 0 and max(means) > _WIDE * min(means):
        axes.set_yscale("log")
    axes.set(xlabel="seconds of the denoise loop", ylabel=f"{metric.upper()} from the video without reuse")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{report.header['model']}, {report.clips} clips")
    figure.savefig(path, dpi=110)
