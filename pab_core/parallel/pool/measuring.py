"""What the choice of a method stands on, measured by the ranks: steps of a model, and the link between devices."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from ...pipeline import Pipeline
from ...results import Progress
from ...settings import clip_size
from ...text import TextEmbedding
from ..methods import Sizes
from .choice import Shape
from .group import Group
from .job import Job

_STEPS = 2  # that are timed, after one that is not
_TOKENS = 20  # of a prompt
_BYTES = {"cpu": 2**21, "cuda": 2**26}  # that a rank sends to measure the link
_CALLS = 10
_REPEATS = 3


class _Enough(Exception):
    pass


def measure_step(pipe: Pipeline, job: Job) -> float:
    """Seconds of a step that reuses nothing, at the job's size. On all ranks of the pipeline, which stop together."""
    size = dict(zip(("num_frames", "height", "width"), clip_size(pipe.spec, *_asked(job)), strict=True))
    times: list[float] = []

    def on_progress(event: Progress) -> None:
        if pipe.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) > _STEPS:
            raise _Enough

    table = pipe.schedule("off", **size)
    if table.steps <= _STEPS:
        table = pipe.schedule("off", steps=_STEPS + 1, **size)
    with suppress(_Enough):
        pipe.denoise(
            pipe.prepare_latents(0, **size),
            _some_text(pipe),
            table,
            guidance=job.guidance,
            seed=0,
            progress=on_progress,
            **size,
        )
    return (times[-1] - times[0]) / (len(times) - 1)


def measure_link(group: Group, device: torch.device) -> dict[str, float]:
    """Latency in seconds and bandwidth in bytes a second of all-to-all exchanges; collective."""

    def timed(size: int, calls: int) -> float:
        data = torch.zeros(size // group.size * group.size, dtype=torch.uint8, device=device)
        received = torch.empty_like(data)
        dist.all_to_all_single(received, data)
        group.any(False)
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            for _ in range(calls):
                dist.all_to_all_single(received, data)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / calls)
        return min(times)  # what disturbs only makes it longer

    latency = timed(group.size, _CALLS)
    size = _BYTES.get(device.type, 2**21)
    leaving = size * (group.size - 1) / group.size
    whole = timed(size, 3)
    return {"latency": latency, "bandwidth": leaving / max(whole - latency, whole / 2)}


def shape_of(pipe: Pipeline, job: Job) -> dict[str, Any]:
    """choice.Shape as plain data."""
    config: Any = pipe.transformer.config
    sizes = Sizes.of_clip(pipe.spec, config, *_asked(job), job.guidance)
    weight = next(pipe.transformer.parameters())
    width = weight.element_size() if weight.is_floating_point() else 2
    shape = Shape(
        sizes.frames, sizes.tokens, sizes.heads, sizes.guided, config.hidden_size, pipe.spec.depth, max(width, 2)
    )
    return asdict(shape)


def _asked(job: Job) -> tuple[int | None, int | None, int | None]:
    return job.num_frames, job.height, job.width


def _some_text(pipe: Pipeline) -> TextEmbedding:
    """An embedding of nothing in particular: no text encoder need be loaded to take the time of steps."""
    tokens = torch.zeros(1, _TOKENS, pipe.transformer.config.caption_channels, dtype=_dtype(pipe))
    return TextEmbedding(tokens, torch.ones(1, _TOKENS, dtype=torch.bool), negative=tokens)


def _dtype(pipe: Pipeline) -> torch.dtype:
    """Of the arithmetic: weights kept in eight bits have norms and biases beside them that tell it."""
    found = {parameter.dtype for parameter in pipe.transformer.parameters()}
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in found), torch.float32)
