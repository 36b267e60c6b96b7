"""How much faster a policy is, and how near its video stays: `off` and policies take turns in one process."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..acceleration.choice import Speed, transformer_dtype
from ..broadcast import AnyPolicy, ScheduleTable
from ..errors import PabError
from ..pipeline import WARM_UP_STEPS, Pipeline
from ..settings import clip_size
from ..text import TextEmbedding
from .machine import describe_machine
from .random_weights import random_text

PROMPT = "a red ball rolls left over a green floor"


@dataclass(frozen=True)
class SpeedRow:
    """One policy's measurements."""

    policy: str
    seconds: tuple[float, ...]  # of the denoise loop, one for each round
    speedup: float  # median time of off / median time of this policy
    reused: dict[str, float]  # kind -> share, 0..1
    psnr: float | None  # dB of its frames against those of off; None = identical, or the model has no VAE
    reused_share: float = 0.0  # of all branch calls
    speed: str = "exact"  # how it was computed
    difference: float = 0.0  # relative distance of the clean latents from the first row's
    peak_bytes: int | None = None  # of tensors on the GPU in the loop; None on a CPU
    kept: str = "plain"  # where updates waited

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class SpeedReport:
    """`rows` begins with off."""

    model: str
    weights: str  # "trained" or "random"
    machine: dict[str, str | int]
    settings: dict[str, Any]
    rows: tuple[SpeedRow, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "policy": row.policy,
                "seconds": [round(s, 4) for s in row.seconds],
                "median": round(row.median, 4),
                "speedup": round(row.speedup, 4),
                "reused": {kind: round(share, 4) for kind, share in row.reused.items()},
                "psnr": None if row.psnr is None else round(row.psnr, 2),
                "speed": row.speed,
                "difference": float(f"{row.difference:.3g}"),
                "peak_bytes": row.peak_bytes,
            }
            for row in self.rows
        ]
        return {
            "model": self.model,
            "weights": self.weights,
            "machine": self.machine,
            "settings": self.settings,
            "runs": rows,
        }


def measure_speed(
    pipe: Pipeline,
    policies: Sequence[str | AnyPolicy],
    *,
    prompt: str = PROMPT,
    seed: int = 1,
    repeat: int = 3,
    clips: int = 1,
    kept: str | Sequence[str] = "plain",
    steps: int | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    speeds: Sequence[Speed | Pipeline] | None = None,
    text_tokens: int = 300,
    on_run: Callable[[int, int], None] | None = None,
) -> SpeedReport:
    """Times the denoise loop of off and of each policy, same prompt and noise, in turn within each round.

    Each round starts with another of them, so that a machine that warms up or throttles favours none. A few steps run
    before, unmeasured.

    Args:
        clips: made together; a GPU that a single small clip leaves idle is timed with more.
        kept: where updates wait, as in Pipeline.generate; of several, each policy is timed with each of them, off with
            the first.
        speeds: each policy at each of them, off at the first being what the others are compared with; a pipeline is the
            same model, loaded at one. None: the pipeline's own.
        text_tokens: of random text, where the pipeline has no text encoder.
        on_run: (runs done, runs in all), also called with 0 at the start.
    """
    check_rounds(repeat)
    size: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width}
    pipes = [pipe]
    if speeds is not None:
        pipes = [one if isinstance(one, Pipeline) else at_speed(pipe, one) for one in speeds]
    stores = [kept] if isinstance(kept, str) else list(kept)
    cases = [(one, policy, stores[0]) for one in pipes for policy in ("off", *policies)]
    cases += [(one, policy, store) for store in stores[1:] for one in pipes for policy in policies]
    tables = [one.schedule(policy, steps=steps, **size) for one, policy, _ in cases]
    once = random_text(pipe, text_tokens) if pipe.text_encoder is None else pipe.encode_prompt(prompt)
    text = _repeated(once, clips)
    noise = torch.cat([pipe.prepare_latents(seed + i, **size) for i in range(clips)])

    def timed(one: Pipeline, table: ScheduleTable, steps: int | None, kept: str) -> tuple[float, Tensor, ScheduleTable]:
        run = one.new_run(table, kept)
        _finish(pipe.device)
        start = time.perf_counter()
        latents = one.denoise(noise, text, table, steps=steps, seed=seed, run=run, **size)
        _finish(pipe.device)
        return time.perf_counter() - start, latents, run.taken

    asked, peaks = list(tables), [0 for _ in tables]
    few = min(WARM_UP_STEPS, tables[0].steps)
    for one in pipes:
        timed(one, one.schedule("off", steps=few, **size), few, "plain")
    seconds: list[list[float]] = [[] for _ in tables]
    latents: dict[int, Tensor] = {}
    on_gpu = pipe.device.type == "cuda"
    total = repeat * len(tables)
    for done in range(total):
        if on_run is not None:
            on_run(done, total)
        turn, place = divmod(done, len(tables))
        which = (turn + place) % len(tables)
        # What it decided itself to reuse, it tells only now.
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(pipe.device)
        case, _, store = cases[which]
        elapsed, latents[which], tables[which] = timed(case, asked[which], steps, store)
        seconds[which].append(elapsed)
        if on_gpu:
            peaks[which] = torch.cuda.max_memory_allocated(pipe.device)
    if on_run is not None:
        on_run(total, total)

    frames = [pipe.decode(latents[i][:1], num_frames) for i in range(len(tables))] if pipe.vae is not None else None
    medians = [statistics.median(s) for s in seconds]
    rows = tuple(
        SpeedRow(
            policy=table.policy,
            seconds=tuple(seconds[i]),
            speedup=medians[0] / medians[i],
            reused={kind: table.reused_share(kind) for kind in table.kinds},
            psnr=None if frames is None else psnr(frames[i], frames[0]),
            reused_share=table.reused_share(),
            speed=cases[i][0].speed,
            difference=float((latents[i] - latents[0]).norm() / latents[0].norm()),
            peak_bytes=peaks[i] if on_gpu else None,
            kept=cases[i][2],
        )
        for i, table in enumerate(tables)
    )
    count, tall, wide = clip_size(pipe.spec, num_frames, height, width)
    settings = {"prompt": prompt, "seed": seed, "repeat": repeat, "steps": tables[0].steps}
    settings |= {"num_frames": count, "height": tall, "width": wide} | ({"clips": clips} if clips > 1 else {})
    settings |= {"text_tokens": text.tokens.shape[1]}
    weights = "trained" if pipe.spec.trained else "random"
    return SpeedReport(pipe.spec.name, weights, describe_machine(str(pipe.device)), settings, rows)


def at_speed(pipe: Pipeline, speed: Speed) -> Pipeline:
    """The same model, loaded as exact, at another speed; shares what it can. Not for fp8, which has other weights."""
    before = next(pipe.transformer.parameters()).dtype
    dtype = transformer_dtype(speed, pipe.device, before)
    model = pipe.transformer if dtype == before else copy.deepcopy(pipe.transformer).to(dtype)
    return replace(pipe, speed=speed, transformer=model)


def check_rounds(repeat: int) -> int:
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise PabError(f"The number of rounds must be a whole number, 1 or more, not {repeat!r}.")
    return repeat


def psnr(frames: Tensor, reference: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB of uint8 videos [T, H, W, 3] over all their pixels; None = identical."""
    error = (frames.double() - reference.double()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else None


def _repeated(text: TextEmbedding, count: int) -> TextEmbedding:
    """The same prompt so many times, [1, L, D] -> [count, L, D]."""
    tokens, mask, away = (
        None if one is None else one.repeat_interleave(count, 0) for one in (text.tokens, text.mask, text.negative)
    )
    assert tokens is not None
    assert mask is not None
    return replace(text, tokens=tokens, mask=mask, negative=away)


def _finish(device: torch.device) -> None:
    """A GPU works behind the program's back: wait for it before the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
