"""Each node beside the five of the first template, in the real ComfyUI on the demo model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import refused, with_node
from server import ComfyServer
from template import Prompt, load_template, node_of
from test_text_to_video import change, run_frames

from pab_core.broadcast.schedule_file import load_schedule
from pab_core.video_io import read_mp4, read_tags

RED_BALL = "a red ball rolls left over a green floor"


# --- load -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", ["parts", "blocks"])
def test_offloading_changes_nothing(server: ComfyServer, short: Prompt, offload: str) -> None:
    _, plain = run_frames(server, short)
    change(short, "PABLoadModel", offload=offload)
    _, lent = run_frames(server, short)
    np.testing.assert_array_equal(plain, lent)


def test_eight_bits_and_precision_change_little(server: ComfyServer, short: Prompt) -> None:
    _, plain = run_frames(server, short)
    change(short, "PABLoadModel", weights="fp8", precision="bfloat16")
    _, small = run_frames(server, short)
    assert 0 < np.abs(plain.astype(int) - small).mean() < 30


def test_only_what_is_there_is_offered(server: ComfyServer) -> None:
    inputs = server.object_info("PABLoadModel")["PABLoadModel"]["input"]
    assert inputs["required"]["model"][1]["options"] == ["demo", "demo-latte", "demo-plan", "tiny"]
    assert inputs["optional"]["text_encoder"][1]["options"] == ["the model's own"]


def test_a_model_that_is_gone_is_told_in_words(server: ComfyServer, short: Prompt) -> None:
    graph = with_node(short, "PABDownload", model="latte")
    said = "is no longer in models/pab: put Latte-1 there, or connect Download Video DiT (PAB)"
    assert said in refused(server, short, "PABLoadModel", model="latte")
    assert "choose another model" in refused(server, short, "PABLoadModel", model="gone")
    change(graph, "PABLoadModel", model="demo", checkpoint=["PABDownload", 0])
    end = server.wait(server.queue(graph))
    assert end.data["node_type"] == "PABDownload"
    assert "fetch the files of" in end.data["exception_message"]


def test_speeds_that_this_machine_has_not_are_told_of(server: ComfyServer, short: Prompt) -> None:
    _, auto = run_frames(server, short)
    change(short, "PABLoadModel", speed="exact")
    _, exact = run_frames(server, short)
    np.testing.assert_array_equal(auto, exact)
    # Eight bits need a GPU: what is left is fast or exact.
    change(short, "PABLoadModel", speed="fp8")
    _, other = run_frames(server, short)
    assert np.abs(auto.astype(int) - other).mean() < 2
    told = [
        e.data["text"]
        for e in server.events
        if e.kind == "text" and e.data["node_id"] == node_of(short, "PABLoadModel")
    ]
    assert told
    change(short, "PABLoadModel", offload="blocks", speed="fast")
    _, blocks = run_frames(server, short)
    np.testing.assert_array_equal(auto, blocks)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(server: ComfyServer) -> Iterator[str]:
    """A model that reads scores, by name."""
    models = server.base / "models" / "pab"
    folder = shutil.copytree(models / "tiny", models / "scored")
    about = json.loads((folder / "pab.json").read_text())
    (folder / "pab.json").write_text(json.dumps({**about, "prompt_scores": True}))
    yield folder.name
    shutil.rmtree(folder)


def test_scores_are_said_to_the_models_that_read_them(server: ComfyServer, short: Prompt, scored: str) -> None:
    _, plain = run_frames(server, short)
    change(short, "PABTextEncode", aesthetic=4.0, motion=20.0, camera="pan left")
    _, same = run_frames(server, short)
    np.testing.assert_array_equal(plain, same)  # the demo model does not
    change(short, "PABLoadModel", model=scored)
    made = []
    for scores in ({}, {"aesthetic": 4.0}, {"motion": 20.0}, {"camera": "zoom in"}):
        # One alone: so few tokens does the model read.
        change(
            short, "PABTextEncode", prompt="a red ball", **{"aesthetic": 0.0, "motion": 0.0, "camera": "any", **scores}
        )
        made.append(run_frames(server, short)[1])
    assert all((one != other).any() for one, other in combinations(made, 2))


# --- policies and schedules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["fp8", "host"])
def test_where_results_wait_hardly_shows(server: ComfyServer, short: Prompt, kept: str) -> None:
    _, plain = run_frames(server, short)
    change(short, "PABBroadcast", kept=kept)
    _, other = run_frames(server, short)
    difference = np.abs(plain.astype(int) - other)
    assert difference.mean() < 2
    assert kept == "fp8" or difference.max() == 0


def test_other_policies_by_choice_and_by_name(server: ComfyServer, short: Prompt) -> None:
    sampler = node_of(short, "PABSampler")
    graph = with_node(short, "PABPolicy", policy="tgate", name="", kept="plain")
    graph[sampler]["inputs"]["policy"] = ["PABPolicy", 0]
    prompt_id, _ = server.run(graph)
    assert server.history(prompt_id)["outputs"][sampler]["pab_measured"][0]["policy"] == "tgate"
    graph["PABPolicy"]["inputs"]["name"] = " steps5 "
    prompt_id, _ = server.run(graph)
    (measured,) = server.history(prompt_id)["outputs"][sampler]["pab_measured"]
    assert (measured["policy"], measured["steps"]) == ("steps5", 5)
    graph["PABPolicy"]["inputs"]["name"] = "/etc/passwd.json"
    end = server.wait(server.queue(graph))
    assert end.data["node_type"] == "PABPolicy"
    assert "is not the name of a policy but the path of a file" in end.data["exception_message"]


def test_a_calibrated_policy_on_the_node_and_one_of_another_machine(server: ComfyServer, short: Prompt) -> None:
    inputs = server.object_info("PABBroadcast")["PABBroadcast"]["input"]["required"]
    assert "calibrated" in inputs["policy"][1]["options"]
    change(short, "PABBroadcast", policy="calibrated")
    prompt_id, _ = server.run(short)
    (measured,) = server.history(prompt_id)["outputs"][node_of(short, "PABSampler")]["pab_measured"]
    assert measured["policy"] == "calibrated"
    change(short, "PABBroadcast", policy="calibrated-mine")  # a workflow from where that was made
    end = server.wait(server.queue(short))
    assert "No schedule named mine has been calibrated" in end.data["exception_message"]


def test_a_schedule_goes_to_a_file_and_back(server: ComfyServer, short: Prompt) -> None:
    loader, policy = node_of(short, "PABLoadModel"), node_of(short, "PABBroadcast")
    saving = {"model": [loader, 0], "policy": [policy, 0], "filename_prefix": "mine", "steps": 8}
    prompt_id, _ = server.run(with_node(short, "PABSaveSchedule", **saving))
    (saved,) = server.history(prompt_id)["outputs"]["PABSaveSchedule"]["pab_saved"]
    assert saved["subfolder"] == "pab_schedules"
    path = server.base / "output" / "pab_schedules" / saved["filename"]
    assert load_schedule(path).run_steps == 8
    _, by_sliders = run_frames(server, short)
    graph = with_node(short, "PABLoadSchedule", schedule=saved["filename"], kept="plain")
    graph[node_of(graph, "PABSampler")]["inputs"]["policy"] = ["PABLoadSchedule", 0]
    _, by_file = run_frames(server, graph)
    np.testing.assert_array_equal(by_sliders, by_file)
    # Edited, it is read anew.
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "rules": []}))
    _, edited = run_frames(server, graph)
    assert (edited != by_file).any()


def test_a_schedule_stays_in_its_folder(server: ComfyServer, short: Prompt) -> None:
    loader, policy = node_of(short, "PABLoadModel"), node_of(short, "PABBroadcast")
    saving = {"model": [loader, 0], "policy": [policy, 0], "filename_prefix": "../../../away", "steps": 8}
    end = server.wait(server.queue(with_node(short, "PABSaveSchedule", **saving)))
    assert end.kind == "execution_error"
    assert not list(server.base.parent.glob("away*"))


@pytest.mark.parametrize(("prefix", "stem"), [("", "schedule"), (" of mine/ ", "of mine/schedule"), ("汉字", "汉字")])
def test_a_schedule_is_saved_where_it_is_looked_for(server: ComfyServer, short: Prompt, prefix: str, stem: str) -> None:
    loader, policy = node_of(short, "PABLoadModel"), node_of(short, "PABBroadcast")
    saving = {"model": [loader, 0], "policy": [policy, 0], "filename_prefix": prefix, "steps": 9}
    server.run(with_node(short, "PABSaveSchedule", **saving))
    offered = server.object_info("PABLoadSchedule")["PABLoadSchedule"]["input"]["required"]["schedule"][1]["options"]
    assert any(name.startswith(f"{stem}_0") for name in offered)


@pytest.mark.parametrize("prefix", ["../elsewhere", "/elsewhere", "..\\elsewhere"])
def test_a_schedule_that_would_not_be_found_is_not_saved(server: ComfyServer, short: Prompt, prefix: str) -> None:
    loader, policy = node_of(short, "PABLoadModel"), node_of(short, "PABBroadcast")
    saving = {"model": [loader, 0], "policy": [policy, 0], "filename_prefix": "mine", "steps": 8}
    graph = with_node(short, "PABSaveSchedule", **saving)
    assert "leads out of output/pab_schedules" in refused(server, graph, "PABSaveSchedule", filename_prefix=prefix)
    assert not list((server.base / "output").rglob("*elsewhere*"))


# --- save -------------------------------------------------------------------------------------------------------------


def test_a_saved_video_carries_its_workflow(server: ComfyServer, short: Prompt, tmp_path: Path) -> None:
    graph = with_node(short, "PABSaveVideo", video=[node_of(short, "PABDecode"), 1], filename_prefix="w", loss=10)
    workflow = {**load_template("pab_text_to_video"), "title": 'quotes " and = ; # \\ and 汉字\n'}
    body = {"prompt": graph, "client_id": server.client_id, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    prompt_id = json.loads(server.post("/prompt", body))["prompt_id"]
    assert server.wait(prompt_id).kind == "execution_success"
    (saved,) = server.history(prompt_id)["outputs"]["PABSaveVideo"]["images"]
    file = tmp_path / "saved.mp4"
    file.write_bytes(server.output(saved))
    tags = read_tags(file)
    assert json.loads(tags["workflow"]) == workflow
    assert json.loads(tags["prompt"])["PABSaveVideo"]["class_type"] == "PABSaveVideo"
    assert read_mp4(file)[0].shape == (17, 64, 96, 3)


# --- calibrate --------------------------------------------------------------------------------------------------------


def calibrating(graph: Prompt, **inputs: Any) -> Prompt:
    usual = {"prompts": RED_BALL, "method": "window", "ranges": "pab246", "tolerance": 2.0, "saving": 0.1, "seed": 1}
    graph = with_node(graph, "PABCalibrate", model=[node_of(graph, "PABLoadModel"), 0], **(usual | inputs))
    graph["figure"] = {"class_type": "PreviewImage", "inputs": {"images": ["PABCalibrate", 1]}}
    graph["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["PABCalibrate", 2]}}
    return graph


def test_a_calibration_gives_a_policy_and_a_figure(server: ComfyServer, template: Prompt) -> None:
    from test_live_schedule import ask

    graph = calibrating(template)
    change(graph, "PABSampler", policy=["PABCalibrate", 0], width=96, height=64, frames=17)
    prompt_id, outputs = server.run(graph)
    assert "calm from" in outputs["report"]["text"][0]
    assert len(outputs["figure"]["images"]) == 1
    (measured,) = server.history(prompt_id)["outputs"][node_of(graph, "PABSampler")]["pab_measured"]
    assert measured["policy"].startswith("pab246 window=")
    assert measured["reused"]["cross"] > 0.2
    # From now on the picture on the broadcast node has these curves, in place of those that come with the model.
    _, told = ask(server, {"policy": "pab246"})
    assert told["curves"].count("<polyline") == 4
    assert "as calibrated" in told["curves"]


def test_curves_that_cannot_be_kept_cost_no_calibration(server: ComfyServer, template: Prompt) -> None:
    change(template, "PABLoadModel", model="tiny")
    graph = calibrating(template)
    del graph[node_of(graph, "SaveVideo")]
    in_the_way = server.base / "output" / "pab_schedules" / "tiny.curves"
    in_the_way.mkdir(parents=True)
    try:
        _, outputs = server.run(graph)
    finally:
        in_the_way.rmdir()
    assert "calm from" in outputs["report"]["text"][0]


def test_a_cancelled_calibration_ends_within_a_step_and_goes_on_later(server: ComfyServer, template: Prompt) -> None:
    graph = calibrating(template, prompts="a blue cube\na red ball", seed=77)
    del graph[node_of(graph, "SaveVideo")]
    cancelled = server.queue(graph)
    shown = server.wait_for(
        lambda e: e.kind == "progress" and e.data["prompt_id"] == cancelled and e.data["value"] >= 33, timeout=300
    )
    server.interrupt()
    assert server.wait(cancelled).kind == "execution_interrupted"
    values = [e.data["value"] for e in server.of(cancelled, "progress") if e.data["node"] == "PABCalibrate"]
    assert values[-1] <= shown.data["value"] + 2
    again, _ = server.run(graph)
    # The first prompt's run was kept: only the second was made.
    values = [e.data["value"] for e in server.of(again, "progress") if e.data["node"] == "PABCalibrate"]
    assert max(values) == 30


def test_a_search_finds_a_schedule_of_the_wanted_saving(server: ComfyServer, template: Prompt) -> None:
    change(template, "PABLoadModel", model="tiny")
    change(template, "PABTextEncode", prompt="a red ball")
    graph = calibrating(template, prompts="a red ball", method="search", saving=0.15)
    sizes = dict.fromkeys(("steps", "guidance", "width", "height", "frames"), 0)
    change(graph, "PABSampler", policy=["PABCalibrate", 0], **sizes)
    prompt_id, outputs = server.run(graph)
    assert "calibrated-15" in outputs["report"]["text"][0]
    (measured,) = server.history(prompt_id)["outputs"][node_of(graph, "PABSampler")]["pab_measured"]
    assert measured["policy"] == "calibrated-15"
    assert max(measured["reused"].values()) > 0.1
    values = [e.data["value"] for e in server.of(prompt_id, "progress") if e.data["node"] == "PABCalibrate"]
    assert values.count(200) >= 1


@pytest.mark.parametrize("prompts", ["", " \n ", "x\n" * 65])
def test_a_calibration_needs_prompts(server: ComfyServer, short: Prompt, prompts: str) -> None:
    end = server.wait(server.queue(calibrating(short, prompts=prompts)))
    assert end.data["node_type"] == "PABCalibrate"
    assert "takes 1 to 64 prompts" in end.data["exception_message"]
