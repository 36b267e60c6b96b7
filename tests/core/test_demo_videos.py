"""A video of each trained demo model, by the command line, as a released checkpoint would make it; the judge looks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pab_core import video_io
from pab_core.cli import app
from pab_core.demo.adherence import judge_videos
from pab_core.demo.judge import load_judge
from pab_core.models.registry import MODELS


@pytest.mark.parametrize(
    ("model", "policy", "prompt", "shown"),
    [
        ("demo", "pab246", "a red ball rolls left over a green floor", ("sphere", "red", "left")),
        ("demo-latte", "pab236", "a red cone falls down to a green floor", ("cone", "red", "fall")),
        ("demo-plan", "pab246", "an orange cube moves left on a grey floor", ("cube", "orange", "left")),
    ],
)
def test_the_video_shows_what_the_prompt_says(
    model: str, policy: str, prompt: str, shown: tuple[str, str, str], tmp_path: Path
):
    out = tmp_path / "out.mp4"
    result = CliRunner().invoke(
        app,
        ["generate", prompt, "--model", model, "--policy", policy, "--seed", "1", "--device", "cpu", "-o", str(out)],
    )
    assert result.exit_code == 0, result.output
    spec = MODELS[model]
    frames, fps = video_io.read_mp4(out)
    assert (tuple(frames.shape), fps) == ((spec.num_frames, spec.height, spec.width, 3), spec.fps)
    assert video_io.read_metadata(out)["policy"] == policy
    (seen,) = judge_videos(load_judge(), torch.as_tensor(frames)[None], fps)
    assert (seen.shape, seen.colour, seen.motion) == shown
