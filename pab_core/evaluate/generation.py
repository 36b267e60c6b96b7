"""Many clips of one pipeline under one schedule, as measurements need them: in batches, by prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..noise_sampling import NoiseSampler
from ..pipeline import Pipeline
from ..pixels import to_levels
from ..prompt_scores import PromptScores
from ..text import TextEmbedding
from .deciding import run_apart

DECODED = 8  # clips at a time; more gain nothing and need much memory


@dataclass(frozen=True)
class Clip:
    """What a video is made of."""

    prompt: str
    seed: int


def prepare(pipe: Pipeline, clips: Sequence[Clip]) -> tuple[Tensor, TextEmbedding]:
    """Start noise [N, C, T, h, w] and the text of clips that are made together."""
    assert pipe.text_encoder is not None
    negative = "" if isinstance(pipe.sampler, NoiseSampler) else None
    scores = PromptScores()  # the usual ones, of models that were trained with them
    prompts = [scores.add_to(clip.prompt) if pipe.spec.prompt_scores else clip.prompt for clip in clips]
    text = pipe.text_encoder.encoder.encode_batch(prompts, negative)
    return torch.cat([pipe.prepare_latents(clip.seed) for clip in clips]), text


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

    A run that decides itself at which steps it reuses decides once for all of them: deciding.py has others.
    """
    noise, text = prepare(pipe, clips)
    run = pipe.new_run(table) if run is None else run
    return pipe.denoise(noise, text, table, steps=steps, seed=clips[0].seed, run=run), run


def make_videos(
    pipe: Pipeline, clips: Sequence[Clip], table: ScheduleTable, *, steps: int | None = None, kept: str = "plain"
) -> tuple[list[Tensor | None], list[float]]:
    """Videos uint8 [T, H, W, 3] on the decoder's device, None where the latents are not all numbers; and of each the
    share reused.

    kept: where updates wait, as in Pipeline.generate.
    """
    if table.decide is None:
        latents, run = make_latents(pipe, clips, table, steps=steps, run=pipe.new_run(table, kept))
        return decode_all(pipe, latents), [run.taken.reused_share()] * len(clips)
    apart = run_apart(pipe, table, kept, len(clips))
    latents, _ = make_latents(pipe, clips, table, steps=steps, run=apart)
    return decode_all(pipe, latents), apart.reused_shares()


@torch.no_grad()
def decode_all(pipe: Pipeline, latents: Tensor) -> list[Tensor | None]:
    """Clean latents [N, C, T, h, w], as `Pipeline.decode` decodes one clip; None for those that are not all numbers."""
    vae = pipe.vae
    assert vae is not None
    weight = next(vae.parameters())
    found: list[Tensor | None] = []
    for part in latents.to(weight.device, weight.dtype).split(DECODED):
        videos = vae.decode(part.nan_to_num(0, 0, 0), pipe.spec.num_frames, tiling=vae.authors_tiling)
        # Pixel by pixel in memory, on the device: it is compared there, and copies to the CPU take longer than that.
        videos = to_levels(videos.permute(0, 2, 3, 4, 1).contiguous())
        fine = part.isfinite().flatten(1).all(1).tolist()
        found += [video if good else None for video, good in zip(videos, fine, strict=True)]
    return found
