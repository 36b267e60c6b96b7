"""ComfyUI's own page in a real browser, as it has always been and with Nodes 2.0: what the tests of pages share."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

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

    def overlapping(self) -> list[str]:
        """The pairs of nodes that lie on each other, as they are drawn."""
        boxes: dict[str, list[float]] = self.page.evaluate(
            """(vue) => {
                const found = {};
                for (const node of window.app.graph._nodes) {
                    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
                    const scale = window.app.canvas.ds.scale;
                    const title = window.LiteGraph.NODE_TITLE_HEIGHT;
                    found[`${node.type} ${node.id}`] = vue
                        ? [drawn.left, drawn.top, drawn.right, drawn.bottom].map((place) => place / scale)
                        : [node.pos[0], node.pos[1] - title, node.pos[0] + node.size[0], node.pos[1] + node.size[1]];
                }
                return found;
            }""",
            self.mode == "vue",
        )
        return [
            f"{one} on {other}"
            for (one, a), (other, b) in combinations(boxes.items(), 2)
            if min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1
        ]

    def wait_until_idle(self) -> None:
        """The runs are the page's own, of which the test's websocket is not told."""
        for _ in range(120):
            queue = self.server.get("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return
            self.page.wait_for_timeout(500)
        raise AssertionError("The queue does not become empty.")

    def cancel(self) -> None:
        """Ends the run that is going on, and looks whether it ended so."""
        self.page.wait_for_function(
            "document.querySelector('button[aria-label=\"Cancel current run\"]')?.disabled === false"
        )
        self.page.wait_for_timeout(1500)
        self.page.get_by_role("button", name="Cancel current run").click()
        self.wait_until_idle()
        last = list(self.server.get("/history").values())[-1]
        assert last["status"]["status_str"] == "error"
        assert "execution_interrupted" in [kind for kind, _ in last["status"]["messages"]]

    def run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def graph(self) -> dict[str, Any]:
        """The saved form: what nodes are and hold, and their links."""
        saved = self.page.evaluate("() => window.app.graph.serialize()")
        nodes = {node["id"]: (node["type"], node.get("widgets_values")) for node in saved["nodes"]}
        return {"nodes": nodes, "links": saved["links"]}


@contextmanager
def opened_page(server: ComfyServer, browser: Browser, mode: str) -> Iterator[ComfyPage]:
    """The page, classic or vue; an error of a script of ours fails the test in the end."""
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
