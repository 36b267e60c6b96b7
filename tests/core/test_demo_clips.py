"""The demo model's training clips: what scenes contain, how captions read, and that the picture shows what they say."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
import torch

from pab_core.demo.render import frame_table, render, trace_frames
from pab_core.demo.scenes import (
    CAMERAS,
    COLOURS,
    FLOORS,
    MOTIONS,
    SHAPES,
    SKIES,
    TEXTURES,
    SceneFields,
    Scenes,
    caption,
    evaluation_prompts,
    is_held_out,
    sample_scenes,
    scenes_of,
    training_vocabulary_text,
)

NOUNS = {
    "sphere": "ball|sphere",
    "cube": "cube|box|block",
    "cylinder": "cylinder|can|tube",
    "cone": "cone",
}
MOTION_WORDS = {
    "left": "left|leftwards",
    "right": "right|rightwards",
    "towards": "towards|closer|approaches|approaching",
    "away": "away|distance",
    "rise": "rises|rising|up|upwards|off",
    "fall": "falls|falling|drops|dropping",
    "bounce": "bounces|bouncing|up and down",
    "circle": "circle|circles|circling",
    "spin": "spins|spinning|rotates|rotating|spot|whirls|whirling",
}
RED_BALL = SceneFields("sphere", "red", "plain", "green", "day", "left", "static")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes_with_motion(motion: str, count_per_pair: int = 1) -> Scenes:
    """Every shape and every camera with this motion."""
    wanted = [
        SceneFields(shape, "red", "striped", "grey", "day", motion, camera)
        for shape in SHAPES
        for camera in CAMERAS
        for _ in range(count_per_pair)
    ]
    return scenes_of(wanted, generator(3))


def track(scenes: Scenes) -> dict[str, torch.Tensor]:
    """Area, centre (0..1), height and edge contact [B, T] of the object in 12 frames over the whole clip."""
    _, mask = render(scenes, num_frames=12, height=40, width=60, fps=16 / 3, supersample=1)
    area = mask.mean((2, 3))
    x = (torch.arange(60) + 0.5) / 60
    y = (torch.arange(40) + 0.5) / 40
    left_right = torch.maximum(mask[..., 0].amax(-1), mask[..., -1].amax(-1))
    top_bottom = torch.maximum(mask[..., 0, :].amax(-1), mask[..., -1, :].amax(-1))
    return {
        "area": area,
        "x": (mask * x).mean((2, 3)) / area,
        "y": (mask * y[:, None]).mean((2, 3)) / area,
        "height": mask.amax(3).sum(2) / 40,
        "edge": torch.maximum(left_right, top_bottom),
    }


@pytest.fixture(scope="module")
def tracks() -> dict[str, dict[str, torch.Tensor]]:
    return {motion: track(scenes_with_motion(motion)) for motion in MOTIONS}


def test_samples_are_reproducible_and_cover_every_attribute() -> None:
    first, second = sample_scenes(600, generator(1)), sample_scenes(600, generator(1))
    assert torch.equal(first.distance, second.distance)
    assert first.describe() == second.describe()
    seen = [set(column) for column in zip(*first.describe(), strict=True)]
    everything = (SHAPES, COLOURS, TEXTURES, FLOORS, SKIES, MOTIONS, CAMERAS)
    assert seen == [set(names) for names in everything]
    counts = Counter(fields.camera for fields in first.describe())
    assert 0.4 < counts["static"] / 600 < 0.6


def test_splits_share_no_combination_and_hold_out_a_tenth() -> None:
    combinations = [(s, c, m) for s in SHAPES for c in COLOURS for m in MOTIONS]
    held = [t for t in combinations if is_held_out(*t)]
    assert 0.08 < len(held) / len(combinations) < 0.12
    # Each attribute is held out now and then, never always.
    for position, names in enumerate((SHAPES, tuple(COLOURS), MOTIONS)):
        shares = [sum(t[position] == name for t in held) / (len(combinations) / len(names)) for name in names]
        assert min(shares) > 0
        assert max(shares) < 0.25
    for split, expected in (("train", {False}), ("held_out", {True}), ("all", {False, True})):
        fields = sample_scenes(400, generator(2), split=split).describe()
        assert {is_held_out(f.shape, f.colour, f.motion) for f in fields} == expected
    assert not is_held_out("sphere", "red", "left")
    with pytest.raises(ValueError, match="validation"):
        sample_scenes(1, generator(), split="validation")


def test_scenes_can_be_indexed() -> None:
    scenes = sample_scenes(6, generator(4))
    fields = scenes.describe()
    assert len(scenes) == 6
    assert len(scenes[1:3]) == 2
    assert scenes[-1].describe() == [fields[5]]
    assert scenes[torch.tensor([4, 0])].describe() == [fields[4], fields[0]]


def test_plain_round_objects_never_spin() -> None:
    fields = sample_scenes(2000, generator(5), split="all").describe()
    spinning = [f for f in fields if f.motion == "spin" and f.shape != "cube"]
    assert spinning
    assert all(f.texture != "plain" for f in spinning)


def test_every_caption_states_shape_colour_and_motion() -> None:
    rng = random.Random(0)
    for fields in sample_scenes(1500, generator(6), split="all").describe():
        text = caption(fields, rng)
        assert text == text.lower()
        assert len(text.split()) <= 30
        assert re.search(rf"\b({NOUNS[fields.shape]})\b", text), text
        assert re.search(rf"\b{fields.colour} ({NOUNS[fields.shape]})\b", text), text
        assert re.search(rf"\b({MOTION_WORDS[fields.motion]})\b", text), (fields.motion, text)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | [.,]", text), text


def test_the_sentence_of_the_readme_is_in_the_grammar() -> None:
    rng = random.Random(0)
    captions = {caption(RED_BALL, rng) for _ in range(20000)}
    assert "a red ball rolls left over a green floor" in captions
    assert len(captions) > 5000


def test_optional_parts_are_stated_about_seven_times_in_ten() -> None:
    rng = random.Random(0)
    fields = RED_BALL._replace(texture="striped", camera="zoom in")
    texts = [caption(fields, rng) for _ in range(2000)]
    for word in ("strip", "green", "zoom"):
        assert 0.65 < sum(word in text for text in texts) / 2000 < 0.75, word


def test_vocabulary_is_small_and_reproducible() -> None:
    texts = list(training_vocabulary_text(3000, 1))
    assert texts == list(training_vocabulary_text(3000, 1))
    words = set(re.findall(r"[a-z]+", " ".join(texts)))
    assert 120 < len(words) < 260


def test_evaluation_prompts_are_held_out_and_balanced() -> None:
    prompts = evaluation_prompts(64, seed=3)
    assert prompts == evaluation_prompts(64, seed=3)
    assert len(prompts) == 64
    assert all(is_held_out(p.shape, p.colour, p.motion) for p in prompts)
    assert all(p.colour in p.text for p in prompts)
    uses = Counter((p.shape, p.colour, p.motion) for p in prompts)
    assert max(uses.values()) - min(uses.values()) <= 1 or len(uses) == 64


def test_shapes_ranges_and_reproducibility_of_the_picture() -> None:
    scenes = sample_scenes(3, generator(7))
    video, mask = render(scenes, num_frames=5, height=16, width=24)
    assert video.shape == (3, 3, 5, 16, 24)
    assert mask.shape == (3, 5, 16, 24)
    assert video.dtype == mask.dtype == torch.float32
    assert video.isfinite().all()
    assert video.min() >= -1
    assert video.max() <= 1
    assert mask.min() == 0
    assert mask.max() == 1
    partly = (mask > 0) & (mask < 1)
    assert partly.any()  # edges are antialiased


def test_chunks_and_length_do_not_change_the_picture() -> None:
    scenes = sample_scenes(4, generator(8))
    whole, _ = render(scenes, num_frames=6, height=16, width=24, chunk=4)
    for chunk in (1, 3, None):
        parts, _ = render(scenes, num_frames=6, height=16, width=24, chunk=chunk)
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)
    longer, _ = render(scenes, num_frames=9, height=16, width=24)
    torch.testing.assert_close(longer[:, :, :6], whole, atol=1e-4, rtol=0)


def test_the_tracer_compiles_without_graph_breaks() -> None:
    frames = frame_table(sample_scenes(2, generator(9)), 2, 16)
    compiled = torch.compile(trace_frames, backend="eager", fullgraph=True)
    for got, expected in zip(compiled(frames, 8, 12, 2), trace_frames(frames, 8, 12, 2), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("motion", "sign"), [("left", -1), ("right", 1)])
def test_sideways_motion_crosses_the_frame(tracks: dict, motion: str, sign: int) -> None:
    x = tracks[motion]["x"]
    assert ((x[:, -1] - x[:, 0]) * sign > 0.38).all()
    assert ((x[:, 0] - 0.5) * sign < -0.1).all()  # it starts on the other side
    assert ((x[:, 1:] - x[:, :-1]) * sign > 0).all()


def test_depth_changes_the_area(tracks: dict) -> None:
    towards, away = tracks["towards"]["area"], tracks["away"]["area"]
    assert (towards[:, -1] / towards[:, 0] > 2).all()
    assert (away[:, -1] / away[:, 0] < 0.5).all()


@pytest.mark.parametrize(("motion", "sign"), [("rise", -1), ("fall", 1)])
def test_vertical_motion(tracks: dict, motion: str, sign: int) -> None:
    y = tracks[motion]["y"]
    assert ((y[:, -1] - y[:, 0]) * sign > 0.3).all()


def test_motions_in_place_return_or_stay(tracks: dict) -> None:
    bounce = tracks["bounce"]["y"]
    assert (bounce.amax(1) - bounce.amin(1) > 0.18).all()
    turns = (bounce[:, 1:] - bounce[:, :-1]).sign()
    assert ((turns[:, 1:] != turns[:, :-1]).sum(1) >= 3).all()
    static = torch.tensor([camera == "static" for _ in SHAPES for camera in CAMERAS])
    circle = {k: v[static] for k, v in tracks["circle"].items()}
    assert (circle["x"].amax(1) - circle["x"].amin(1) > 0.25).all()
    assert ((circle["x"][:, -1] - circle["x"][:, 0]).abs() < 0.05).all()
    spin = {k: v[static] for k, v in tracks["spin"].items()}
    assert (spin["x"].amax(1) - spin["x"].amin(1) < 0.03).all()


def test_a_spinning_object_changes_its_face() -> None:
    scenes = scenes_with_motion("spin")
    scenes = scenes[scenes.camera == 0]
    video, mask = render(scenes, num_frames=2, height=40, width=60, fps=6, supersample=1)
    both = (mask[:, :1] * mask[:, 1:]).unsqueeze(1)
    change = ((video[:, :, :1] - video[:, :, 1:]).abs() * both).sum((1, 2, 3, 4)) / both.sum((1, 2, 3, 4))
    assert (change > 0.2).all()


def test_objects_are_large_and_stay_in_the_frame(tracks: dict) -> None:
    for motion, seen in tracks.items():
        assert 0.28 < seen["height"].mean() < 0.52, motion
        assert seen["area"].min() > 0.015, motion
        assert seen["edge"].mean() < 0.05, motion
        assert ((seen["x"] > 0.1) & (seen["x"] < 0.9) & (seen["y"] > 0.1) & (seen["y"] < 0.9)).all(), motion


def test_objects_show_their_colour_under_every_sky() -> None:
    wanted = [
        SceneFields(shape, colour, "plain", "grey", sky, "left", "static")
        for colour in COLOURS
        for sky in SKIES
        for shape in SHAPES
    ]
    scenes = scenes_of(wanted, generator(10))
    video, mask = render(scenes, num_frames=1, height=48, width=72, supersample=1)
    mean = ((video / 2 + 0.5) * mask[:, None]).sum((2, 3, 4)) / mask.sum((1, 2, 3))[:, None]
    named = torch.tensor(list(COLOURS.values()))
    # Compare hue and saturation, not brightness.
    distance = torch.cdist(mean / mean.amax(1, keepdim=True), named / named.amax(1, keepdim=True))
    right = distance.argmin(1) == scenes.colour
    assert right.float().mean() > 0.95


def test_the_night_is_bright_enough_and_nothing_is_clipped() -> None:
    scenes = sample_scenes(120, generator(11))
    video, mask = render(scenes, num_frames=1, height=32, width=48, supersample=1)
    luma = (video[:, :, 0] / 2 + 0.5).mean((1, 2, 3))
    assert luma.min() > 0.2
    assert luma.max() < 0.85
    assert (video.amin(1) > 0.995).float().mean() < 0.01
    on_object = (video[:, :, 0] / 2 + 0.5).amax(1)
    brightness = (on_object * mask[:, 0]).sum((1, 2)) / mask[:, 0].sum((1, 2))
    assert brightness.min() > 0.3


def test_the_object_casts_a_shadow() -> None:
    scenes = scenes_of([RED_BALL._replace(motion="bounce", floor="grey")], generator(12))
    scenes.phase.fill_(0.5)  # at its highest point
    video, mask = render(scenes, num_frames=1, height=64, width=96)
    scenes.size.fill_(0.01)
    empty, _ = render(scenes, num_frames=1, height=64, width=96)
    darker = (empty - video).mean(1)[0, 0] * (mask[0, 0] == 0)
    assert (darker > 0.15).float().mean() > 0.01
