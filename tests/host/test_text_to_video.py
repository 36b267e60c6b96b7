"""The template in the real ComfyUI: the command line's frames, progress, previews, cancel, nothing done twice."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server import ComfyServer
from template import Prompt, node_of

from pab_core.video_io import read_mp4, write_mp4


def change(graph: Prompt, class_type: str, /, **inputs: object) -> None:
    graph[node_of(graph, class_type)]["inputs"].update(inputs)


def run_frames(server: ComfyServer, prompt: Prompt) -> tuple[str, np.ndarray]:
    """Runs a graph and fetches the decoded frames without loss: the run's id, and uint8 [T, H, W, 3]."""
    decoded = [node_of(prompt, "PABDecode"), 0]
    saving = {"class_type": "SaveImage", "inputs": {"images": decoded, "filename_prefix": "frames"}}
    prompt_id, outputs = server.run({**prompt, "frames": saving})
    files = outputs["frames"]["images"]
    return prompt_id, np.stack([np.asarray(Image.open(io.BytesIO(server.output(file)))) for file in files])


def steps_shown(server: ComfyServer, prompt_id: str, node: str) -> list[int]:
    return [event.data["value"] for event in server.of(prompt_id, "progress") if event.data["node"] == node]


@pytest.fixture
def short(template: Prompt) -> Prompt:
    """The template, for a small and short clip of eight steps."""
    change(template, "PABSampler", steps=8, width=96, height=64, frames=17)
    return template


def test_the_template_makes_the_command_lines_frames(server: ComfyServer, template: Prompt, tmp_path: Path) -> None:
    # The command line of the packed plugin, in ComfyUI's environment: another release of torch or transformers rounds
    # otherwise, and a rounded frame is not an equal one.
    sampler = node_of(template, "PABSampler")
    given = template[sampler]["inputs"]
    options = {
        "model": template[node_of(template, "PABLoadModel")]["inputs"]["model"],
        "policy": template[node_of(template, "PABBroadcast")]["inputs"]["policy"],
        "seed": given["seed"],
        "steps": given["steps"],
        "guidance": given["guidance"],
        "frames": given["frames"],
        "size": f"{given['width']}x{given['height']}",
        "output": tmp_path / "command_line.mp4",
    }
    prompt = template[node_of(template, "PABTextEncode")]["inputs"]["prompt"]
    command = [str(server.host.python), "-c", "from pab_core.cli import main; main()", "generate", prompt]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run(command, cwd=server.base / "custom_nodes" / "comfyui-pab", check=True)
    from_command_line, fps = read_mp4(options["output"])

    prompt_id, frames = run_frames(server, template)

    assert frames.shape == (given["frames"], given["height"], given["width"], 3)
    # An mp4 loses a little; but the same frames through the same writer lose the same.
    written, _ = read_mp4(write_mp4(tmp_path / "nodes.mp4", frames, fps, {}))
    np.testing.assert_array_equal(written, from_command_line)

    assert steps_shown(server, prompt_id, sampler) == list(range(1, given["steps"] + 1))
    previews = [e.picture for e in server.of(prompt_id, "preview") if e.data["node_id"] == sampler]
    assert len(previews) == given["steps"]
    assert Image.open(io.BytesIO(previews[-1])).size == (512, 341)

    (video,) = server.history(prompt_id)["outputs"][node_of(template, "SaveVideo")]["images"]
    saved = tmp_path / "saved.mp4"
    saved.write_bytes(server.output(video))
    played, saved_fps = read_mp4(saved)
    assert played.shape == frames.shape
    assert saved_fps == fps
    assert np.abs(played.astype(int) - frames).mean() < 16  # the same pictures, though the host compresses harder


def test_a_cancelled_run_ends_within_a_step_and_leaves_nothing_behind(server: ComfyServer, short: Prompt) -> None:
    sampler = node_of(short, "PABSampler")
    change(short, "PABSampler", seed=11)
    _, before = run_frames(server, short)

    change(short, "PABSampler", seed=12, steps=40)  # from step 12 on, pab246 keeps results for reuse
    cancelled = server.queue(short)
    server.wait_for(
        lambda e: e.kind == "progress" and e.data["prompt_id"] == cancelled and e.data["value"] >= 15, timeout=120
    )
    server.interrupt()
    shown = steps_shown(server, cancelled, sampler)[-1]
    assert server.wait(cancelled).kind == "execution_interrupted"
    assert steps_shown(server, cancelled, sampler)[-1] <= shown + 2

    change(short, "PABSampler", seed=11, steps=8)
    again, after = run_frames(server, short)
    # The same modules ran again: the model stayed loaded, the sampler's own result did not.
    assert sampler in server.executed(again)
    assert node_of(short, "PABLoadModel") not in server.executed(again)
    np.testing.assert_array_equal(before, after)


def test_only_what_changed_runs_again(server: ComfyServer, short: Prompt) -> None:
    change(short, "PABSampler", seed=21)
    server.run(short)
    unchanged, _ = server.run(short)
    assert server.executed(unchanged) == set()

    change(short, "PABBroadcast", spatial_range=3)
    changed, _ = server.run(short)
    after = ("PABBroadcast", "PABSampler", "PABDecode", "SaveVideo")
    assert server.executed(changed) == {node_of(short, name) for name in after}


def test_all_ranges_at_1_without_mlp_is_off(server: ComfyServer, short: Prompt) -> None:
    change(short, "PABSampler", seed=31)
    _, accelerated = run_frames(server, short)
    change(short, "PABBroadcast", spatial_range=1, temporal_range=1, cross_range=1, mlp=False)
    _, ones = run_frames(server, short)
    change(short, "PABBroadcast", policy="off", spatial_range=0, temporal_range=0, cross_range=0, mlp=True)
    _, off = run_frames(server, short)
    del short[node_of(short, "PABSampler")]["inputs"]["policy"]
    _, open_input = run_frames(server, short)
    np.testing.assert_array_equal(ones, off)
    np.testing.assert_array_equal(open_input, off)
    assert (accelerated != off).any()


def test_a_checkpoint_folder_in_models_pab_is_offered_and_runs(server: ComfyServer, template: Prompt) -> None:
    model = server.object_info("PABLoadModel")["PABLoadModel"]["input"]["required"]["model"]
    assert model[1]["options"] == ["demo", "demo-latte", "demo-plan", "tiny"]
    change(template, "PABLoadModel", model="tiny")
    change(template, "PABTextEncode", prompt="a red ball")
    change(template, "PABSampler", steps=0, guidance=0, width=0, height=0, frames=0)  # the model's own
    prompt_id, frames = run_frames(server, template)
    assert frames.shape == (17, 32, 48, 3)
    assert steps_shown(server, prompt_id, node_of(template, "PABSampler"))[-1] == 10


def test_free_releases_the_model(server: ComfyServer, short: Prompt) -> None:
    loader = node_of(short, "PABLoadModel")
    server.run(short)
    server.post("/free", {"unload_models": True, "free_memory": True})
    # The host frees between two runs, so at the latest after the next one.
    runs = [server.run(short)[0] for _ in range(2)]
    assert any(loader in server.executed(run) for run in runs)


@pytest.mark.parametrize(
    ("class_type", "inputs", "said"),
    [
        ("PABBroadcast", {"window_start": 0.8, "window_stop": 0.3}, "0.8:0.3 is reversed"),
        ("PABSampler", {"width": 100}, "Near are 96 and 104"),
        ("PABSampler", {"frames": 20}, "Near are 17 and 34"),
        ("PABTextEncode", {"prompt": "  "}, "The prompt is empty"),
    ],
)
def test_a_mistake_is_answered_at_its_node_in_a_sentence(
    server: ComfyServer, short: Prompt, class_type: str, inputs: dict[str, object], said: str
) -> None:
    change(short, class_type, **inputs)
    end = server.wait(server.queue(short))
    assert end.kind == "execution_error"
    assert end.data["node_id"] == node_of(short, class_type)
    assert end.data["exception_type"].endswith("PabError")
    assert said in end.data["exception_message"]


def test_latents_of_another_model_are_refused(server: ComfyServer, short: Prompt) -> None:
    short["foreign"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    change(short, "PABDecode", latent=["foreign", 0])
    end = server.wait(server.queue(short))
    assert end.kind == "execution_error"
    assert "do not come from the demo model" in end.data["exception_message"]


def test_an_over_long_prompt_is_cut_and_the_node_says_where(server: ComfyServer, short: Prompt) -> None:
    change(short, "PABTextEncode", prompt="a red ball rolls left over a green floor " * 10)
    server.run(short)
    told = [e.data for e in server.events if e.kind == "text"]
    assert told[-1]["node_id"] == node_of(short, "PABTextEncode")
    assert "was cut before" in told[-1]["text"]
