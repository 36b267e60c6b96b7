"""What a video is to be made from beside its prompt: given pictures and clips, and clips in a chain.

`Given` is what the user hands over; `Plan` is what becomes of it at the model's size, clip by clip.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .chaining import Segment, given_for, join, plan_chain, split_prompt
from .conditioning import (
    CHUNK_FRAMES,
    Encode,
    GivenFrames,
    check_edit,
    check_takes_frames,
    continue_video,
    edit_video,
    first_and_last,
    image_to_video,
    last_frame,
    looping,
    parse_mask_strategy,
    place_references,
)
from .errors import PabError
from .models.registry import ModelSpec
from .pixels import as_video, to_uint8

MOST_SOURCE_FRAMES = 816  # of a video that is continued: its last 34 seconds at 24 frames a second
_STILL_FRAMES = 4  # at the end of a loop from one picture


@dataclass(frozen=True)
class Given:
    """Pictures and videos to start from: paths, or pictures themselves (see frame_input); None: not given.

    Raises:
        PabError: things given that do not go together.
    """

    image: Any = None  # the first frame
    last_image: Any = None  # the last frame
    video: Any = None  # goes on from its end; with `edit` it is made anew
    edit: float | None = None  # how much of the video may change, 0..1
    loop: bool = False  # the end meets the beginning
    strategy: str = ""  # Open-Sora's own mask strategy, on `references`
    references: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.video is not None and (self.image is not None or self.last_image is not None):
            raise PabError("Give either a video or pictures to start from, not both.")
        if self.edit is not None and self.video is None:
            raise PabError("An edit ratio goes with a video that is to be edited: give that, too.")
        if self.loop and (self.video is not None or self.last_image is not None):
            raise PabError("A loop starts from nothing or from one picture: leave the last picture or the video out.")
        if bool(self.strategy) != bool(self.references):
            raise PabError("A mask strategy and its references go together: give both or none.")
        if self.strategy and (self.image is not None or self.last_image is not None or self.video is not None):
            raise PabError("Give either a mask strategy with its references, or pictures or a video, not both.")
        if self.edit is not None:
            check_edit(self.edit)

    @property
    def has_frames(self) -> bool:
        return any(part is not None for part in (self.image, self.last_image, self.video)) or bool(self.references)


@dataclass(frozen=True)
class Plan:
    """The clips of a video, their prompts, and what each is given."""

    segments: tuple[Segment, ...]
    prompts: tuple[str, ...]
    given: Given
    source: Tensor | None  # uint8 [T, H, W, 3], of a video that is continued
    tensors: dict[str, Any]  # what was read: [1, 3, T, H, W] in [-1, 1]
    latent_frames: int  # of a clip

    def frames_for(self, segment: Segment, encode: Encode, clips: Sequence[Tensor]) -> list[GivenFrames]:
        """What a clip is given; `clips` are the finished ones, uint8 [T, H, W, 3]."""
        given = list(self._own(segment, encode))
        previous, first = (as_video(clips[i]) if clips else None for i in (-1, 0))
        return [*given, *given_for(segment, encode, previous, first)]

    def _own(self, segment: Segment, encode: Encode) -> list[GivenFrames]:
        read = self.tensors
        if "references" in read:
            strategies = parse_mask_strategy(
                self.given.strategy, references=len(read["references"]), segments=len(self.segments)
            )
            references = [encode(video) for video in read["references"]]
            return place_references(strategies, references, self.latent_frames, segment=segment.index)
        first, last = segment.index == 0, segment.index == len(self.segments) - 1
        if "video" in read and first:
            if self.given.edit is not None:
                return edit_video(encode, read["video"], self.given.edit)
            return continue_video(encode, read["video"])
        if "image" in read and first:
            if self.given.loop:
                return looping(encode, read["image"])
            if "last_image" in read and last:
                return first_and_last(encode, read["image"], read["last_image"])
            return image_to_video(encode, read["image"])
        if "last_image" in read and last:
            return [last_frame(encode, read["last_image"])]
        return []

    def finish(self, clips: Sequence[Tensor]) -> Tensor:
        """The clips, uint8 [T, H, W, 3] each -> the whole video."""
        frames = join(self.segments, clips)
        if self.source is not None:
            return torch.cat([self.source, frames[CHUNK_FRAMES:]])
        if self.given.loop and "image" in self.tensors:
            return frames[:-_STILL_FRAMES]
        return frames


def make_plan(
    spec: ModelSpec, prompt: str, given: Given, num_frames: int, height: int, width: int, total_frames: int | None
) -> Plan:
    """Reads what is given, at the size of the clip, and divides a longer video into clips.

    Args:
        num_frames: of a clip.
        total_frames: of the whole video, made of several clips; None: one clip (for a loop from nothing: the shortest).

    Raises:
        PabError: a model that takes no given frames, files that cannot be read, lengths that cannot be chained.
    """
    # What divides into clips must be a video of Open-Sora: each clip is given the end of the one before.
    seamless = given.loop and given.image is None
    if given.has_frames or seamless or total_frames is not None:
        check_takes_frames(spec)
    if seamless:
        total_frames = total_frames or 2 * (num_frames - CHUNK_FRAMES)
    if total_frames is None:
        segments = [Segment(0, num_frames)]
    else:
        if given.loop and not seamless:
            raise PabError("A loop from one picture is a single clip: leave its length out.")
        segments = plan_chain(total_frames, num_frames, loop=seamless)
    # VAE and clip agree on whole latent pixels; the authors' 854 is no multiple of 8.
    height, width = (side // spec.space_factor * spec.space_factor for side in (height, width))
    tensors: dict[str, Any] = {}
    for name in ("image", "last_image"):
        if getattr(given, name) is not None:
            tensors[name] = read(getattr(given, name), height, width, limit=1)
    source = None
    if given.video is not None:
        editing = given.edit is not None
        limit = num_frames if editing else MOST_SOURCE_FRAMES
        tensors["video"] = read(given.video, height, width, limit=limit, last=not editing, fps=spec.fps)
        if not editing:
            source = to_uint8(tensors["video"][0].permute(1, 2, 3, 0))
    if given.references:
        tensors["references"] = [read(one, height, width, limit=num_frames, fps=spec.fps) for one in given.references]
    return Plan(
        tuple(segments),
        tuple(split_prompt(prompt, len(segments))),
        given,
        source,
        tensors,
        spec.latent_frames(num_frames),
    )


def read(source: Any, height: int, width: int, *, limit: int, last: bool = False, fps: float | None = None) -> Tensor:
    """A path, a picture or several of them -> [1, 3, T, height, width], at most `limit` frames."""
    from .frame_input import frames_to_video_tensor, read_reference

    if isinstance(source, (str, os.PathLike)):
        return read_reference(source, height, width, limit=limit, last=last, fps=fps)
    frames: Any = source
    if not isinstance(source, (list, tuple)) and getattr(source, "ndim", 3) == 3:
        frames = [source]
    return frames_to_video_tensor(frames[-limit:] if last else frames[:limit], height, width)
