"""Longer videos: clips in a chain, each of which begins with the last frames of the one before.

    plan_chain -> for each Segment: given_for -> generate a clip of segment.num_frames -> join

The last 17 frames of a clip (5 latent frames), encoded anew, are given to the next one, which repeats them and goes on;
of each clip only the new frames are kept. Source: hpcaitech/Open-Sora v1.2.0, docs/config.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .conditioning import CHUNK_LATENTS, Encode, GivenFrames, continue_video, overlap_frames
from .errors import PabError


@dataclass(frozen=True)
class Segment:
    """One clip of a chain, and which of its frames stay."""

    index: int
    num_frames: int
    before: int = 0  # frames at its start that repeat the end of the clip before
    after: int = 0  # frames at its end that repeat the start of the first clip, in the clip that closes a loop
    overlap_latents: int = CHUNK_LATENTS

    @property
    def kept(self) -> slice:
        return slice(self.before, self.num_frames - self.after)

    @property
    def kept_frames(self) -> int:
        return self.num_frames - self.before - self.after


def plan_chain(
    num_frames: int, segment_frames: int, overlap_latents: int = CHUNK_LATENTS, *, loop: bool = False
) -> list[Segment]:
    """The clips of a video of `num_frames` frames, all `segment_frames` long.

    Possible are the length of one clip and so many new frames more as each further clip brings: with clips of 51 and an
    overlap of 17, that is 51, 85, 119, 153 ... With `loop` the last clip leads back into the first one and keeps
    neither end: 68, 102, 136 ... Played in a circle, such a video has no seam.

    Raises:
        PabError: another length (the near ones are named), or clips too short for their overlap.
    """
    overlap = overlap_frames(overlap_latents)
    new = segment_frames - overlap
    if segment_frames <= overlap * (2 if loop else 1):
        ends = "both ends" if loop else "the start"
        raise PabError(
            f"Clips of {segment_frames} frames are too short to be chained: {overlap} frames at {ends} are repeated, "
            "and nothing new is left. Take longer clips."
        )
    # In frames, one clip is new + overlap, and the clip that closes a loop brings new - overlap.
    rest = num_frames if loop else num_frames - overlap
    clips, over = divmod(rest, new)
    fewest = 2 if loop else 1
    if over or clips < fewest:
        low = max(clips, fewest)
        near = [num_frames - rest + count * new for count in (low, low + 1)]
        raise PabError(
            f"A {'loop' if loop else 'video'} of {num_frames} frames cannot be chained from clips of {segment_frames} "
            f"that overlap by {overlap}. Near are {near[0]} and {near[1]} frames."
        )
    return [
        Segment(
            index,
            segment_frames,
            before=overlap if index else 0,
            after=overlap if loop and index == clips - 1 else 0,
            overlap_latents=overlap_latents,
        )
        for index in range(clips)
    ]


def given_for(
    segment: Segment, encode: Encode, previous: Tensor | None, first: Tensor | None = None, edit: float = 0.0
) -> list[GivenFrames]:
    """What a clip of a chain is given; nothing for the first one.

    Args:
        previous: all frames of the clip before, [1, 3, T, H, W] in [-1, 1].
        first: all frames of the first clip, for one that closes a loop.
        edit: how much the repeated frames may change; they are not kept either way.
    """
    given: list[GivenFrames] = []
    if segment.before:
        assert previous is not None
        given += continue_video(encode, previous, segment.overlap_latents, edit)
    if segment.after:
        assert first is not None
        given.append(GivenFrames(encode(first[:, :, : segment.after]), at=-segment.overlap_latents, edit=edit))
    return given


def join(plan: Sequence[Segment], clips: Sequence[Tensor]) -> Tensor:
    """The clips of a chain, frames [T, ...] each -> the frames that stay, in order."""
    return torch.cat([clip[segment.kept] for segment, clip in zip(plan, clips, strict=True)])


def split_prompt(prompt: str, segments: int) -> list[str]:
    """A prompt for each clip of a chain: "|0| a calm sea |2| a storm" is said of clips 0 and 1, and of 2 and later.

    A prompt that does not begin with such a mark is said of all clips.

    Raises:
        PabError: marks that do not begin with |0|, do not rise, name no clip of the chain, or have no text.
    """
    if not re.match(r"\s*\|\s*\d+\s*\|", prompt):
        return [prompt] * segments
    _, *parts = (part.strip() for part in prompt.split("|"))
    starts, texts = parts[0::2], parts[1::2]
    if len(starts) != len(texts) or not all(start.isdecimal() for start in starts):
        raise PabError(
            f"The prompt '{_shorten(prompt)}' is not of the form '|0| text |2| text': between two bars stands the "
            "number of the clip from which the text holds."
        )
    numbers = [int(start) for start in starts]
    if numbers[0] != 0 or any(a >= b for a, b in pairwise(numbers)):
        raise PabError(
            f"The clips in the prompt '{_shorten(prompt)}' must begin with |0| and rise, but are {', '.join(starts)}."
        )
    if numbers[-1] >= segments:
        raise PabError(
            f"The prompt has a text for clip {numbers[-1]}, but the video has {segments}, numbered from 0: make it "
            "longer or leave that text out."
        )
    if not all(texts):
        raise PabError(f"The prompt has no text for clip {numbers[texts.index('')]}; say what it should show.")
    ends = [*numbers[1:], segments]
    return [text for text, start, end in zip(texts, numbers, ends, strict=True) for _ in range(end - start)]


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " ..."
