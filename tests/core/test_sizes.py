"""Sizes by name against the authors' tables, durations, and warnings for sizes that a model was not trained for."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pab_core.errors import PabError
from pab_core.models.registry import model_spec
from pab_core.sizes import ASPECT_RATIOS, DURATIONS, RESOLUTIONS, frames_of, is_named_size, size_of, size_warning

# (height, width) by the authors' own names, which say height:width (hpcaitech/Open-Sora v1.2.0).
# fmt: off
AUTHORS = {
    "144p": {
        "3:8": (117, 312), "9:21": (125, 291), "12:25": (133, 277), "1:2": (135, 270), "9:17": (139, 262),
        "27:50": (141, 260), "9:16": (144, 256), "5:8": (151, 241), "2:3": (156, 234), "3:4": (166, 221),
        "1:1": (192, 192), "4:3": (221, 165), "3:2": (235, 156), "16:9": (256, 144), "17:9": (263, 139),
        "2:1": (271, 135), "50:27": (277, 132),
    },
    "240p": {
        "3:8": (196, 522), "9:21": (210, 490), "12:25": (222, 462), "1:2": (226, 452), "9:17": (232, 438),
        "27:50": (236, 436), "9:16": (240, 426), "5:8": (252, 404), "2:3": (262, 393), "3:4": (276, 368),
        "1:1": (320, 320), "4:3": (370, 278), "3:2": (392, 262), "16:9": (426, 240), "17:9": (440, 232),
        "2:1": (452, 226), "50:27": (462, 222),
    },
    "360p": {
        "3:8": (294, 784), "9:21": (314, 732), "12:25": (332, 692), "1:2": (340, 680), "9:17": (350, 662),
        "27:50": (352, 652), "9:16": (360, 640), "5:8": (380, 608), "2:3": (392, 588), "3:4": (416, 554),
        "1:1": (480, 480), "4:3": (554, 416), "3:2": (588, 392), "16:9": (640, 360), "17:9": (660, 350),
        "2:1": (678, 340), "50:27": (692, 332),
    },
    "480p": {
        "3:8": (392, 1046), "9:21": (420, 980), "12:25": (444, 925), "1:2": (452, 904), "9:17": (466, 880),
        "27:50": (470, 870), "9:16": (480, 854), "5:8": (506, 810), "2:3": (522, 784), "3:4": (554, 738),
        "1:1": (640, 640), "4:3": (740, 555), "3:2": (784, 522), "16:9": (854, 480), "17:9": (880, 466),
        "2:1": (906, 454), "50:27": (924, 444),
    },
    "720p": {
        "3:8": (588, 1568), "9:21": (628, 1466), "12:25": (666, 1388), "1:2": (678, 1356),
        "9:17": (698, 1318), "27:50": (706, 1306), "9:16": (720, 1280), "5:8": (758, 1212),
        "2:3": (784, 1176), "3:4": (832, 1110), "1:1": (960, 960), "4:3": (1108, 832), "3:2": (1176, 784),
        "16:9": (1280, 720), "17:9": (1320, 698), "2:1": (1358, 680), "50:27": (1386, 666),
    },
}
# fmt: on


def named(theirs: str) -> str:
    """Their name of an aspect ratio -> ours; their 50:27 has the shape 25:12."""
    height, width = ("25", "12") if theirs == "50:27" else theirs.split(":")
    return f"{width}:{height}"


@pytest.mark.parametrize("resolution", AUTHORS)
def test_every_size_of_the_authors_is_there_and_no_other(resolution: str):
    assert {named(theirs): size for theirs, size in AUTHORS[resolution].items()} == {
        ratio: size_of(resolution, ratio) for ratio in ASPECT_RATIOS
    }
    assert tuple(AUTHORS) == RESOLUTIONS


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_an_aspect_ratio_is_width_to_height(resolution: str, ratio: str):
    height, width = size_of(resolution, ratio)
    wide, high = map(int, ratio.split(":"))
    assert width / height == pytest.approx(wide / high, rel=0.02)
    assert is_named_size(height, width)
    assert height * width == pytest.approx(size_of(resolution, "16:9")[0] * size_of(resolution, "16:9")[1], rel=0.02)


def test_landscape_portrait_and_forgiving_names():
    assert size_of("480p", "16:9") == (480, 854)
    assert size_of("480p", "9:16") == (854, 480)
    assert size_of(" 720P", "9 : 16") == (1280, 720)
    assert not is_named_size(480, 848)


@pytest.mark.parametrize(
    ("resolution", "ratio", "words"),
    [
        ("1080p", "16:9", "no resolution named '1080p'. Known are 144p, 240p, 360p, 480p, 720p"),
        ("480p", "9:21", "aspect ratio '9:21'. Known are, as width:height, 8:3, 21:9, .*12:25; any other size"),
        ("480p", "", "aspect ratio ''"),
    ],
)
def test_unknown_names_list_the_known_ones(resolution: str, ratio: str, words: str):
    with pytest.raises(PabError, match=words):
        size_of(resolution, ratio)


@pytest.mark.parametrize(
    ("duration", "frames"), [("2s", 51), ("4s", 102), ("8s", 204), ("16S", 408), ("51", 51), (" 17 ", 17), (85, 85)]
)
def test_durations(duration: str | int, frames: int):
    assert frames_of(duration) == frames
    model_spec("open-sora").check_size(frames, 480, 854)


@pytest.mark.parametrize("duration", ["3s", "", "-5", "2.5", "51 frames", True])
def test_other_durations_are_explained(duration: str | int):
    with pytest.raises(PabError, match=r"is no duration: give 2s \(51 frames\), .*16s \(408 frames\), or a number"):
        frames_of(duration)


def test_open_sora_was_trained_for_its_named_sizes_up_to_a_length():
    spec = model_spec("open-sora")
    longest = {"144p": 408, "240p": 408, "360p": 408, "480p": 204, "720p": 102}
    for resolution in RESOLUTIONS:
        for ratio in ASPECT_RATIOS:
            for frames in (1, *DURATIONS.values()):
                warning = size_warning(spec, frames, *size_of(resolution, ratio))
                assert bool(warning) == (frames > longest[resolution]), (resolution, ratio, frames)


@pytest.mark.parametrize(
    ("frames", "height", "width", "words"),
    [
        (51, 480, 856, ""),
        (85, 512, 512, ""),
        (1, 2048, 2048, ""),
        (408, 480, 854, "At 854x480 pixels Open-Sora 1.2 was trained on clips of up to 204 frames; 408 may"),
        (34, 480, 854, "single images and on clips of 51 frames and more; 34"),
        (51, 64, 64, "144p to 720p.*64x64 pixels"),
        (51, 1088, 1920, "1920x1088"),
        (51, 240, 960, "one side up to 8/3 of the other; 960x240"),
        (51, 960, 240, "one side up to 8/3 of the other; 240x960"),
    ],
)
def test_open_sora_at_custom_sizes(frames: int, height: int, width: int, words: str):
    warning = size_warning(model_spec("open-sora"), frames, height, width)
    if words:
        assert re.search(words, warning)
    else:
        assert warning == ""


@pytest.mark.parametrize("name", ["latte", "open-sora-plan", "demo"])
def test_the_others_have_one_size(name: str):
    spec = model_spec(name)
    own = (spec.num_frames, spec.height, spec.width)
    assert size_warning(spec, *own) == ""
    for other in ((own[0] + 17, *own[1:]), (own[0], own[1] + 64, own[2]), (*own[:2], own[2] - 64), (1, *own[1:])):
        assert f"{spec.title} was trained for {own[0]} frames of {own[2]}x{own[1]} pixels" in size_warning(spec, *other)
    assert "1 frame of" in size_warning(spec, 1, *own[1:])


def test_random_weights_were_trained_for_nothing_and_warn_of_nothing():
    assert size_warning(replace(model_spec("latte"), trained=False), 8, 64, 64) == ""
