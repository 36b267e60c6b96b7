"""The nodes as good guests of the real ComfyUI: runs that do not meet, values that cannot be, older prompts."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from graphs import frames_of, refused, shared, with_node
from PIL import Image
from server import ComfyServer
from template import Prompt, node_of
from test_text_to_video import change, run_frames


def test_two_queued_prompts_never_meet(server: ComfyServer, short: Prompt) -> None:
    first, second = json.loads(json.dumps(short)), json.loads(json.dumps(short))
    change(first, "PABBroadcast", policy="pab579")
    change(second, "PABSampler", width=64, height=96, seed=9)
    change(second, "PABBroadcast", policy="off")
    alone = [run_frames(server, graph)[1] for graph in (first, second)]
    # New seeds back again: both run anew, one right after the other.
    for graph in (first, second):
        change(graph, "PABSampler", seed=1234)
        server.run(graph)
    change(first, "PABSampler", seed=5)
    change(second, "PABSampler", seed=9)
    saving = {"class_type": "SaveImage", "inputs": {"filename_prefix": "frames"}}
    queued = []
    for graph in (first, second):
        images = {"images": [node_of(graph, "PABDecode"), 0]}
        queued.append(server.queue({**graph, "frames": {**saving, "inputs": {**saving["inputs"], **images}}}))
    for prompt_id in queued:
        assert server.wait(prompt_id).kind == "execution_success"
    for prompt_id, before in zip(queued, alone, strict=True):
        files = server.history(prompt_id)["outputs"]["frames"]["images"]
        after = np.stack([np.asarray(Image.open(io.BytesIO(server.output(file)))) for file in files])
        np.testing.assert_array_equal(before, after)


def test_a_result_is_not_changed_by_the_next_run(server: ComfyServer, short: Prompt) -> None:
    # The first sampler's latents stay in the host's cache while a second one runs from the same noise and text.
    _, before = run_frames(server, short)
    both = shared(short, {"policy": None, "seed": 5}, "2")
    frames_of(server, both)
    # Only the decoder runs again, from the cached latents.
    both["decode3"] = {"class_type": "PABDecode", "inputs": dict(both[node_of(short, "PABDecode")]["inputs"])}
    after = frames_of(server, both, "decode3")
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("class_type", "inputs", "said"),
    [
        ("PABBroadcast", {"kept": "nowhere"}, "'nowhere' is not known"),
        ("PABBroadcast", {"spatial_range": 99}, "value_bigger_than_max"),
        ("PABBroadcast", {"window_stop": -1}, "value_smaller_than_min"),
        ("PABBroadcast", {"policy": "/etc/x.json"}, "the path of a file"),
        ("PABSampler", {"policy": ["2", 0]}, "return_type_mismatch"),
        ("PABSampler", {"steps": 10**9}, "value_bigger_than_max"),
        ("PABSampler", {"seed": -1}, "value_smaller_than_min"),
        ("PABSampler", {"frames": "many"}, "invalid_input_type"),
        ("PABLoadModel", {"precision": "int8"}, "'int8' is not known"),
        ("PABLoadModel", {"weights": "int4"}, "'int4' is not known"),
        ("PABLoadModel", {"offload": "disk"}, "'disk' is not known"),
        ("PABLoadModel", {"speed": "warp"}, "'warp'"),
        ("PABTextEncode", {"camera": "sideways"}, "'sideways'"),
        ("PABTextEncode", {"aesthetic": 11.0}, "value_bigger_than_max"),
        ("PABDecode", {"model": ["3", 0]}, "return_type_mismatch"),
    ],
)
def test_values_outside_limits_are_refused_in_words(
    server: ComfyServer, short: Prompt, class_type: str, inputs: dict[str, Any], said: str
) -> None:
    told = refused(server, short, class_type, **inputs)
    assert said in told or "value_not_in_list" in told  # newer hosts look at choices themselves


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"model": "../../etc"}, "is no longer in models/pab: choose another model, or put its folder there"),
        ({"text_encoder": "../t5.safetensors"}, "is no longer in models/text_encoders: choose another"),
    ],
)
def test_files_that_are_not_there_are_told_in_our_words(
    server: ComfyServer, short: Prompt, inputs: dict[str, Any], said: str
) -> None:
    assert said in refused(server, short, "PABLoadModel", **inputs)


def test_a_schedule_that_is_not_there_is_told_in_our_words(server: ComfyServer, short: Prompt) -> None:
    for name in ("gone.json", "../../pab.json"):
        graph = with_node(short, "PABLoadSchedule", schedule=name, kept="plain")
        change(graph, "PABSampler", policy=["PABLoadSchedule", 0])
        said = f"The schedule '{name}' is not in models/pab/schedules or output/pab_schedules"
        assert said in refused(server, graph, "PABLoadSchedule")


def test_a_window_without_a_step_is_told_in_words(server: ComfyServer, short: Prompt) -> None:
    change(short, "PABBroadcast", window_start=0.99, window_stop=1.0)
    told = refused(server, short, "PABSampler")
    assert "holds none of the run's 8 steps" in told
    assert "choose a wider window or more steps" in told


def test_a_prompt_of_the_first_version_still_runs(server: ComfyServer, short: Prompt) -> None:
    _, now = run_frames(server, short)
    for name in ("precision", "weights", "offload", "text_encoder", "speed"):
        del short[node_of(short, "PABLoadModel")]["inputs"][name]
    for name in ("negative", "aesthetic", "motion", "camera"):
        del short[node_of(short, "PABTextEncode")]["inputs"][name]
    del short[node_of(short, "PABBroadcast")]["inputs"]["kept"]
    _, then = run_frames(server, short)
    np.testing.assert_array_equal(now, then)
