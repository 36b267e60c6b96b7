"""The nodes on ComfyUI's own page in a real browser, as it has always been and with Nodes 2.0."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from server import ComfyServer

SHOTS = Path(__file__).resolve().parents[2] / ".screenshots"  # for people to look at; not in the repository
NODE = "window.app.graph._nodes.find((node) => node.type === '{}')"
READY = "Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.PABBroadcast)"


class ComfyPage:
    """The page with a template opened."""

    def __init__(self, page: Page, server: ComfyServer, mode: str):
        self.page, self.server, self.mode = page, server, mode

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS / f"page_{self.mode}_{name}.png")

    def open(self) -> None:
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(1500)  # it opens a workflow of its own first

    def open_template(self, name: str, last_node: str) -> None:
        """From the dialog, by its picture."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text("comfyui-pab").first.click()
        card = self.page.get_by_text(name, exact=True).first
        card.wait_for()
        self.shot("templates")
        card.click()
        self.page.wait_for_function(f"Boolean({NODE.format(last_node)})")

    def set(self, class_type: str, **widgets: Any) -> None:
        self.page.evaluate(
            f"""(values) => {{
                for (const [name, value] of Object.entries(values)) {{
                    {NODE.format(class_type)}.widgets.find((widget) => widget.name === name).value = value;
                }}
            }}""",
            widgets,
        )

    def value(self, class_type: str, widget: str) -> Any:
        return self.page.evaluate(
            f"() => {NODE.format(class_type)}.widgets.find((widget) => widget.name === '{widget}').value"
        )

    def drag(self, class_type: str, widget: str, share: float) -> None:
        """Drags a slider with the mouse, from its left end to a share of its length."""
        if self.mode == "vue":
            name = self.page.evaluate(
                f"() => {NODE.format(class_type)}.widgets.filter((one) => one.type === 'slider')"
                f".findIndex((one) => one.name === '{widget}')"
            )
            node = self.page.evaluate(f"() => {NODE.format(class_type)}.id")
            thumb = self.page.locator(f'[data-node-id="{node}"] [role="slider"]').nth(name)
            box = thumb.bounding_box()
            track = thumb.locator("xpath=ancestor::*[@data-slot='slider']").last.bounding_box()
            assert box is not None
            assert track is not None
            left, right, y = track["x"], track["x"] + track["width"], box["y"] + box["height"] / 2
        else:
            left, right, y = self.page.evaluate(
                f"""() => {{
                    const node = {NODE.format(class_type)};
                    const own = node.widgets.find((widget) => widget.name === '{widget}');
                    const {{ offset, scale }} = window.app.canvas.ds;
                    const x = (place) => (node.pos[0] + place + offset[0]) * scale;
                    return [x(15), x(node.size[0] - 15), (node.pos[1] + own.last_y + 10 + offset[1]) * scale];
                }}"""
            )
        self.page.mouse.move(left + 4, y)
        self.page.mouse.down()
        self.page.mouse.move(left + (right - left) * share / 2, y, steps=4)
        self.page.mouse.move(left + (right - left) * share, y, steps=4)
        self.page.mouse.up()

    def run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def graph(self) -> dict[str, Any]:
        """The saved form: what nodes are and hold, and their links."""
        saved = self.page.evaluate("() => window.app.graph.serialize()")
        nodes = {node["id"]: (node["type"], node.get("widgets_values")) for node in saved["nodes"]}
        return {"nodes": nodes, "links": saved["links"]}


@pytest.fixture(params=["classic", "vue"])
def comfy(request: pytest.FixtureRequest, server: ComfyServer, browser: Browser) -> Iterator[ComfyPage]:
    mode = request.param
    settings = {"Comfy.VueNodes.Enabled": mode == "vue", "Comfy.TutorialCompleted": True}
    body = json.dumps(settings).encode()
    answer = urllib.request.Request(f"{server.url}/settings", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(answer).close()
    page = browser.new_page(viewport={"width": 1900, "height": 1080})
    page.set_default_timeout(90_000)
    failed: list[str] = []
    page.on("pageerror", lambda error: failed.append(f"{error.message}\n{error.stack}"))
    made = ComfyPage(page, server, mode)
    made.open()
    yield made
    page.close()
    assert not [error for error in failed if "comfyui-pab" in error]


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
    page.wait_for_function("document.querySelector('button[aria-label=\"Cancel current run\"]')?.disabled === false")
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Cancel current run").click()
    # The run is the page's own, of which the test's websocket is not told.
    for _ in range(60):
        queue = comfy.server.get("/queue")
        if not queue["queue_running"]:
            break
        page.wait_for_timeout(500)
    assert not comfy.server.get("/queue")["queue_running"]
    last = list(comfy.server.get("/history").values())[-1]
    assert last["status"]["status_str"] == "error"
    assert "execution_interrupted" in [kind for kind, _ in last["status"]["messages"]]

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
    comfy.open_template("pab_text_to_video", "PABBroadcast")
    saved = page.evaluate("() => window.app.graph.serialize()")
    gone = {"PABLoadModel": 4, "PABBroadcast": 1}
    for node in saved["nodes"]:
        if count := gone.get(node["type"]):
            node["widgets_values"] = node["widgets_values"][: -count or None]
    page.evaluate("(workflow) => window.app.loadGraphData(workflow)", saved)
    page.wait_for_function(f"Boolean({NODE.format('PABBroadcast')})")
    assert comfy.value("PABBroadcast", "kept") == "plain"
    assert comfy.value("PABLoadModel", "text_encoder") == "the model's own"
    assert comfy.value("PABLoadModel", "model") == "demo"
