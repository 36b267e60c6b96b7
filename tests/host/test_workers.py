"""Worker Pool (PAB) in the real ComfyUI: the same frames, and processes that come and go as they should."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from graphs import refused, with_node
from packed import packed_plugin
from PIL import Image
from provision import Host
from server import ComfyServer
from template import Prompt, load_template, node_of, to_prompt
from test_text_to_video import change, run_frames, steps_shown

STARTING = 60.0  # seconds


def on_pool(graph: Prompt, devices: str = "cpu*2", method: str = "dsp", pool: str = "own") -> Prompt:
    """The graph with a pool for its sampler and its decoder."""
    graph = with_node(graph, "PABWorkers", devices=devices, method=method, idle=10.0, pool=pool)
    for name in ("PABSampler", "PABDecode"):
        change(graph, name, workers=["PABWorkers", 0])
    return graph


def workers_of(server: ComfyServer) -> list[psutil.Process]:
    assert server.process is not None
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "pab_core.parallel.pool.worker" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """Empty once it has ended, also where nobody has asked how yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def until(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def assert_close(frames: np.ndarray, others: np.ndarray) -> None:
    """Equal, but where sums taken in another order are rounded to the next of 256 values."""
    assert frames.shape == others.shape
    difference = np.abs(frames.astype(int) - others)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_a_pool_makes_the_frames_of_one_device_and_stays(server: ComfyServer, short: Prompt) -> None:
    _, alone = run_frames(server, short)
    graph = on_pool(short)
    prompt_id, together = run_frames(server, graph)
    assert_close(alone, together)
    sampler = node_of(graph, "PABSampler")
    steps = steps_shown(server, prompt_id, sampler)
    assert steps == sorted(set(steps))  # a newer host leaves out some that come fast
    assert (steps[0], steps[-1]) == (1, 8)
    previews = [e.picture for e in server.of(prompt_id, "preview") if e.data["node_id"] == sampler]
    assert previews
    assert max(Image.open(io.BytesIO(previews[-1])).size) == 512
    (measured,) = server.history(prompt_id)["outputs"][sampler]["pab_measured"]
    assert measured["policy"] == "pab246"
    assert measured["seconds"] > 0
    assert max(measured["reused"].values()) > 0
    before = {process.pid for process in workers_of(server)}
    assert len(before) == 2
    change(graph, "PABSampler", seed=6)
    again, other = run_frames(server, graph)
    assert "PABWorkers" not in server.executed(again)
    assert {process.pid for process in workers_of(server)} == before
    assert (other != together).any()


def test_a_run_on_the_pool_is_cancelled_within_a_step(server: ComfyServer, short: Prompt) -> None:
    graph = on_pool(short)
    sampler = node_of(graph, "PABSampler")
    change(graph, "PABSampler", seed=12, steps=200)
    cancelled = server.queue(graph)
    server.wait_for(
        lambda e: e.kind == "progress" and e.data["prompt_id"] == cancelled and e.data["value"] >= 15, timeout=120
    )
    server.interrupt()
    shown = steps_shown(server, cancelled, sampler)[-1]
    assert server.wait(cancelled).kind == "execution_interrupted"
    assert steps_shown(server, cancelled, sampler)[-1] <= shown + 2
    before = {process.pid for process in workers_of(server)}
    change(graph, "PABSampler", seed=5, steps=8)
    _, together = run_frames(server, graph)
    assert {process.pid for process in workers_of(server)} == before
    for name in ("PABSampler", "PABDecode"):
        del graph[node_of(graph, name)]["inputs"]["workers"]
    _, alone = run_frames(server, graph)
    assert_close(alone, together)


def test_freeing_memory_ends_the_processes_and_the_next_run_starts_them(server: ComfyServer, short: Prompt) -> None:
    graph = on_pool(short)
    _, first = run_frames(server, graph)
    # The models are unloaded, and the results of nodes stay: the same pool is asked again.
    server.post("/free", {"unload_models": True, "free_memory": False})
    assert until(lambda: not workers_of(server))
    change(graph, "PABSampler", seed=7)
    again, _ = run_frames(server, graph)
    assert "PABWorkers" not in server.executed(again)
    assert len(workers_of(server)) == 2
    # Here the results go, and with them the pool.
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert until(lambda: not workers_of(server))
    change(graph, "PABSampler", seed=5)
    _, second = run_frames(server, graph)
    np.testing.assert_array_equal(first, second)


def test_a_worker_that_dies_is_made_good(server: ComfyServer, short: Prompt) -> None:
    graph = on_pool(short)
    _, whole = run_frames(server, graph)
    change(graph, "PABSampler", seed=13, steps=60)
    hurt = server.queue(graph)
    server.wait_for(lambda e: e.kind == "progress" and e.data["prompt_id"] == hurt and e.data["value"] >= 10)
    workers_of(server)[0].kill()
    assert server.wait(hurt).kind == "execution_success"
    told = [e.data["text"] for e in server.events if e.kind == "text"]
    assert any("A worker was lost" in text for text in told)
    # Between two runs it hardly shows.
    workers_of(server)[1].kill()
    change(graph, "PABSampler", seed=5, steps=8)
    again, after = run_frames(server, graph)
    assert node_of(graph, "PABSampler") in server.executed(again)
    assert "PABWorkers" not in server.executed(again)
    np.testing.assert_array_equal(whole, after)


def test_a_method_is_chosen_by_time_and_one_device_is_told_of(server: ComfyServer, short: Prompt) -> None:
    _, alone = run_frames(server, short)
    _, together = run_frames(server, on_pool(short, method="auto"))
    assert_close(alone, together)
    assert any("time a few steps" in event.data["text"] for event in server.events if event.kind == "text")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"devices": "gpu7"}, "'gpu7' is no device"),
        ({"devices": "0,0"}, "is listed twice"),
        ({"devices": "cpu*1000"}, "1 to 64 are possible"),
        ({"devices": "cuda:9"}, "There is no cuda:9"),
        ({"method": "magic"}, "'magic'"),
        ({"idle": -1.0}, "value_smaller_than_min"),
        ({"pool": "elsewhere"}, "'elsewhere'"),
        ({"pool": "background"}, "pab workers start"),
    ],
)
def test_a_pool_that_cannot_be_is_told_in_words(
    server: ComfyServer, short: Prompt, inputs: dict[str, object], said: str
) -> None:
    assert said in refused(server, on_pool(short), "PABWorkers", **inputs)


def test_what_a_pool_cannot_make_is_told_in_words(server: ComfyServer, short: Prompt) -> None:
    graph = on_pool(short, devices="cpu*3", method="cfg")
    assert "cannot be halved" in refused(server, graph, "PABSampler", seed=5)


def test_a_pool_goes_on_from_given_frames(server: ComfyServer, short: Prompt) -> None:
    graph = with_node(short, "PABGiven", edit=0.0, loop=False, total_frames=51)
    change(graph, "PABSampler", given=["PABGiven", 0], frames=34)
    _, alone = run_frames(server, graph)
    assert len(alone) == 51
    chained = on_pool(graph)
    prompt_id, together = run_frames(server, chained)
    assert_close(alone, together)
    # The bar goes on from clip to clip.
    steps = steps_shown(server, prompt_id, node_of(chained, "PABSampler"))
    assert steps == sorted(set(steps))
    assert steps[-1] == 16


def test_the_pool_in_the_background_serves_the_nodes(server: ComfyServer, short: Prompt) -> None:
    _, alone = run_frames(server, short)
    command = [str(server.host.python), "-c", "from pab_core.cli import main; main()", "workers"]
    folder = server.base / "custom_nodes" / "comfyui-pab"
    environment = psutil.Process(server.process.pid).environ() if server.process else {}
    subprocess.run([*command, "start", "--devices", "cpu"], cwd=folder, env=environment, check=True, timeout=120)
    try:
        _, there = run_frames(server, on_pool(short, pool="background"))
    finally:
        subprocess.run([*command, "stop"], cwd=folder, env=environment, check=True, timeout=120)
    assert_close(alone, there)
    # It has gone since.
    graph = on_pool(short, pool="background")
    assert "pab workers start" in refused(server, graph, "PABSampler", seed=99)


def test_the_pool_ends_with_its_host(host: Host, tmp_path: Path) -> None:
    with ComfyServer(host, tmp_path / "host", packed_plugin(tmp_path / "packed")) as mine:
        graph = on_pool(to_prompt(load_template("pab_text_to_video"), mine.object_info()))
        change(graph, "PABSampler", steps=200, width=96, height=64, frames=17)
        running = mine.queue(graph)
        mine.wait_for(lambda e: e.kind == "progress" and e.data["prompt_id"] == running and e.data["value"] >= 5)
        workers = workers_of(mine)
        assert len(workers) == 2
        assert mine.process is not None
        mine.process.kill()
        assert until(lambda: not any(map(command_of, workers)), 10)
