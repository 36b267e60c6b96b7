"""Resolutions, aspect ratios and durations by name, and what a model was trained for.

The sizes are those that Open-Sora 1.2 was trained with (hpcaitech/Open-Sora v1.2.0, opensora/datasets/aspect.py). Its
authors say aspect ratios as height:width, so that their "9:16" is landscape; here they are width:height, as on cameras
and screens: "16:9" is landscape. Their "50:27" stands for 25:12 and is called by what it is, as portrait "12:25".

A size may be no multiple of 8: the VAE leaves out the pixels beyond one, so 480x854 becomes a video of 480x848.
"""

from __future__ import annotations

import re

from .errors import PabError
from .models.registry import ModelSpec

RESOLUTIONS = ("144p", "240p", "360p", "480p", "720p")
# Seconds at 24 frames a second, cut to whole chunks of 17 frames.
DURATIONS = {"2s": 51, "4s": 102, "8s": 204, "16s": 408}

# Aspect ratio (width:height) -> (height, width) at each of RESOLUTIONS. No rule of rounding gives them all.
_SIZES = {
    "8:3": ((117, 312), (196, 522), (294, 784), (392, 1046), (588, 1568)),
    "21:9": ((125, 291), (210, 490), (314, 732), (420, 980), (628, 1466)),
    "25:12": ((133, 277), (222, 462), (332, 692), (444, 925), (666, 1388)),
    "2:1": ((135, 270), (226, 452), (340, 680), (452, 904), (678, 1356)),
    "17:9": ((139, 262), (232, 438), (350, 662), (466, 880), (698, 1318)),
    "50:27": ((141, 260), (236, 436), (352, 652), (470, 870), (706, 1306)),
    "16:9": ((144, 256), (240, 426), (360, 640), (480, 854), (720, 1280)),
    "8:5": ((151, 241), (252, 404), (380, 608), (506, 810), (758, 1212)),
    "3:2": ((156, 234), (262, 393), (392, 588), (522, 784), (784, 1176)),
    "4:3": ((166, 221), (276, 368), (416, 554), (554, 738), (832, 1110)),
    "1:1": ((192, 192), (320, 320), (480, 480), (640, 640), (960, 960)),
    "3:4": ((221, 165), (370, 278), (554, 416), (740, 555), (1108, 832)),
    "2:3": ((235, 156), (392, 262), (588, 392), (784, 522), (1176, 784)),
    "9:16": ((256, 144), (426, 240), (640, 360), (854, 480), (1280, 720)),
    "9:17": ((263, 139), (440, 232), (660, 350), (880, 466), (1320, 698)),
    "1:2": ((271, 135), (452, 226), (678, 340), (906, 454), (1358, 680)),
    "12:25": ((277, 132), (462, 222), (692, 332), (924, 444), (1386, 666)),
}
ASPECT_RATIOS = tuple(_SIZES)
_NAMED = frozenset(size for row in _SIZES.values() for size in row)

# Open-Sora 1.2's training (configs/opensora-v1-2/train/stage3.py): the longest clips at up to so many pixels, single
# images up to 2048x2048, and no shape longer than 8:3.
_LONGEST = ((512 * 512, 408), (480 * 854, 204), (1024 * 1024, 102))
_FEWEST_PIXELS, _MOST_PIXELS_OF_AN_IMAGE = 144 * 256, 2048 * 2048
_LONGEST_SIDE = 8 / 3
_SLACK = 1.02  # sizes of one name differ by about 1 % in pixels


def size_of(resolution: str, aspect_ratio: str) -> tuple[int, int]:
    """("480p", "16:9") -> (height, width) in pixels, (480, 854); the aspect ratio is width:height.

    PabError, with the names there are, where one is unknown.
    """
    resolution, aspect_ratio = resolution.strip().lower(), aspect_ratio.replace(" ", "")
    if resolution not in RESOLUTIONS:
        raise PabError(
            f"There is no resolution named '{resolution}'. Known are {', '.join(RESOLUTIONS)}; any other size goes by "
            "its height and width."
        )
    if aspect_ratio not in _SIZES:
        raise PabError(
            f"There is no size for the aspect ratio '{aspect_ratio}'. Known are, as width:height, "
            f"{', '.join(ASPECT_RATIOS)}; any other size goes by its height and width."
        )
    return _SIZES[aspect_ratio][RESOLUTIONS.index(resolution)]


def is_named_size(height: int, width: int) -> bool:
    """Whether `size_of` gives this size: Open-Sora takes it although it may be no multiple of 8."""
    return (height, width) in _NAMED


def frames_of(duration: str | int) -> int:
    """ "2s", "51" or 51 -> 51 frames. PabError where it is neither a known duration nor a number of frames.

    Whether a model can make that many frames is said by `ModelSpec.check_size`.
    """
    if isinstance(duration, int) and not isinstance(duration, bool):
        return duration
    text = str(duration).strip().lower()
    if text in DURATIONS:
        return DURATIONS[text]
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    known = ", ".join(f"{name} ({frames} frames)" for name, frames in DURATIONS.items())
    raise PabError(f"'{duration}' is no duration: give {known}, or a number of frames such as 51.")


def size_warning(spec: ModelSpec, num_frames: int, height: int, width: int) -> str:
    """A sentence for the user where the model was not trained for this size; empty where it was.

    Open-Sora 1.2 was trained on many sizes and may be asked for any between them; every other model is at home at the
    one size that its spec names.
    """
    if not spec.trained:
        return ""
    if spec.family == "stdit3" and is_named_size(spec.height, spec.width):
        return _open_sora_warning(spec, num_frames, height, width)
    if (num_frames, height, width) == (spec.num_frames, spec.height, spec.width):
        return ""
    return (
        f"{spec.title} was trained for {_count(spec.num_frames)} of {spec.width}x{spec.height} pixels; "
        f"{_count(num_frames)} of {width}x{height} may look worse."
    )


def _open_sora_warning(spec: ModelSpec, num_frames: int, height: int, width: int) -> str:
    pixels, side = height * width, max(height, width) / min(height, width)
    largest = _MOST_PIXELS_OF_AN_IMAGE if num_frames == 1 else _LONGEST[-1][0]
    if not _FEWEST_PIXELS / _SLACK <= pixels <= largest * _SLACK or side > _LONGEST_SIDE * _SLACK:
        return (
            f"{spec.title} was trained on videos from 144p to 720p, one side up to 8/3 of the other; {width}x{height} "
            "pixels are beyond that and may look worse."
        )
    if num_frames == 1:
        return ""
    longest = next(frames for limit, frames in _LONGEST if pixels <= limit * _SLACK)
    shortest = DURATIONS["2s"]
    if num_frames > longest:
        return (
            f"At {width}x{height} pixels {spec.title} was trained on clips of up to {longest} frames; {num_frames} may "
            f"look worse. Chain clips of {longest} frames instead, or take a smaller size."
        )
    if num_frames < shortest:
        return (
            f"{spec.title} was trained on single images and on clips of {shortest} frames and more; {num_frames} may "
            "look worse."
        )
    return ""


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"
