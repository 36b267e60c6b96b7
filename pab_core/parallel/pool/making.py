"""A job's work on a pipeline, on one rank or on all of them alike -> what is told of the result, and its tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...errors import PabError
from ...pipeline import Pipeline
from ...results import ProgressCallback
from .job import Job, policy_from_plain, table_to_plain, text_of

Result = tuple[dict[str, Any], dict[str, Tensor]]


def make_video(pipe: Pipeline, job: Job, tensors: Mapping[str, Tensor], progress: ProgressCallback) -> Result:
    made = pipe.generate(
        job.prompt,
        negative=job.negative,
        policy=policy_from_plain(job.policy),
        seed=job.seed,
        steps=job.steps,
        guidance=job.guidance,
        num_frames=job.num_frames,
        height=job.height,
        width=job.width,
        given=job.given_with(tensors),
        total_frames=job.total_frames,
        scores=job.prompt_scores(),
        kept=job.kept,
        progress=progress,
    )
    about = {
        "fps": made.fps,
        "seconds": made.seconds,
        "metadata": made.metadata,
        "warnings": list(made.warnings),
        "table": table_to_plain(made.table),
    }
    return about, {"frames": made.frames}


def make_latents(pipe: Pipeline, job: Job, tensors: Mapping[str, Tensor], progress: ProgressCallback) -> Result:
    """The denoise loop alone, from an embedding that came along, or from the prompt.

    What came along as "noise" is begun with, and "cond_mask" says which of its frames are given; see Pipeline.denoise.
    """
    start = time.perf_counter()
    assert job.seed is not None
    size: dict[str, Any] = {"num_frames": job.num_frames, "height": job.height, "width": job.width}
    text = text_of(tensors) or pipe.encode_prompt(job.prompt, job.negative, job.prompt_scores())
    table = pipe.schedule(policy_from_plain(job.policy), steps=job.steps, **size)
    run = pipe.new_run(table, job.kept)
    noise = tensors.get("noise")
    latents = pipe.denoise(
        pipe.prepare_latents(job.seed, **size) if noise is None else noise,
        text,
        table,
        steps=job.steps,
        guidance=job.guidance,
        fps=job.fps,
        cond_mask=tensors.get("cond_mask"),
        seed=job.seed,
        run=run,
        progress=progress,
        **size,
    )
    about = {"seconds": {"denoise": time.perf_counter() - start}, "table": table_to_plain(run.taken)}
    return about, {"latents": latents}


def make_frames(pipe: Pipeline, job: Job, tensors: Mapping[str, Tensor], progress: ProgressCallback) -> Result:
    """The decoding alone."""
    start = time.perf_counter()
    if "latents" not in tensors:
        raise PabError("A job that decodes comes with latents; this one has none.")
    frames = pipe.decode(tensors["latents"], job.num_frames, progress=progress)
    return {"fps": pipe.spec.fps, "seconds": {"decode": time.perf_counter() - start}}, {"frames": frames}


TASKS: dict[str, Callable[[Pipeline, Job, Mapping[str, Tensor], ProgressCallback], Result]] = {
    "video": make_video,
    "denoise": make_latents,
    "decode": make_frames,
}
