"""The nodes on ComfyUI's own page in a real browser, as it has always been and with Nodes 2.0."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from comfy_page import NODE, READY, ComfyPage, opened_page
from playwright.sync_api import Browser
from server import ComfyServer
from template import load_template
from test_workers import until, workers_of


@pytest.fixture(params=["classic", "vue"])
def comfy(request: pytest.FixtureRequest, server: ComfyServer, browser: Browser) -> Iterator[ComfyPage]:
    with opened_page(server, browser, request.param) as page:
        yield page


def test_from_the_template_to_the_video(comfy: ComfyPage) -> None:
    page = comfy.page
    comfy.open_template("pab_text_to_video", "PABBroadcast")
    picture = page.locator("svg.pab-schedule")
    picture.wait_for()

    # Drag a slider: the picture follows.
    before = picture.inner_html()
    comfy.drag("PABBroadcast", "cross_range", 0.8)
    assert comfy.value("PABBroadcast", "cross_range") >= 8
    page.wait_for_function("(before) => document.querySelector('svg.pab-schedule').innerHTML !== before", arg=before)
    comfy.shot("dragged")

    # Run: previews, what was measured, and a video that plays.
    seed = 100 + len(comfy.mode)  # of its own, or the other page's result would be shown
    comfy.set("PABSampler", steps=12, width=96, height=64, frames=17, seed=seed)
    sampler = page.evaluate(f"() => {NODE.format('PABSampler')}.id")
    comfy.run()
    page.wait_for_function(f"Boolean(window.app.nodePreviewImages?.['{sampler}']?.length)")
    page.locator(".pab-measured").wait_for()
    assert page.locator(".pab-measured").inner_text().startswith("measured: ")
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.evaluate("() => { const video = document.querySelector('video'); video.muted = true; return video.play(); }")
    page.wait_for_function("document.querySelector('video').currentTime > 0.1")
    assert page.evaluate("() => document.querySelector('video').videoWidth") == 96
    comfy.shot("ran")
    assert comfy.overlapping() == []

    # Off at the same size: the broadcast node then knows the speed-up.
    comfy.set("PABBroadcast", policy="off", cross_range=0)
    comfy.run()
    page.locator(".pab-measured", has_text="with off").wait_for()
    comfy.set("PABBroadcast", policy="pab579")
    comfy.run()
    page.locator(".pab-measured", has_text="as fast as off").wait_for()
    comfy.shot("measured")

    # Cancel: a long run ends.
    comfy.set("PABSampler", steps=1000, seed=seed + 1)
    comfy.run()
    comfy.cancel()

    # Reload: the graph is as it was.
    graph = comfy.graph()
    page.wait_for_timeout(1500)  # it keeps drafts a moment after a change
    page.reload()
    page.wait_for_function(f"{READY} && Boolean({NODE.format('PABBroadcast')})")
    page.locator("svg.pab-schedule").wait_for()
    assert comfy.graph() == graph
    assert comfy.value("PABSampler", "steps") == 1000
    comfy.shot("reloaded")


def test_a_dropped_video_opens_its_workflow(comfy: ComfyPage) -> None:
    page = comfy.page
    comfy.open_template("pab_off_against_on", "PABCompare")
    page.evaluate(
        """() => {
            for (const node of window.app.graph._nodes.filter((node) => node.type === "PABSampler")) {
                const values = { steps: 8, width: 96, height: 64, frames: 17 };
                for (const widget of node.widgets) widget.value = values[widget.name] ?? widget.value;
            }
        }"""
    )
    comfy.set("PABBroadcast", spatial_range=3)
    comfy.set("PABSaveVideo", filename_prefix=f"video/{comfy.mode}")
    graph = comfy.graph()
    comfy.run()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    comfy.shot("compared")
    assert comfy.overlapping() == []
    (saved,) = (comfy.server.base / "output" / "video").glob(f"{comfy.mode}_*.mp4")
    page.evaluate("() => window.app.graph.clear()")
    page.evaluate(
        """async ([bytes]) => {
            const data = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
            await window.app.handleFile(new File([data], "saved.mp4", { type: "video/mp4" }));
        }""",
        [base64.b64encode(saved.read_bytes()).decode()],
    )
    page.wait_for_function(f"Boolean({NODE.format('PABCompare')})")
    assert comfy.graph() == graph


def test_help_is_shown_on_the_page(comfy: ComfyPage) -> None:
    page = comfy.page
    comfy.open_template("pab_text_to_video", "PABBroadcast")
    page.evaluate(f"() => window.app.canvas.selectNode({NODE.format('PABBroadcast')})")
    page.get_by_test_id("info-button").first.click()
    page.get_by_text("filled cells are computed, empty ones reused").wait_for()
    comfy.shot("help")


def test_a_workflow_of_the_first_version_opens_with_defaults(comfy: ComfyPage) -> None:
    page = comfy.page
    saved = load_template("pab_text_to_video")
    gone = {"PABLoadModel": 5, "PABTextEncode": 4, "PABBroadcast": 1}  # widgets that came later
    for node in saved["nodes"]:
        if count := gone.get(node["type"]):
            node["widgets_values"] = node["widgets_values"][: -count or None]
    page.evaluate("(workflow) => window.app.loadGraphData(workflow)", saved)
    page.wait_for_function(f"Boolean({NODE.format('PABBroadcast')})")
    assert comfy.value("PABBroadcast", "kept") == "plain"
    assert comfy.value("PABTextEncode", "prompt") == "a red ball rolls left over a green floor"
    assert comfy.value("PABTextEncode", "aesthetic") == 6.5
    assert comfy.value("PABLoadModel", "text_encoder") == "the model's own"
    assert comfy.value("PABLoadModel", "speed") == "auto"
    assert comfy.value("PABLoadModel", "model") == "demo"
    comfy.set("PABSampler", steps=4, width=96, height=64, frames=17, seed=300 + len(comfy.mode))
    comfy.run()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")


def test_a_pool_of_workers_on_the_page(comfy: ComfyPage) -> None:
    page = comfy.page
    comfy.open_template("pab_worker_pool", "PABWorkers")
    comfy.shot("pool_opened")
    seed = 200 + len(comfy.mode)
    comfy.set("PABWorkers", method="dsp")
    comfy.set("PABSampler", steps=12, width=96, height=64, frames=17, seed=seed)
    try:
        comfy.run()
        if comfy.mode == "classic":  # Nodes 2.0 of frontend 1.32 look no more at the widgets of a node with a seed then
            page.get_by_text("The workers load the model").first.wait_for()
        sampler = page.evaluate(f"() => {NODE.format('PABSampler')}.id")
        page.wait_for_function(f"Boolean(window.app.nodePreviewImages?.['{sampler}']?.length)")
        page.locator(".pab-measured").wait_for()
        page.wait_for_function("document.querySelector('video')?.readyState >= 2")
        assert page.get_by_text("The workers load the model").count() == 0  # it is no longer so
        assert page.evaluate("() => document.querySelector('video').videoWidth") == 96
        comfy.shot("pool_ran")
        assert comfy.overlapping() == []
        before = {process.pid for process in workers_of(comfy.server)}
        assert len(before) == 2
        comfy.set("PABSampler", steps=1000, seed=seed + 1)
        comfy.run()
        comfy.cancel()
        assert {process.pid for process in workers_of(comfy.server)} == before
    finally:
        comfy.server.post("/free", {"unload_models": True, "free_memory": True})
    assert until(lambda: not workers_of(comfy.server))


def test_every_template_opens_with_nothing_on_each_other(comfy: ComfyPage) -> None:
    page = comfy.page
    for name in sorted(comfy.server.get("/workflow_templates")["comfyui-pab"]):
        workflow = comfy.server.get(f"/api/workflow_templates/comfyui-pab/{name}.json")
        page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
        page.wait_for_function("(count) => window.app.graph._nodes.length === count", arg=len(workflow["nodes"]))
        assert page.evaluate(
            "() => window.app.graph._nodes.every((node) => window.LiteGraph.registered_node_types[node.type])"
        )
        if any(node["type"] == "PABBroadcast" for node in workflow["nodes"]):
            page.locator("svg.pab-schedule").first.wait_for(state="attached")
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.wait_for_timeout(1000)  # it moves there
        comfy.shot(f"template_{name}")
        assert comfy.overlapping() == [], name
    assert page.locator(".p-toast-message").all_inner_texts() == []  # such as of a workflow that is not well formed
