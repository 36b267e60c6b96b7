"""Graphs in the making, and what they make: what the tests of nodes share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from server import ComfyServer, ServerError
from template import Prompt, node_of
from test_text_to_video import change


def with_node(graph: Prompt, class_type: str, **inputs: Any) -> Prompt:
    """A copy of the graph with one more node, named as its type."""
    return {**graph, class_type: {"class_type": class_type, "inputs": inputs}}


def shared(graph: Prompt, sampler: dict[str, Any], suffix: str) -> Prompt:
    """A second sampler and decoder beside the first, with other inputs: {"policy": [...], ...}."""
    first, decoder = node_of(graph, "PABSampler"), node_of(graph, "PABDecode")
    inputs = {**graph[first]["inputs"], **sampler}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return {
        **graph,
        f"sampler{suffix}": {"class_type": "PABSampler", "inputs": inputs},
        f"decode{suffix}": {
            "class_type": "PABDecode",
            "inputs": {**graph[decoder]["inputs"], "latent": [f"sampler{suffix}", 0]},
        },
    }


def refused(server: ComfyServer, graph: Prompt, class_type: str, /, **inputs: object) -> str:
    """What is said of inputs that cannot be: by the host before the run, where it looks at them, or at the node."""
    change(graph, class_type, **inputs)
    try:
        prompt_id = server.queue(graph)
    except ServerError as error:
        return str(error)
    end = server.wait(prompt_id)
    assert end.kind == "execution_error"
    assert end.data["node_type"] == class_type
    assert end.data["exception_type"].endswith("PabError")
    return end.data["exception_message"]


def frames_of(server: ComfyServer, graph: Prompt, node: str = "decode2") -> np.ndarray:
    saving = {"class_type": "SaveImage", "inputs": {"images": [node, 0], "filename_prefix": "frames"}}
    _, outputs = server.run({**graph, "frames": saving})
    return np.stack([np.asarray(Image.open(io.BytesIO(server.output(f)))) for f in outputs["frames"]["images"]])
