"""How near each policy's videos stay to those of the same seed that nothing was reused for, and at which time.

Every clip is made by every policy, so differences between policies are paired: what clips differ in cancels. Beside
each policy stands what plainly fewer steps give in the same measured time. All that is measured goes to a file of JSON
lines as it comes, and what is there already is not measured again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..broadcast import AnyPolicy
from ..errors import PabError
from ..pipeline import Pipeline
from .bench import measure_speed
from .generation import Clip, make_videos
from .lpips import Lpips
from .metrics import METRICS, Distance, Summary, compare, paired, summarise

# videos uint8 [T, H, W, 3], their prompts -> for each a share, 0..1, of what the prompt asks for that is seen
Judge = Callable[[Sequence[Tensor], Sequence[str]], list[float]]
OnProgress = Callable[[int, int], None]


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
        judged = any("adherence" in row.values for row in self.rows)
        columns = ["policy", "seconds", "speed-up", "reused", "PSNR dB", "SSIM", "LPIPS", "LPIPS less fewer steps'"]
        columns += ["prompt followed"] if judged else []
        lines = ["| " + " | ".join(columns) + " |", "|" + "-|" * len(columns)]
        for row in self.rows:
            cells = [row.policy, f"{row.seconds:.3f}", f"{row.speedup:.2f}x", f"{row.reused:.0%}"]
            cells += [row.summary(metric).text if metric in row.values else "-" for metric in METRICS]
            against = self.against_rival(row, "lpips")
            cells.append("-" if against is None else f"{against.text} ({row.rival})")
            if judged:
                cells.append(row.summary("adherence").text)
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


class ResultFile:
    """JSON lines that grow: the settings first, then what was measured."""

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            found = [json.loads(line) for line in _whole_lines(path)]
            if not found or found[0] != {"header": dict(header)}:
                raise PabError(
                    f"{path} holds results of other settings: give another file, or remove it to measure anew."
                )
            self.lines = found[1:]
            # A line that was cut off in the middle is measured again.
            path.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"header": dict(header)}) + "\n", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)

    def find(self, **fields: Any) -> dict[str, Any] | None:
        return next((line for line in self.lines if all(line.get(k) == v for k, v in fields.items())), None)


def measure_quality(
    pipe: Pipeline,
    policies: Sequence[str | AnyPolicy],
    clips: Sequence[Clip],
    path: Path,
    *,
    lpips: Lpips | None,
    judge: Judge | None = None,
    batch: int = 8,
    repeat: int = 3,
    on_progress: OnProgress | None = None,
) -> QualityReport:
    """Times off and the policies, adds the rivals of fewer steps, makes all clips and compares them.

    Args:
        path: of the results, JSON lines. Where it exists, it must be of the same model, clips and machine.
        batch: clips made together; it changes the results by rounding only.
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
    }
    file = ResultFile(path, header)
    if (timing := file.find(what="times", policies=names)) is None:
        speed = measure_speed(pipe, [by_name[name] for name in names], repeat=repeat)  # pyright: ignore[reportArgumentType]
        seconds = {row.policy: row.median for row in speed.rows}
        rivals = {name: fewer_steps(seconds[name] / seconds["off"], pipe.spec.steps) for name in names}
        extra = [name for name in dict.fromkeys(rivals.values()) if name and name not in seconds]
        if extra:
            more = measure_speed(pipe, extra, repeat=repeat)
            # Each measurement has its own off: times are told in units of it.
            scale = seconds["off"] / more.rows[0].median
            seconds |= {row.policy: row.median * scale for row in more.rows[1:]}
        timing = {"what": "times", "policies": names, "seconds": seconds, "rivals": rivals, "machine": speed.machine}
        file.add(timing)
    everyone = ["off", *(name for name in timing["seconds"] if name != "off")]
    by_name = {name: name for name in everyone} | by_name

    total, done = len(everyone) * len(clips), 0
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        reference: list[Tensor | None] | None = None
        for name in everyone:
            if not all(file.find(policy=name, prompt=clip.prompt, seed=clip.seed) for clip in part):
                if reference is None:
                    reference, _ = make_videos(pipe, part, pipe.schedule("off"))
                table = pipe.schedule(by_name[name])
                videos, reused = (reference, 0.0) if name == "off" else make_videos(pipe, part, table)
                for line in _lines(name, part, videos, reference, reused, lpips, judge):
                    if file.find(policy=name, prompt=line["prompt"], seed=line["seed"]) is None:
                        file.add(line)
            done += len(part)
            if on_progress is not None:
                on_progress(done, total)
    return _report(file, header, timing, everyone, clips)


def fewer_steps(share_of_time: float, steps: int) -> str | None:
    """The policy of plainly fewer steps that takes at least the share of a whole run's time; None: that saves none.

    At least, so that the comparison favours the rival and not the policy.
    """
    count = math.ceil(share_of_time * steps - 1e-9)
    return f"steps{count}" if 1 <= count < steps else None


def _lines(
    policy: str,
    clips: Sequence[Clip],
    videos: Sequence[Tensor | None],
    reference: Sequence[Tensor | None],
    reused: float,
    lpips: Lpips | None,
    judge: Judge | None,
) -> Iterable[dict[str, Any]]:
    for clip, video, plain in zip(clips, videos, reference, strict=True):
        line: dict[str, Any] = {"policy": policy, "prompt": clip.prompt, "seed": clip.seed, "reused": reused}
        if policy != "off":
            broken = Distance(math.nan, math.nan, math.nan)
            found = broken if video is None or plain is None else compare(video, plain, lpips)
            line |= {metric: _told(getattr(found, metric)) for metric in METRICS if metric != "lpips" or lpips}
        if judge is not None:
            line["adherence"] = None if video is None else _told(judge([video], [clip.prompt])[0])
        yield line


def _report(
    file: ResultFile,
    header: Mapping[str, Any],
    timing: Mapping[str, Any],
    everyone: Sequence[str],
    clips: Sequence[Clip],
) -> QualityReport:
    seconds, rows = timing["seconds"], []
    for name in everyone:
        lines = [file.find(policy=name, prompt=clip.prompt, seed=clip.seed) for clip in clips]
        found = [line for line in lines if line is not None]
        metrics = [metric for metric in (*METRICS, "adherence") if metric in found[0]]
        values = {m: tuple(math.nan if line[m] is None else float(line[m]) for line in found) for m in metrics}
        reused = sum(line["reused"] for line in found) / len(found)
        speedup = seconds["off"] / seconds[name]
        rows.append(QualityRow(name, seconds[name], speedup, reused, values, timing["rivals"].get(name)))
    about = {key: value for key, value in header.items() if key != "clips"}
    return QualityReport({**about, "machine": timing["machine"]}, len(clips), tuple(rows))


def _told(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    return [line for line in lines[:-1] if line]


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
    axes.set(xlabel="seconds of the denoise loop", ylabel=f"{metric.upper()} from the video without reuse")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{report.header['model']}, {report.clips} clips")
    figure.savefig(path, dpi=110)
