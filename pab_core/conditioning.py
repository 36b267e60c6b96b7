"""Given frames: Open-Sora's mask conditioning, for image to video, extension, first and last frame, loops, editing.

Clean latents take the place of noise in some latent frames of a clip, and a mask says so to the sampler and the model:

    picture or video [1, 3, T, H, W] -> encode -> GivenFrames -> apply_given(noise, ...) -> z, cond_mask -> sample

The VAE makes 5 latent frames of each chunk of 17 frames and pads a chunk in front: the first latent frame of a chunk
holds 1 frame, the others 4 each. A picture, encoded alone, is such a first latent frame and belongs where a chunk
begins; that is why references are aligned to multiples of 5.

Semantics: hpcaitech/Open-Sora v1.2.0 (docs/config.md, "mask_strategy").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PabError
from .models.registry import ModelSpec

CHUNK_FRAMES = 17
CHUNK_LATENTS = 5

Encode = Callable[[Tensor], Tensor]  # video [1, 3, T, H, W] in [-1, 1] -> normalised latents [1, C, t, h, w]


@dataclass(frozen=True, eq=False)
class GivenFrames:
    """Clean latents and the place in the clip where they belong.

    `edit` is how much of them may change: 0 keeps them as they are; 0.4 lets the model work on them from timestep 400
    on; 1 gives nothing, those frames are free.

    Raises:
        PabError: `edit` is not from 0 to 1.
    """

    latents: Tensor  # [1, C, t, h, w], normalised
    at: int = 0  # first latent frame; a negative number counts from the end of the clip
    edit: float = 0.0

    def __post_init__(self) -> None:
        assert self.latents.ndim == 5
        assert self.latents.shape[0] == 1
        check_edit(self.edit)


def check_edit(edit: float) -> float:
    if isinstance(edit, bool) or not isinstance(edit, (int, float)) or not 0 <= edit <= 1:
        raise PabError(f"The edit ratio must be a number from 0 (keep the frames) to 1 (free), not {edit!r}.")
    return float(edit)


def check_takes_frames(spec: ModelSpec) -> None:
    """PabError for a model without mask conditioning."""
    if spec.family != "stdit3":
        raise PabError(
            f"{spec.title} cannot start from given pictures or videos: it was made for text alone. Open-Sora 1.2 can."
        )


def apply_given(noise: Tensor, given: Sequence[GivenFrames]) -> tuple[Tensor, Tensor | None]:
    """Noise [B, C, T, h, w] -> z of the same shape and cond_mask [B, T] (None if nothing is given) for the sampler.

    Later ones cover earlier ones, and what reaches beyond the clip's end is left out. The noise is not changed.

    Raises:
        PabError: frames of another size, a place outside the clip, or no frame left for the model to make.
    """
    z, frames = noise.clone(), noise.shape[2]
    mask = torch.ones(noise.shape[0], frames, device=noise.device)
    for one in given:
        latents = one.latents
        if latents.shape[1] != noise.shape[1] or latents.shape[3:] != noise.shape[3:]:
            raise PabError(
                f"The given frames are {list(latents.shape[1:2] + latents.shape[3:])} as latents, but the clip's are "
                f"{list(noise.shape[1:2] + noise.shape[3:])}: make both the same height and width."
            )
        start = one.at + frames if one.at < 0 else one.at
        if not 0 <= start < frames:
            raise PabError(
                f"Given frames cannot stand at latent frame {one.at} of a clip that has {frames}: the places are "
                f"{-frames} to {frames - 1}."
            )
        stop = min(start + latents.shape[2], frames)
        # What is free altogether starts from noise, or the model would take clean latents for noise.
        source = noise[:, :, start:stop] if one.edit == 1 else latents[:, :, : stop - start].to(noise)
        z[:, :, start:stop] = source
        mask[:, start:stop] = one.edit
    if not mask.any():
        raise PabError(
            f"All {frames} latent frames of the clip are given, so nothing is left to make: make the clip longer, give "
            "fewer frames, or raise the edit ratio."
        )
    return z, None if bool((mask == 1).all()) else mask


def edited_steps(edit: float, timesteps: Sequence[float]) -> int:
    """In how many steps of a run the model works on frames given with that edit ratio; timesteps 1000..0.

    The timesteps of large and long clips stay high: at 480p, 51 frames and 30 steps the last one is 143, so that an
    edit ratio of 0.14 changes nothing.
    """
    return sum(edit * 1000 >= t for t in timesteps)


# ------------------------------------------------------------------------------------------------------------- tasks


def image_to_video(encode: Encode, picture: Tensor) -> list[GivenFrames]:
    """The clip begins with a picture [1, 3, 1, H, W]; the authors' mask strategy "0"."""
    return [GivenFrames(encode(picture))]


def last_frame(encode: Encode, picture: Tensor) -> GivenFrames:
    """A clip's end is a picture [1, 3, 1, H, W]: its last latent frame, which are its last 4 frames.

    The latents there hold 4 frames that follow others, which a picture alone is not. So a whole chunk of the picture
    standing still is encoded, and its last latent frame taken. (The authors' "0,1,0,-1,1" is aligned to the beginning
    of the last chunk, 17 frames before the end; `place_references` does the same.)
    """
    still = picture.expand(-1, -1, CHUNK_FRAMES, -1, -1)
    return GivenFrames(encode(still)[:, :, -1:], at=-1)


def first_and_last(encode: Encode, first: Tensor, last: Tensor) -> list[GivenFrames]:
    """The clip goes from one picture to another, each [1, 3, 1, H, W]."""
    return [*image_to_video(encode, first), last_frame(encode, last)]


def looping(encode: Encode, picture: Tensor) -> list[GivenFrames]:
    """The clip begins and ends with one picture [1, 3, 1, H, W].

    Without its last 4 frames, in which the picture stands still, it repeats without a pause. A loop that keeps moving
    over the seam is made by a chain: `chaining.plan_chain(..., loop=True)`.
    """
    return first_and_last(encode, picture, picture)


def continue_video(
    encode: Encode, video: Tensor, overlap_latents: int = CHUNK_LATENTS, edit: float = 0.0
) -> list[GivenFrames]:
    """The clip goes on from the end of a video [1, 3, T, H, W]: its last 17 frames for every 5 latent frames.

    The clip repeats these frames, then come new ones. PabError if the video is too short or the overlap is no multiple
    of 5.
    """
    frames = overlap_frames(overlap_latents)
    if video.shape[2] < frames:
        raise PabError(
            f"A video can be continued from its last {frames} frames, but this one has only {video.shape[2]}. Give a "
            "longer one, or start from a single picture."
        )
    return [GivenFrames(encode(video[:, :, -frames:]), edit=edit)]


def edit_video(encode: Encode, video: Tensor, edit: float) -> list[GivenFrames]:
    """The clip is an edited video [1, 3, T, H, W]; frames beyond its last whole chunk of 17 are made anew.

    PabError if the video has between 2 and 16 frames.
    """
    frames = video.shape[2]
    if 1 < frames < CHUNK_FRAMES:
        raise PabError(
            f"A video to edit must have {CHUNK_FRAMES} frames or more, but this one has {frames}. Give a longer one, "
            "or a single picture."
        )
    whole = max(frames // CHUNK_FRAMES * CHUNK_FRAMES, 1)
    return [GivenFrames(encode(video[:, :, :whole]), edit=edit)]


def overlap_frames(overlap_latents: int) -> int:
    """5 -> 17, 10 -> 34. PabError unless it is a multiple of 5, 5 or more."""
    if isinstance(overlap_latents, bool) or not isinstance(overlap_latents, int) or overlap_latents < CHUNK_LATENTS:
        raise PabError(f"The overlap must be {CHUNK_LATENTS} latent frames or more, not {overlap_latents!r}.")
    chunks, rest = divmod(overlap_latents, CHUNK_LATENTS)
    if rest:
        low = chunks * CHUNK_LATENTS
        raise PabError(
            f"An overlap of {overlap_latents} latent frames is no whole number of chunks: it must be a multiple of "
            f"{CHUNK_LATENTS}. Near are {low} and {low + CHUNK_LATENTS}."
        )
    return chunks * CHUNK_FRAMES


# -------------------------------------------------------------------------------------------------- mask strategies


@dataclass(frozen=True)
class MaskStrategy:
    """One tuple of Open-Sora's mask strategy; all places and lengths are in latent frames."""

    segment: int = 0  # "loop": which clip of a chain
    reference: int = 0  # which of the references
    reference_start: int = 0  # negative: from the reference's end
    target_start: int = 0  # negative: from the clip's end
    length: int = 1
    edit: float = 0.0


def parse_mask_strategy(
    text: str | None, *, references: int | None = None, segments: int | None = None
) -> list[MaskStrategy]:
    """Open-Sora's form "loop,reference,reference_start,target_start,length,edit;..." -> its tuples.

    Numbers left out at the end of a tuple are 0,0,0,0,1,0; an empty string is no tuple at all.

    Args:
        text: such as "0" (a picture first), "0;0,1,0,-1,1" (one more at the end), "0,0,0,0,15,0.4" (edit a video).
        references: how many references there are, and `segments`: how many clips the chain has; both are checked if
            given.

    Raises:
        PabError: not of this form, or a reference or clip that is not there.
    """
    if text is None or not text.strip():
        return []
    return [_parse_tuple(part, references, segments) for part in text.split(";")]


def _parse_tuple(part: str, references: int | None, segments: int | None) -> MaskStrategy:
    words = [word.strip() for word in part.split(",")]
    try:
        if len(words) > 6:
            raise ValueError
        strategy = MaskStrategy(*(int(word) for word in words[:5]), *(float(word) for word in words[5:]))
    except ValueError:
        raise PabError(
            f"'{part.strip()}' is no mask strategy: that is up to five whole numbers and an edit ratio, "
            "'loop,reference,reference_start,target_start,length,edit', and ';' between one and the next."
        ) from None
    check_edit(strategy.edit)
    if strategy.length < 1:
        raise PabError(
            f"The mask strategy '{part.strip()}' gives {strategy.length} frames; its length must be 1 or more."
        )
    for what, number, count in (("clip", strategy.segment, segments), ("reference", strategy.reference, references)):
        if number < 0 or (count is not None and number >= count):
            there = "they count from 0" if not count else f"there are {count}, numbered from 0"
            raise PabError(f"The mask strategy '{part.strip()}' names {what} {number}, but {there}.")
    return strategy


def place_references(
    strategies: Sequence[MaskStrategy],
    references: Sequence[Tensor],
    latent_frames: int,
    *,
    segment: int = 0,
    align: int | None = CHUNK_LATENTS,
) -> list[GivenFrames]:
    """What the strategies give to one clip of a chain.

    Args:
        references: latents [1, C, t, h, w] each.
        latent_frames: of the clip.
        align: both places move to the nearest multiple of it, the last one whose chunk is whole at most: with 5 in a
            clip of 15, 2 -> 0, 3 -> 5, -1 -> 10. None: to the frame.

    A length beyond the reference's or the clip's end is cut there.

    Raises:
        PabError: a reference that is not there, or a place outside of reference or clip.
    """
    given = []
    for strategy in strategies:
        if strategy.segment != segment:
            continue
        if strategy.reference >= len(references):
            raise PabError(
                f"The mask strategy names reference {strategy.reference}, but {len(references)} are given, numbered "
                "from 0."
            )
        latents = references[strategy.reference]
        start = _place("reference", strategy.reference_start, latents.shape[2], align)
        at = _place("clip", strategy.target_start, latent_frames, align)
        stop = start + min(strategy.length, latent_frames - at)
        given.append(GivenFrames(latents[:, :, start:stop], at, strategy.edit))
    return given


def _place(what: str, position: int, frames: int, align: int | None) -> int:
    """A place among that many latent frames: counted from the front, and aligned."""
    place = position + frames if position < 0 else position
    if not 0 <= place < frames:
        raise PabError(
            f"The mask strategy's place {position} is outside of the {what}, which has {frames} latent frames: "
            f"{-frames} to {frames - 1}."
        )
    if align is None:
        return place
    chunk, rest = divmod(place, align)
    if rest > align / 2 and chunk < frames // align - 1:
        chunk += 1
    return chunk * align
