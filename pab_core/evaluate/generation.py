"""Many clips of one pipeline under one schedule, as measurements need them: in batches, by prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..noise_sampling import NoiseSampler
from ..pipeline import Pipeline


@dataclass(frozen=True)
class Clip:
    """What a video is made of."""

    prompt: str
    seed: int


def make_latents(
    pipe: Pipeline,
    clips: Sequence[Clip],
    table: ScheduleTable,
    *,
    steps: int | None = None,
    run: BroadcastRun | None = None,
) -> tuple[Tensor, BroadcastRun]:
    """Clean latents [N, C, T, h, w] of clips made together, and the run that made them.

    run: a fresh one of the table, that does more than to follow it; None: made here.

    A run that decides itself at which steps it reuses decides once for all of them: give it one clip at a time.
    """
    assert pipe.text_encoder is not None
    negative = "" if isinstance(pipe.sampler, NoiseSampler) else None
    text = pipe.text_encoder.encoder.encode_batch([clip.prompt for clip in clips], negative)
    noise = torch.cat([pipe.prepare_latents(clip.seed) for clip in clips])
    run = pipe.new_run(table) if run is None else run
    return pipe.denoise(noise, text, table, steps=steps, seed=clips[0].seed, run=run), run


def make_videos(
    pipe: Pipeline, clips: Sequence[Clip], table: ScheduleTable, *, steps: int | None = None, kept: str = "plain"
) -> tuple[list[Tensor | None], float]:
    """Videos uint8 [T, H, W, 3] on the CPU, None where the latents are not all numbers; and the share reused.

    kept: where updates wait, as in Pipeline.generate.
    """
    count = 1 if table.decide is not None else len(clips)
    videos: list[Tensor | None] = []
    reused = 0.0
    for start in range(0, len(clips), count):
        part, own = clips[start : start + count], pipe.new_run(table, kept)
        latents, run = make_latents(pipe, part, table, steps=steps, run=own)
        reused += run.taken.reused_share() * len(latents) / len(clips)
        for one in latents.split(1):
            videos.append(pipe.decode(one) if bool(one.isfinite().all()) else None)
    return videos, reused
