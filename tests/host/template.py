"""A workflow as the page saves it -> the prompt that the page would send to /prompt for it."""

from __future__ import annotations

import json
from typing import Any

from provision import REPOSITORY

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")  # the last in newer hosts only
NOTES = ("Note", "MarkdownNote")  # exist in the page only

Prompt = dict[str, dict[str, Any]]


def load_template(name: str) -> dict[str, Any]:
    return json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """The API form of a saved workflow. Raises where the two do not fit: unknown nodes, values left over, bad links."""
    links = {link[0]: link for link in workflow["links"]}
    nodes = {node["id"]: node for node in workflow["nodes"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        declared = object_info[node["type"]]["input"]
        given = declared["required"] | declared.get("optional", {})
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, (kind, *options) in given.items():
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = next(values)
                if options and (options[0].get("control_after_generate") or options[0].get("image_upload")):
                    next(values)  # the page's own: what to do with the value after a run, and the button to upload
        left_over = list(values)
        assert not left_over, f"{node['type']} has no inputs for the values {left_over}"
        for slot, socket in enumerate(node["inputs"]):
            assert given[socket["name"]][0] == socket["type"], socket
            if socket["link"] is not None:
                _, source, source_slot, target, target_slot, kind = links[socket["link"]]
                output = nodes[source]["outputs"][source_slot]
                assert (target, target_slot) == (node["id"], slot), links[socket["link"]]
                assert socket["link"] in output["links"], links[socket["link"]]
                assert object_info[nodes[source]["type"]]["output"][source_slot] == kind
                assert socket["type"] in (kind, "*")
                inputs[socket["name"]] = [str(source), source_slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def nodes_of(prompt: Prompt, class_type: str) -> list[str]:
    """The ids of the nodes of that type."""
    return [key for key, node in prompt.items() if node["class_type"] == class_type]


def node_of(prompt: Prompt, class_type: str) -> str:
    """The id of the one node of that type."""
    (found,) = nodes_of(prompt, class_type)
    return found
