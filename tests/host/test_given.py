"""Image/Video Condition (PAB) in the real ComfyUI: given pictures and clips, chains and loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import frames_of, shared, with_node
from server import ComfyServer
from template import Prompt, node_of
from test_text_to_video import change, run_frames

RED_BALL = "a red ball rolls left over a green floor"


def given(graph: Prompt, links: dict[str, Any] | None = None, **inputs: Any) -> Prompt:
    inputs = {"edit": 0.0, "loop": False, "total_frames": 0, **(links or {}), **inputs}
    graph = with_node(graph, "PABGiven", **inputs)
    return shared(graph, {"given": ["PABGiven", 0], "seed": 6}, "2")


def picture_of(graph: Prompt, index: int, name: str) -> Prompt:
    """One frame of the first video, as a batch of one."""
    batch = {"image": [node_of(graph, "PABDecode"), 0], "batch_index": index, "length": 1}
    return {**graph, name: {"class_type": "ImageFromBatch", "inputs": batch}}


def test_first_and_last_frame_are_kept(server: ComfyServer, short: Prompt) -> None:
    graph = picture_of(picture_of(short, 0, "first"), 16, "last")
    _, plain = run_frames(server, short)
    # Another prompt would show another scene, were it not for the given frames.
    other = {"model": [node_of(short, "PABLoadModel"), 0], "prompt": "a blue cube spins on sand at sunset"}
    graph = with_node(graph, "PABTextEncode", **other)
    graph = given(graph, {"first_frame": ["first", 0], "last_frame": ["last", 0]})
    graph["sampler2"]["inputs"]["conditioning"] = ["PABTextEncode", 0]
    made = frames_of(server, graph)
    assert made.shape == plain.shape
    del graph["sampler2"]["inputs"]["given"]
    free = frames_of(server, graph)
    near = [np.abs(made[i].astype(int) - plain[i]).mean() for i in (0, 16)]
    far = [np.abs(free[i].astype(int) - plain[i]).mean() for i in (0, 16)]
    assert near[0] < 0.25 * far[0]
    assert near[1] < 0.5 * far[1]


def test_a_clip_goes_on_and_the_result_holds_it(server: ComfyServer, short: Prompt) -> None:
    video = [node_of(short, "PABDecode"), 1]
    _, plain = run_frames(server, short)
    graph = given(short, {"video": video})
    graph["sampler2"]["inputs"]["frames"] = 34
    made = frames_of(server, graph)
    assert len(made) == 17 + 34 - 17
    np.testing.assert_array_equal(made[:17], plain)
    edited = frames_of(server, given(short, {"video": video}, edit=0.5))
    assert edited.shape == plain.shape


def test_a_chain_and_a_loop(server: ComfyServer, short: Prompt) -> None:
    graph = given(short, total_frames=51)
    graph["sampler2"]["inputs"]["frames"] = 34
    assert len(frames_of(server, graph)) == 51
    graph = given(picture_of(short, 0, "first"), {"first_frame": ["first", 0]}, loop=True)
    assert len(frames_of(server, graph)) == 13  # a still at the end closes it and is left out


def test_a_prompt_says_what_comes_when(server: ComfyServer, short: Prompt) -> None:
    graph = given(short, total_frames=51)
    graph["sampler2"]["inputs"]["frames"] = 34
    one = frames_of(server, graph)
    prompt = f"|0| {RED_BALL} |1| a blue cube spins on sand at sunset"
    graph = with_node(graph, "PABTextEncode", model=[node_of(short, "PABLoadModel"), 0], prompt=prompt)
    graph["sampler2"]["inputs"]["conditioning"] = ["PABTextEncode", 0]
    two = frames_of(server, graph)
    assert len(two) == 51
    # The second clip begins with what the first one ends with.
    np.testing.assert_array_equal(one[:34], two[:34])
    assert np.abs(one[34:].astype(int) - two[34:]).mean() > 1


@pytest.mark.parametrize(
    ("prompt", "node", "said"),
    [
        ("|0| a red ball |2| a blue cube", "PABSampler", "has a text for clip 2, but the video has 2"),
        ("|1| a red ball", "PABTextEncode", "must begin with |0|"),
        ("|0| a red ball |1|", "PABTextEncode", "has no text for clip 1"),
    ],
)
def test_a_prompt_of_a_chain_that_does_not_fit_is_told(
    server: ComfyServer, short: Prompt, prompt: str, node: str, said: str
) -> None:
    graph = given(short, total_frames=51)
    graph["sampler2"]["inputs"]["frames"] = 34
    change(graph, "PABTextEncode", prompt=prompt)
    graph["save2"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode2", 0]}}
    del graph[node_of(graph, "SaveVideo")]
    end = server.wait(server.queue(graph))
    assert end.data["node_type"] == node
    assert said in end.data["exception_message"]


@pytest.mark.parametrize(
    ("inputs", "node", "said"),
    [
        ({"edit": 0.5}, "PABGiven", "An edit ratio goes with a video"),
        ({"total_frames": 40}, "PABSampler", "cannot be chained"),
    ],
)
def test_given_things_that_do_not_fit_are_told(
    server: ComfyServer, short: Prompt, inputs: dict[str, Any], node: str, said: str
) -> None:
    graph = given(short, **inputs)
    graph["sampler2"]["inputs"]["frames"] = 34
    graph["save2"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode2", 0]}}
    end = server.wait(server.queue(graph))
    assert end.kind == "execution_error"
    assert end.data["node_type"] == node
    assert said in end.data["exception_message"]


def test_a_model_for_text_alone_refuses_frames(server: ComfyServer, short: Prompt) -> None:
    graph = given(picture_of(short, 0, "first"), {"first_frame": ["first", 0]})
    other = {"model": "demo-latte", "precision": "auto", "weights": "full", "offload": "off"}
    graph["latte"] = {"class_type": "PABLoadModel", "inputs": {**other, "text_encoder": "the model's own"}}
    graph["text"] = {"class_type": "PABTextEncode", "inputs": {"model": ["latte", 0], "prompt": RED_BALL}}
    zero = dict.fromkeys(("width", "height", "frames"), 0)
    graph["sampler2"]["inputs"].update(model=["latte", 0], conditioning=["text", 0], **zero)
    graph["decode2"]["inputs"]["model"] = ["latte", 0]
    graph["save2"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode2", 0]}}
    end = server.wait(server.queue(graph))
    assert end.data["node_type"] == "PABSampler"
    assert "was made for text alone" in end.data["exception_message"]
