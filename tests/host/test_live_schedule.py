"""The picture on the broadcast node: the route behind it, and the node on the real page in a real browser."""

from __future__ import annotations

import http.client
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route
from server import ComfyServer
from template import load_template

SHOTS = Path(__file__).resolve().parents[2] / ".screenshots"  # for people to look at; not in the repository


def ask(server: ComfyServer, body: bytes | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/pab/schedule", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_route_tells_what_the_settings_mean(server: ComfyServer) -> None:
    status, plain = ask(server, {"policy": "pab246"})
    assert status == 200
    assert plain["svg"].startswith("<svg")
    assert plain["steps"] == 30
    assert plain["reused"] == {"spatial": 0.3, "temporal": 0.4333, "cross": 0.4667, "mlp": 0.04}
    assert 0.1 < plain["saving"] < 0.5
    _, wider = ask(server, {"policy": "pab246", "cross_range": 9})
    assert wider["saving"] > plain["saving"]
    assert wider["svg"] != plain["svg"]
    _, released = ask(server, {"model": "open-sora", "policy": "pab579", "steps": 20})
    assert (released["model"], released["steps"]) == ("Open-Sora 1.2", 20)
    assert released["curves"] is None
    # The demo models come with curves, one a kind, recorded elsewhere; others have none until they are calibrated.
    _, latte = ask(server, {"model": "demo-latte", "policy": "pab235"})
    assert latte["curves"].count("<polyline") == len(latte["reused"])
    assert "as it comes with the model: 16 clips on one NVIDIA H200" in latte["curves"]
    _, calibrated = ask(server, {"policy": "calibrated"})
    assert len(set(calibrated["reused"].values())) == 1
    assert calibrated["saving"] > 0.2
    _, off = ask(server, {"policy": "off"})
    assert off["saving"] == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"policy": "pab24"}, "There is no policy named"),
        ({"policy": "calibrated", "cross_range": 4}, "has no ranges or window to change"),
        ({"model": "latte", "policy": "calibrated"}, "No schedule has been calibrated"),
        ({"spatial_range": -1}, "spatial"),
        ({"spatial_range": "many"}, "not a whole number"),
        ({"window_start": 0.9, "window_stop": 0.1}, "window"),
        ({"window_start": 0.99, "window_stop": 1.0}, "holds none of the run's 30 steps"),
        ({"model": "../../etc/passwd"}, "not in models/pab"),
        ({"frames": 20}, "20 frames do not fit"),
        ({"steps": 1e99}, "too large"),
        ({"steps": 10**400}, "too large"),
        ({"steps": float("nan")}, ""),
        ({"window_start": 10**400}, "no fraction of the run"),
        ({"window_stop": float("nan")}, "no fraction of the run"),
        (b"{", "no valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"x" * 70000, "too long"),
    ],
)
def test_the_route_answers_nonsense_in_words(server: ComfyServer, body: Any, words: str) -> None:
    status, answer = ask(server, body)
    assert status == 400
    assert words in answer["error"]
    assert "Traceback" not in answer["error"]


def test_a_long_body_is_refused_where_its_length_is_not_told(server: ComfyServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps({"policy": "pab246", "more": "x" * 200_000}).encode()
    parts = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    connection.request("POST", "/pab/schedule", parts, {"Content-Type": "application/json"}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 400
    assert "too long" in json.load(answer)["error"]


@pytest.fixture
def page(server: ComfyServer, browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1700, "height": 1000})
    page.goto(server.url)
    page.wait_for_function("Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.PABBroadcast)")
    page.wait_for_timeout(1000)  # the page opens a workflow of its own first
    page.evaluate("workflow => window.app.loadGraphData(workflow)", load_template("pab_text_to_video"))
    yield page
    page.close()


def test_the_node_shows_the_schedule_and_follows_its_sliders(page: Page) -> None:
    picture = page.locator("svg.pab-schedule")
    picture.wait_for(timeout=20_000)
    before = picture.inner_html()
    assert "saves 23 % of the arithmetic" in page.locator("p", has_text="of the arithmetic").inner_text()
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "comfyui_schedule.png")
    page.evaluate(
        """() => {
            const node = window.app.graph._nodes.find((node) => node.type === "PABBroadcast");
            const slider = node.widgets.find((widget) => widget.name === "cross_range");
            slider.value = 9;
            slider.callback(9);
        }"""
    )
    page.wait_for_function(
        "before => document.querySelector('svg.pab-schedule')?.innerHTML !== before", arg=before, timeout=20_000
    )
    # A change on another node counts too: the steps of the sampler that the policy goes to.
    page.evaluate(
        """() => {
            const node = window.app.graph._nodes.find((node) => node.type === "PABSampler");
            node.widgets.find((widget) => widget.name === "steps").value = 12;
        }"""
    )
    page.wait_for_function("document.querySelectorAll('svg.pab-schedule [data-kind=spatial] rect').length < 20")
    # What cannot be is said on the node, in words.
    page.evaluate(
        """() => {
            const node = window.app.graph._nodes.find((node) => node.type === "PABSampler");
            node.widgets.find((widget) => widget.name === "frames").value = 20;
        }"""
    )
    page.get_by_role("alert").filter(has_text="20 frames do not fit").wait_for(timeout=20_000)
    page.screenshot(path=SHOTS / "comfyui_error.png")


def test_a_late_answer_is_not_shown_for_newer_settings(page: Page) -> None:
    page.locator("svg.pab-schedule").wait_for(timeout=20_000)
    held: list[Route] = []

    def hold(route: Route) -> None:
        asked = json.loads(route.request.post_data or "{}")
        held.append(route) if asked["frames"] == 20 else route.continue_()

    def set_sampler(**values: int) -> None:
        page.evaluate(
            """values => {
                const node = window.app.graph._nodes.find((node) => node.type === "PABSampler");
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((widget) => widget.name === name).value = value;
            }""",
            values,
        )

    page.route("**/pab/schedule", hold)
    with page.expect_request("**/pab/schedule"):
        set_sampler(frames=20)  # which does not fit the model
    set_sampler(frames=17, steps=12)
    page.wait_for_function("document.querySelectorAll('svg.pab-schedule [data-kind=spatial] rect').length < 20")
    with page.expect_response("**/pab/schedule") as late:
        held[0].continue_()
    assert late.value.status == 400
    page.wait_for_timeout(500)
    assert page.get_by_role("alert").count() == 0
    assert page.locator("svg.pab-schedule").is_visible()


def test_the_picture_is_no_part_of_the_saved_workflow(page: Page) -> None:
    page.locator("svg.pab-schedule").wait_for(timeout=20_000)
    saved = page.evaluate("() => window.app.graph.serialize()")
    (node,) = (node for node in saved["nodes"] if node["type"] == "PABBroadcast")
    assert node["widgets_values"][:7] == ["pab246", 0, 0, 0, True, 0, 0]
    assert not any("svg" in str(value) for value in node["widgets_values"])


def test_the_route_reads_no_file_that_it_is_told(server: ComfyServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"pab_schedule": 1, "name": "secret"}')
    for policy in (str(secret), "../secret.json", "x\\..\\secret"):
        status, answer = ask(server, {"policy": policy})
        assert status == 400
        assert "the path of a file" in answer["error"]
    for model in (str(tmp_path), "..", "../..", "/", "demo/../demo"):
        status, answer = ask(server, {"model": model})
        assert status == 400
        assert "not in models/pab" in answer["error"]


@pytest.mark.parametrize("seed", range(4))
def test_the_route_survives_anything(server: ComfyServer, seed: int) -> None:
    chance = random.Random(seed)
    names = ["policy", "model", "kept", "mlp", "steps", "width", "height", "frames", "spatial_range",
             "temporal_range", "cross_range", "window_start", "window_stop", "", "svg"]  # fmt: skip
    values = [None, True, -1, 0, 1, 3, 2.5, 1e308, -0.0, 10**30, "", "off", "pab999", "pab0-0-0", "teacache-1",
              "steps0", "steps9999", "scores246", "demo-latte", "\u0000", "汉字", "a" * 5000, [],
              {}, [[]], {"a": {}}]  # fmt: skip
    for _ in range(40):
        body = {chance.choice(names): chance.choice(values) for _ in range(chance.randint(0, 5))}
        status, answer = ask(server, body)
        assert status in (200, 400), (body, answer)
        assert status == 200 or (answer["error"] and "Traceback" not in answer["error"]), body
