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
    return graph


def _pixels(request: ClipRequest, spec: ModelSpec) -> tuple[int, int]:
    from ..cli_options import size_of

    size = size_of(request.size.strip() or None)
    return size["height"] or spec.height, size["width"] or spec.width


def _frames(request: ClipRequest, spec: ModelSpec) -> int:
    from ..cli_options import frames_of

    return frames_of(request.frames or None) or spec.num_frames
