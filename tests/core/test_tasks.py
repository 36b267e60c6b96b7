"""Videos that begin with given pictures or clips, loops, and longer videos in a chain, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import ABOUT
from typer.testing import CliRunner

from pab_core import video_io
from pab_core.cli import app
from pab_core.conditioning import GivenFrames, apply_given
from pab_core.errors import PabError
from pab_core.pipeline import Pipeline
from pab_core.pixels import as_video
from pab_core.results import Progress
from pab_core.tasks import Given, make_plan, read

PROMPT = "a red ball rolls left over a green floor"
SIZE = (ABOUT["height"], ABOUT["width"])
FAST: dict[str, Any] = {"steps": 2, "seed": 1}


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of a picture that moves, 8 a second."""
    wide = np.asarray(picture(3).resize((240, 64)))
    frames = np.stack([wide[:, 3 * i : 3 * i + 96] for i in range(40)])
    path = tmp_path_factory.mktemp("given") / "clip.mp4"
    video_io.write_mp4(path, torch.from_numpy(frames), ABOUT["fps"], {})
    return path


def test_a_given_picture_is_in_the_latents_and_nothing_else_is(pipe: Pipeline):
    size = {"num_frames": 17, "height": 32, "width": 48}
    plan = make_plan(pipe.spec, PROMPT, Given(image=picture()), total_frames=None, **size)
    (given,) = plan.frames_for(plan.segments[0], pipe.encode, [])
    noise = pipe.prepare_latents(1, **size)
    z, mask = apply_given(noise, [given])
    assert mask is not None
    assert mask.tolist() == [[0, 1, 1, 1, 1]]
    end = pipe.denoise(z, pipe.encode_prompt(PROMPT), pipe.schedule("off", steps=3), steps=3, cond_mask=mask, seed=1)
    assert torch.equal(end[:, :, :1], given.latents)
    assert not torch.equal(end[:, :, 1:], noise[:, :, 1:])


def test_image_to_video_is_the_stages_in_order(pipe: Pipeline):
    made = pipe.generate(PROMPT, given=Given(image=picture()), **FAST)
    first = pipe.encode(read(picture(), *SIZE, limit=1))
    z, mask = apply_given(pipe.prepare_latents(1), [GivenFrames(first)])
    latents = pipe.denoise(
        z, pipe.encode_prompt(PROMPT), pipe.schedule("off", steps=2), steps=2, cond_mask=mask, seed=1
    )
    assert torch.equal(made.frames, pipe.decode(latents))
    assert not torch.equal(made.frames, pipe.generate(PROMPT, **FAST).frames)


def test_the_same_seed_gives_the_same_video_also_where_frames_are_edited(pipe: Pipeline, clip: Path):
    given = Given(video=clip, edit=0.9)
    a, b = (pipe.generate(PROMPT, given=given, **FAST).frames for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, pipe.generate(PROMPT, given=given, steps=2, seed=2).frames)


def test_broadcast_works_with_given_frames(pipe: Pipeline):
    given = Given(image=picture(), last_image=picture(1))
    off, on = (pipe.generate(PROMPT, given=given, policy=policy, seed=1).frames for policy in ("off", "pab246"))
    assert off.shape == on.shape
    assert not torch.equal(off, on)


def test_a_video_goes_on_from_its_end(pipe: Pipeline, clip: Path):
    made = pipe.generate(PROMPT, given=Given(video=clip), num_frames=34, **FAST)
    assert len(made.frames) == 40 + 34 - 17
    source, _ = video_io.read_mp4(clip)
    fitted = ((read(list(source), *SIZE, limit=99)[0] + 1) * 127.5).permute(1, 2, 3, 0)
    assert (made.frames[:40].float() - fitted).abs().mean() < 3


def test_a_long_video_is_a_chain_whose_clips_go_on_from_each_other(pipe: Pipeline):
    events: list[Progress] = []
    made = pipe.generate(
        "|0| a red ball bounces |1| a blue cube", num_frames=34, total_frames=51, progress=events.append, **FAST
    )
    assert len(made.frames) == 51
    assert made.metadata["clips"] == 2
    denoised = [(event.done, event.total) for event in events if event.stage == "denoise"]
    assert denoised == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first = pipe.generate("a red ball bounces", num_frames=34, **FAST).frames
    assert torch.equal(made.frames[:34], first)
    given = Given(video=list(first.numpy()))
    # The second clip alone: from the end of the first, with the next seed and its own text.
    second = pipe.generate("a blue cube", given=given, num_frames=34, steps=2, seed=2).frames
    assert torch.equal(made.frames[34:], second[34:])


def test_loops(pipe: Pipeline):
    assert len(pipe.generate(PROMPT, given=Given(loop=True), num_frames=51, **FAST).frames) == 68
    assert len(pipe.generate(PROMPT, given=Given(image=picture(), loop=True), num_frames=34, **FAST).frames) == 30


def test_open_soras_own_mask_strategy(pipe: Pipeline):
    plain = pipe.generate(PROMPT, given=Given(image=picture()), **FAST).frames
    own = pipe.generate(PROMPT, given=Given(strategy="0", references=(picture(),)), **FAST).frames
    assert torch.equal(plain, own)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": 1, "video": 1}, "either a video or pictures"),
        ({"edit": 0.5}, "goes with a video"),
        ({"video": 1, "edit": 2}, "edit ratio must be"),
        ({"video": 1, "loop": True}, "A loop starts from"),
        ({"strategy": "0"}, "go together"),
        ({"strategy": "0", "references": (1,), "image": 1}, "either a mask strategy"),
    ],
)
def test_things_given_that_do_not_go_together(given: dict[str, Any], words: str):
    with pytest.raises(PabError, match=words):
        Given(**given)


def test_lengths_that_cannot_be_chained(pipe: Pipeline):
    with pytest.raises(PabError, match="Near are 34 and 51"):
        pipe.generate(PROMPT, num_frames=34, total_frames=40, **FAST)
    with pytest.raises(PabError, match="single clip"):
        pipe.generate(PROMPT, given=Given(image=picture(), loop=True), num_frames=34, total_frames=51)


def test_on_the_command_line(folder: Path, clip: Path, tmp_path: Path):
    picture().save(tmp_path / "first.png")
    out = tmp_path / "a.mp4"

    def pab(*options: Any):
        words = ["generate", PROMPT, "--model", folder, "--steps", 2, "--seed", 1, "-o", out, "--force", *options]
        return CliRunner().invoke(app, [str(word) for word in words])

    assert pab("--image", tmp_path / "first.png").exit_code == 0
    assert len(video_io.read_mp4(out)[0]) == 17
    assert pab("--video", clip, "--frames", 34).exit_code == 0
    assert len(video_io.read_mp4(out)[0]) == 57
    result = pab("--image", tmp_path / "nowhere.png")
    assert result.exit_code == 2
    assert "nowhere.png" in result.stderr
    assert pab("--edit", "0.5").exit_code == 2


def test_frames_to_video_and_back():
    frames = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    video = as_video(frames)
    assert video.shape == (1, 3, 2, 3, 4)
    assert torch.equal(((video[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0), frames)
