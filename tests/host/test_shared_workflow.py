"""What the studio shares of a video, in the real ComfyUI: it loads, runs, and asks for the pictures that it needs."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from server import ComfyServer
from template import node_of, to_prompt
from test_text_to_video import run_frames

from pab_core.app.request import ClipRequest
from pab_core.app.sharing import workflow_for
from pab_core.models.registry import MODELS

SMALL: dict[str, Any] = {"prompt": "a red ball", "seed": "5", "size": "96x64", "frames": "17", "steps": 4}


@pytest.mark.parametrize("own", [{}, {"policy": "fast", "spatial": 3, "window": "0.2:0.8"}])
def test_a_shared_workflow_runs(server: ComfyServer, own: dict[str, Any]) -> None:
    workflow = workflow_for(ClipRequest(**SMALL, **own), MODELS["demo"])
    _, frames = run_frames(server, to_prompt(workflow, server.object_info()))
    assert frames.shape == (17, 64, 96, 3)


def test_a_shared_workflow_starts_from_the_picture(server: ComfyServer) -> None:
    inputs = server.base / "input"
    shutil.copyfile(inputs / "example.png", inputs / "first-frame.png")
    workflow = workflow_for(ClipRequest(**SMALL, picture="0" * 32), MODELS["demo"])
    prompt = to_prompt(workflow, server.object_info())
    assert prompt[node_of(prompt, "LoadImage")]["inputs"]["image"] == "first-frame.png"
    _, given = run_frames(server, prompt)
    del prompt[node_of(prompt, "PABSampler")]["inputs"]["given"]
    _, free = run_frames(server, prompt)
    assert given.shape == free.shape
    assert np.abs(given[0].astype(int) - free[0]).mean() > 5
