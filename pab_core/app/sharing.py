"""A video's settings as a ComfyUI workflow of ours: the template with the values filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..broadcast import Window
from ..errors import PabError
from ..models.registry import ModelSpec
from .request import RANGES, ClipRequest, policy_name, preset_values

_TEMPLATE = "pab_text_to_video.json"
_PACKAGE = Path(__file__).resolve().parent.parent
# Beside the package in a checkout, inside it in a wheel.
_PLACES = (_PACKAGE.parent / "workflows", _PACKAGE / "workflows")


def workflow_for(request: ClipRequest, spec: ModelSpec) -> dict[str, Any]:
    """The workflow that makes this video in ComfyUI. PabError where the template is missing."""
    template = next((folder / _TEMPLATE for folder in _PLACES if (folder / _TEMPLATE).is_file()), None)
    if template is None:
        raise PabError(f"The template {_TEMPLATE} is missing from this installation; install the package anew.")
    graph = json.loads(template.read_text(encoding="utf-8"))
    high, wide = _pixels(request, spec)
    window = Window.parse(request.window) if request.window else None
    policy = policy_name(request.policy, spec.family)
    values: dict[str, dict[int, Any]] = {
        "PABLoadModel": {0: request.model},
        "PABTextEncode": {0: request.prompt, **({1: request.negative} if request.negative else {})},
        "PABBroadcast": {
            0: policy,
            **{1 + i: getattr(request, kind) or 0 for i, kind in enumerate(RANGES)},
            # The node's switch joins MLPs to ranges set by hand; a policy without them must keep it off.
            4: preset_values(request.policy, spec)["mlp"] if request.mlp is None else request.mlp,
            5: window.start if window else 0,
            6: window.stop if window else 0,
        },
        "PABSampler": {
            0: int(request.seed or 0),
            2: request.steps or spec.steps,
            3: float(spec.guidance if request.guidance is None else request.guidance),
            4: wide,
            5: high,
            6: _frames(request, spec),
        },
    }
    for node in graph["nodes"]:
        for place, value in values.get(node["type"], {}).items():
            widgets = node["widgets_values"]
            widgets[place : place + 1] = [value]  # one behind the last is appended
    _give_pictures(graph, {"first_frame": bool(request.picture), "last_frame": bool(request.last_picture)})
    return graph


def _give_pictures(graph: dict[str, Any], given: dict[str, bool]) -> None:
    """Adds what a video from pictures needs. Its files stay here: whoever opens it in ComfyUI chooses them there."""
    if not any(given.values()):
        return
    sampler = next(node for node in graph["nodes"] if node["type"] == "PABSampler")
    left, top = 40, 900
    condition = _node(graph, "PABGiven", [left + 380, top + 200], [340, 200], [0.0, False, 0], ("given", "PAB_GIVEN"))
    condition["inputs"] = [
        {"name": name, "type": kind, "link": None}
        for name, kind in (("first_frame", "IMAGE"), ("last_frame", "IMAGE"), ("video", "VIDEO"))
    ]
    for place, name in enumerate(given):
        if given[name]:
            file = f"{name.replace('_', '-')}.png"
            size, where = [340, 330], [left, top + 380 * place]
            picture = _node(graph, "LoadImage", where, size, [file, "image"], ("IMAGE", "IMAGE"), ("MASK", "MASK"))
            picture["title"] = f"{name.replace('_', ' ').capitalize()}: choose the picture"
            _link(graph, picture, condition, place)
    _link(graph, condition, sampler, [slot["name"] for slot in sampler["inputs"]].index("given"))


def _node(
    graph: dict[str, Any], kind: str, where: list[int], size: list[int], widgets: list[Any], *outputs: tuple[str, str]
) -> dict[str, Any]:
    graph["last_node_id"] += 1
    node = {
        "id": graph["last_node_id"],
        "type": kind,
        "pos": where,
        "size": size,
        "flags": {},
        "order": len(graph["nodes"]),
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": name, "type": made, "links": []} for name, made in outputs],
        "properties": {"Node name for S&R": kind},
        "widgets_values": widgets,
    }
    graph["nodes"].append(node)
    return node


def _link(graph: dict[str, Any], source: dict[str, Any], target: dict[str, Any], place: int) -> None:
    """From the first output of one node to an input of another."""
    graph["last_link_id"] += 1
    output, entry = source["outputs"][0], target["inputs"][place]
    graph["links"].append([graph["last_link_id"], source["id"], 0, target["id"], place, output["type"]])
    output["links"].append(graph["last_link_id"])
    entry["link"] = graph["last_link_id"]


def _pixels(request: ClipRequest, spec: ModelSpec) -> tuple[int, int]:
    from ..cli_options import size_of

    size = size_of(request.size.strip() or None)
    return size["height"] or spec.height, size["width"] or spec.width


def _frames(request: ClipRequest, spec: ModelSpec) -> int:
    from ..cli_options import frames_of

    return frames_of(request.frames or None) or spec.num_frames
