"""The denoising's time and peak memory against length and size of the clip: each policy in turn, each case in a line of
a file that an interrupted measurement goes on with.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..pipeline import WARM_UP_STEPS, Pipeline
from ..settings import clip_size
from ..text import TextEmbedding
from .costs import now
from .machine import describe_machine
from .random_weights import random_text
from .results import ResultFile

PROMPT = "a red ball rolls left over a green floor"
TOKENS = 20  # of the random text where there is no text encoder

Size = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True)
class LatencyRow:
    size: Size
    tokens: int  # of the video, a call of the model
    seconds: dict[str, float | None]  # policy -> median of the rounds; None: not enough memory
    peak: dict[str, int | None]  # policy -> bytes that tensors took on the GPU; None on a CPU

    def to_json(self) -> dict[str, Any]:
        frames, height, width = self.size
        about = {"num_frames": frames, "height": height, "width": width, "tokens": self.tokens}
        return about | {"seconds": self.seconds, "peak": self.peak}


@dataclass(frozen=True)
class LatencyReport:
    header: dict[str, Any]
    machine: dict[str, str | int]
    rows: tuple[LatencyRow, ...]

    @property
    def policies(self) -> list[str]:
        return list(self.rows[0].seconds)

    def to_json(self) -> dict[str, Any]:
        return {**self.header, "machine": self.machine, "runs": [row.to_json() for row in self.rows]}

    def to_markdown(self) -> str:
        columns = ["frames", "size", "video tokens"]
        for name in self.policies:
            columns += [f"{name} s", *(["speed-up"] if name != "off" else [])]
        shows_peak = any(value for row in self.rows for value in row.peak.values())
        columns += [f"{name} GiB" for name in self.policies] if shows_peak else []
        lines = ["| " + " | ".join(columns) + " |", "|" + "-|" * len(columns)]
        for row in self.rows:
            frames, height, width = row.size
            cells, off = [str(frames), f"{width}x{height}", str(row.tokens)], row.seconds["off"]
            for name, seconds in row.seconds.items():
                cells.append("no memory" if seconds is None else f"{seconds:.3f}")
                if name != "off":
                    cells.append("-" if seconds is None or off is None else f"{off / seconds:.2f}x")
            if shows_peak:
                cells += ["-" if peak is None else f"{peak / 2**30:.2f}" for peak in row.peak.values()]
            lines.append("| " + " | ".join(cells) + " |")
        h = self.header
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        about = (
            f"{h['model']}, {h['weights']} weights, {h['dtype']}, {h['steps']} steps, {h['text_tokens']} text tokens"
        )
        return "\n".join(lines) + f"\n\n{about}, median of {h['repeat']} rounds; {machine}\n"


def measure_latency(
    pipe: Pipeline,
    sizes: Sequence[Size],
    policies: Sequence[str],
    path: Path,
    *,
    steps: int | None = None,
    repeat: int = 3,
    seed: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> LatencyReport:
    """Times off and the policies at each size; where there is no text encoder, with random text.

    Raises:
        PabError: a size that the model cannot take; the file is of other settings.
    """
    names = ["off", *policies]
    for frames, height, width in sizes:
        clip_size(pipe.spec, frames, height, width)
        for name in names:
            pipe.schedule(name, steps=steps, num_frames=frames, height=height, width=width)
    text = random_text(pipe, TOKENS) if pipe.text_encoder is None else pipe.encode_prompt(PROMPT)
    header = {
        "model": pipe.spec.name,
        "weights": "trained" if pipe.spec.trained else "random",
        "dtype": str(text.tokens.dtype).removeprefix("torch."),
        "steps": pipe.spec.steps if steps is None else steps,
        "text_tokens": text.tokens.shape[1],
        "policies": names,
        "repeat": repeat,
    }
    file = ResultFile(path, header)
    for done, size in enumerate(sizes):
        if on_progress is not None:
            on_progress(done, len(sizes))
        if file.find(size=list(size)) is None:
            seconds, peak = _time(pipe, size, names, text, steps, repeat, seed)
            file.add(
                {"size": list(size), "seconds": seconds, "peak": peak, "machine": describe_machine(str(pipe.device))}
            )
    if on_progress is not None:
        on_progress(len(sizes), len(sizes))
    found = [line for size in sizes if (line := file.find(size=list(size))) is not None]
    rows = tuple(
        LatencyRow(size, _tokens(pipe, size), line["seconds"], line["peak"])
        for size, line in zip(sizes, found, strict=True)
    )
    return LatencyReport(header, found[0]["machine"], rows)


def _time(
    pipe: Pipeline, size: Size, names: Sequence[str], text: TextEmbedding, steps: int | None, repeat: int, seed: int
) -> tuple[dict[str, float | None], dict[str, int | None]]:
    clip = dict(zip(("num_frames", "height", "width"), size, strict=True))
    noise = pipe.prepare_latents(seed, **clip)
    taken: dict[str, list[float]] = {name: [] for name in names}
    peak: dict[str, int | None] = dict.fromkeys(names)
    lacking: set[str] = set()
    few = min(WARM_UP_STEPS, pipe.spec.steps if steps is None else steps)
    for turn in range(-1, repeat):  # a short one goes ahead: kernels are chosen, memory is claimed
        for name in names:
            count = few if turn < 0 else steps
            table = pipe.schedule("off" if turn < 0 else name, steps=count, **clip)
            if name in lacking:
                continue
            if pipe.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pipe.device)
            try:
                start = now(pipe.device)
                pipe.denoise(noise, text, table, steps=count, seed=seed, **clip)
                elapsed = now(pipe.device) - start
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                lacking.add(name)
                continue
            if turn >= 0:
                taken[name].append(elapsed)
                peak[name] = torch.cuda.max_memory_allocated(pipe.device) if pipe.device.type == "cuda" else None
    return {name: None if name in lacking else statistics.median(taken[name]) for name in names}, peak


def _tokens(pipe: Pipeline, size: Size) -> int:
    frames, height, width = size
    patch = pipe.transformer.config.patch_size
    rows, columns = patch[1:] if isinstance(patch, tuple) else (patch, patch)
    space = pipe.spec.space_factor
    return pipe.spec.latent_frames(frames) * -(-(height // space) // rows) * -(-(width // space) // columns)


def usual_sizes(pipe: Pipeline) -> list[Size]:
    """The model's own length and twice that, at its own size and at half of each side."""
    spec = pipe.spec
    unit = spec.space_factor * spec.latent_multiple
    whole = (spec.height // unit * unit, spec.width // unit * unit)
    half = (whole[0] // 2 // unit * unit, whole[1] // 2 // unit * unit)
    twice = spec.first_frames + 2 * (spec.num_frames - spec.first_frames)
    return [(frames, *side) for side in (half, whole) for frames in (spec.num_frames, twice)]


def draw_latency(report: LatencyReport, path: Path) -> None:
    """Seconds against the tokens of the video. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in report.policies:
        points = sorted((row.tokens, s) for row in report.rows if (s := row.seconds[name]) is not None)
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=name)
    axes.set(xlabel="tokens of the video", ylabel="seconds of the denoise loop")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{report.header['model']}, {report.header['weights']} weights")
    figure.savefig(path, dpi=110)
