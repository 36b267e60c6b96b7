"""How near each policy's videos stay to those of the same seed that nothing was reused for, and at which time.

Every clip is made by every policy, so differences between policies are paired: what clips differ in cancels. Beside
each policy stands what plainly fewer steps give in the same measured time. All that is measured goes to a file of JSON
lines as it comes, and what is there already is not measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..broadcast import AnyPolicy
from ..errors import PabError
from ..pipeline import Pipeline
from .bench import measure_speed
from .candidates import digest
from .generation import Clip, make_videos
from .lpips import Lpips
from .metrics import METRICS, Distance, compare_all, find_ssim
from .quality_report import QualityReport, QualityRow
from .results import ResultFile
from .vmaf import Vmaf

# videos uint8 [T, H, W, 3], on any device, and prompts -> for each the share, 0..1, of what is asked for that is seen
Judge = Callable[[Sequence[Tensor], Sequence[str]], list[float]]
OnProgress = Callable[[int, int], None]
_SOME = 3  # rounds of which the first can be done without
Key = tuple[str, str, str, int]  # policy, digest of its table, prompt, seed


class Form(NamedTuple):
    """A policy, where its updates wait, and which other speed it is made at, if any."""

    policy: str
    kept: str = "plain"
    speed: str | None = None

    @property
    def name(self) -> str:
        kept = "" if self.kept == "plain" else f", {self.kept}"
        return f"{self.policy}{kept}{f' at {self.speed}' if self.speed else ''}"


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
    others: Sequence[Pipeline] = (),
    repeat: int = 3,
    timed_clips: int = 1,
    until: float | None = None,
    on_progress: OnProgress | None = None,
) -> QualityReport:
    """Times off and the policies, adds the rivals of fewer steps, makes all clips and compares them.

    Args:
        path: of the results, JSON lines. Where it exists, it must be of the same model, clips and machine.
        batch: clips made together; it changes the results by rounding only.
        kept: where updates wait, as in Pipeline.generate: beside each policy whose updates are kept as they are, it is
            measured with that, too; the name of the row says so.
        others: the same model at other speeds, see quality_speeds: off and the policies are measured at them, too,
            and compared with what `pipe` makes without reuse.
        timed_clips: made together where the time is measured, which is told for one clip.
        until: of time.monotonic(); from then on no more clips are made than the first batch, and the report is of
            those that all policies have made.
        on_progress: (clips done, clips in all), over all policies.

    Raises:
        PabError: the file is of other settings; unknown policies; SSIM's package is not installed.
    """
    find_ssim()
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
        **({"speeds": [one.speed for one in (pipe, *others)], "precision": _precision(pipe)} if others else {}),
    }
    file = ResultFile(path, header)
    timing = _times(pipe, by_name, file, repeat, timed_clips, kept, others)
    pipes: dict[str | None, Pipeline] = {None: pipe, **{one.speed: one for one in others}}
    made_as = [Form(name, store, speed) for name in ("off", *by_name) for store in ("plain", kept) for speed in pipes]
    known = {form.name: form for form in made_as}
    forms = {name: known.get(name, Form(name)) for name in ("off", *timing["seconds"])}
    tables = {name: pipe.schedule(by_name.get(form.policy, form.policy)) for name, form in forms.items()}
    # A name may come to mean another schedule, as that of one calibrated anew.
    keys = {name: (name, digest(table)) for name, table in tables.items()}
    made = {_key(line): line for line in file.lines if "prompt" in line}

    total, done, finished = len(forms) * len(clips), 0, 0
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        reference: list[Tensor | None] | None = None
        for name, form in forms.items():
            lacking = [clip for clip in part if (*keys[name], clip.prompt, clip.seed) not in made]
            if lacking:
                if finished and until is not None and time.monotonic() > until:
                    return _report(made, header, timing, keys, forms, clips[:finished])
                if reference is None:
                    reference, _ = make_videos(pipe, part, tables["off"])
                if name == "off":
                    videos, reused = reference, [0.0] * len(part)
                else:
                    videos, reused = make_videos(pipes[form.speed], part, tables[name], kept=form.kept)
                for line in _lines(keys[name], part, videos, reference, reused, lpips, vmaf, judge):
                    if _key(line) not in made:
                        file.add(line)
                        made[_key(line)] = line
            done += len(part)
            if on_progress is not None:
                on_progress(done, total)
        finished = start + len(part)
    return _report(made, header, timing, keys, forms, clips)


def _key(line: Mapping[str, Any]) -> Key:
    return line["policy"], line["table"], line["prompt"], line["seed"]


def _times(
    pipe: Pipeline,
    by_name: Mapping[str, str | AnyPolicy],
    file: ResultFile,
    repeat: int,
    timed_clips: int,
    kept: str,
    others: Sequence[Pipeline],
) -> dict[str, Any]:
    """Measured, or as they were before: seconds of off, of the policies and of the rivals of fewer steps."""
    named = {name: digest(pipe.schedule(policy)) for name, policy in by_name.items()}
    if (found := file.find(what="times", policies=named)) is not None:
        return found
    stores = ["plain"] if kept == "plain" else ["plain", kept]
    speed = measure_speed(
        pipe,
        list(by_name.values()),
        repeat=repeat,
        clips=timed_clips,
        kept=stores,
        speeds=[pipe, *others] if others else None,
    )
    rows = {
        Form(row.policy, row.kept, None if row.speed == pipe.speed else row.speed): row
        for row in speed.rows
        if row.kept == "plain" or row.reused_share > 0
    }
    seconds = {form.name: row.median / timed_clips for form, row in rows.items()}
    warm = 1 if repeat >= _SOME else 0  # kernels are made in the first round
    over = {
        form.name: [a / b for a, b in zip(row.seconds, rows[Form(form.policy)].seconds, strict=True)][warm:]
        for form, row in rows.items()
        if form != Form(form.policy)
    }

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
    timing["reused"] = {form.name: row.reused_share for form, row in rows.items()}
    timing["over_plain"] = over
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
    reused: Sequence[float],
    lpips: Lpips | None,
    vmaf: Vmaf | None,
    judge: Judge | None,
) -> Iterable[dict[str, Any]]:
    broken = Distance(math.nan, math.nan, math.nan)
    pairs = {
        i: (a, b) for i, (a, b) in enumerate(zip(videos, reference, strict=True)) if a is not None and b is not None
    }
    far = {} if key[0] == "off" else dict(zip(pairs, compare_all(list(pairs.values()), lpips), strict=True))
    for i, (clip, video, plain, share) in enumerate(zip(clips, videos, reference, reused, strict=True)):
        line: dict[str, Any] = {"policy": key[0], "table": key[1], "prompt": clip.prompt, "seed": clip.seed}
        line["reused"] = share
        if key[0] != "off":
            found = far.get(i, broken)
            line |= {metric: _told(getattr(found, metric)) for metric in METRICS if metric != "lpips" or lpips}
            if vmaf is not None:
                line["vmaf"] = None if video is None or plain is None else _told(vmaf(video.cpu(), plain.cpu()))
        if judge is not None:
            line["adherence"] = None if video is None else _told(judge([video], [clip.prompt])[0])
        yield line


def _report(
    made: Mapping[Key, Mapping[str, Any]],
    header: Mapping[str, Any],
    timing: Mapping[str, Any],
    keys: Mapping[str, tuple[str, str]],
    forms: Mapping[str, Form],
    clips: Sequence[Clip],
) -> QualityReport:
    seconds, rows = timing["seconds"], []
    for name, key in keys.items():
        found = [made[(*key, clip.prompt, clip.seed)] for clip in clips]
        metrics = [metric for metric in (*METRICS, "vmaf", "adherence") if metric in found[0]]
        values = {m: tuple(math.nan if line[m] is None else float(line[m]) for line in found) for m in metrics}
        reused = sum(line["reused"] for line in found) / len(found)
        own, timed = seconds[name], timing["reused"].get(name, reused)
        if timed > 0:  # what decides in the run reuses more of one clip than of another
            whole = seconds[Form("off", speed=forms[name].speed).name]
            own = whole - (whole - own) * reused / timed
        over = tuple(timing["over_plain"].get(name, ()))
        plain, rival = forms[name].policy if over else None, timing["rivals"].get(name)
        rows.append(QualityRow(name, own, seconds["off"] / own, reused, values, rival, plain, over))
    about = {key: value for key, value in header.items() if key != "clips"}
    return QualityReport({**about, "machine": timing["machine"]}, len(clips), tuple(rows))


def _precision(pipe: Pipeline) -> str:
    return str(next(pipe.transformer.parameters()).dtype).removeprefix("torch.")


def _told(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None
