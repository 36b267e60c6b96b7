"""Writes the workflows of the templates and the English names, from the nodes of a running host; by hand after a change
of a node:

    python tests/host/write_templates.py

Widgets stand at their defaults unless a template says otherwise, so the files fit the nodes whatever is added to them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packed import packed_plugin
from provision import REPOSITORY, provision
from server import ComfyServer
from template import WIDGETS

X = (40, 420, 880, 1260, 1720, 2180, 2640, 3020)  # columns
Output = tuple[int, int]  # node and place of an output


@dataclass
class Graph:
    """A workflow in the making; `info` is the host's object_info."""

    info: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        column: int,
        top: int,
        size: tuple[int, int],
        links: dict[str, Output] | None = None,
        title: str | None = None,
        **widgets: Any,
    ) -> int:
        """A node with links into it by input's name and widgets by theirs; returns its id."""
        declared = self.info[kind]
        given = declared["input"].get("required", {}) | declared["input"].get("optional", {})
        number, values, sockets = len(self.nodes) + 1, [], []
        wanted = dict(links or {})
        for name, (type_name, *more) in given.items():
            options = more[0] if more else {}
            if isinstance(type_name, list) or type_name in WIDGETS:
                choices = type_name if isinstance(type_name, list) else options.get("options")
                default = options.get("default", choices[0] if choices else "")
                values.append(widgets.pop(name, default))
                if options.get("control_after_generate"):
                    values.append("fixed")
                if options.get("image_upload"):
                    values.append("image")
                continue
            link = None
            if name in wanted:
                source, place = wanted.pop(name)
                link = len(self.links) + 1
                output = self.nodes[source - 1]["outputs"][place]
                self.links.append([link, source, place, number, len(sockets), output["type"]])
                output["links"].append(link)
            sockets.append({"name": name, "type": type_name, "link": link})
        assert not widgets, (kind, widgets)
        assert not wanted, (kind, wanted)
        outputs = [
            {"name": name, "type": type_name, "links": []}
            for name, type_name in zip(declared["output_name"], declared["output"], strict=True)
        ]
        node = {
            "id": number,
            "type": kind,
            "pos": [X[column], top],
            "size": list(size),
            "flags": {},
            "order": number - 1,
        }
        node |= {"mode": 0, "inputs": sockets, "outputs": outputs, "properties": {"Node name for S&R": kind}}
        if title:
            node["title"] = title
        self.nodes.append({**node, "widgets_values": values})
        return number

    def note(self, text: str, column: int, top: int, size: tuple[int, int]) -> None:
        number = len(self.nodes) + 1
        node = {"id": number, "type": "MarkdownNote", "pos": [X[column], top], "size": list(size), "flags": {}}
        node |= {"order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
        self.nodes.append({**node, "widgets_values": [text], "color": "#432", "bgcolor": "#653"})

    def to_json(self, name: str) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.75, "offset": [50, 40]}},
            "version": 0.4,
        }


LOADER, PROMPT, POLICY, SAMPLER, SAVER = (340, 190), (420, 250), (420, 560), (340, 540), (420, 400)
# Nodes 2.0 draws nodes taller than this, a sampler with a preview most of all: what is below begins farther down.
TOP, BELOW_LOADER, BELOW_PROMPT, BELOW_SAMPLER, NEXT_ROW = 180, 460, 510, 740, 900
RED_BALL = "a red ball rolls left over a green floor"


def pipeline(graph: Graph, prompt: str, load: dict[str, Any], **size: Any) -> tuple[int, int, Callable[..., int]]:
    """Loader and prompt, and what makes a video of a policy at a height of the graph; returns the decoder's node."""
    checkpoint = load.pop("checkpoint", None)
    loader = graph.add(
        "PABLoadModel",
        0,
        330 if checkpoint else TOP,
        LOADER,
        {"checkpoint": checkpoint} if checkpoint else None,
        **load,
    )
    text = graph.add("PABTextEncode", 1, TOP, PROMPT, {"model": (loader, 0)}, prompt=prompt)

    def make(top: int, more: dict[str, Output] | None = None, column: int = 2, **others: Any) -> int:
        links = {"model": (loader, 0), "conditioning": (text, 0), **(more or {})}
        sampler = graph.add("PABSampler", column, top, SAMPLER, links, **(size | others))
        decoder = {"model": (loader, 0), "latent": (sampler, 0)}
        return graph.add("PABDecode", column, top + BELOW_SAMPLER, (240, 60), decoder)

    return loader, text, make


def text_to_video(graph: Graph) -> None:
    _, _, make = pipeline(graph, RED_BALL, {}, steps=30, guidance=4.0, width=192, height=128, frames=34)
    policy = graph.add("PABBroadcast", 1, BELOW_PROMPT, POLICY)
    video = make(TOP, {"policy": (policy, 0)})
    graph.add("SaveVideo", 3, TOP, SAVER, {"video": (video, 1)}, filename_prefix="video/pab")
    graph.note(
        "## Text to video with Pyramid Attention Broadcast\n\nPress **Run**: the demo model makes two seconds of video "
        "in seconds, on any CPU.\n\n**Prompt**: one shaded shape (ball, cube, cylinder, cone), its colour, a motion; a "
        "floor, a sky and a camera move if you like. *a blue ball bounces on a grey floor at sunset*\n\n**Broadcast**: "
        "choose a policy, or move a slider; 0 leaves a value as the policy has it. **off** is the slow original to "
        "compare with, at the same seed.\n\n**Size, frames, steps, guidance**: 0 is the model's own.\n\nOpen-Sora "
        "checkpoints go to **models/pab**, one folder each.",
        0, BELOW_LOADER, (340, 400),
    )  # fmt: skip


def off_against_on(graph: Graph) -> None:
    _, _, make = pipeline(graph, RED_BALL, {})
    policy = graph.add("PABBroadcast", 1, BELOW_PROMPT, POLICY)
    off, on = make(TOP), make(TOP + NEXT_ROW, {"policy": (policy, 0)})
    compared = graph.add("PABCompare", 3, TOP, (340, 160), {"reference": (off, 1), "video": (on, 1)}, labels="off, on")
    graph.add("PreviewAny", 3, 410, (340, 110), {"source": (compared, 0)})
    graph.add("PreviewImage", 3, 600, (340, 300), {"images": (compared, 2)}, title="Differences, four times as bright")
    graph.add("PABSaveVideo", 4, TOP, SAVER, {"video": (compared, 1)}, filename_prefix="video/pab_compare")
    graph.note(
        "## Off against on\n\nThe same seed twice: above without reuse, below with the policy on the left. Move a "
        "slider and run again: the upper half is not made anew.\n\nAfter a run the broadcast node tells what was "
        "measured.",
        0, BELOW_LOADER, (340, 260),
    )  # fmt: skip


def choose_your_speed(graph: Graph) -> None:
    _, _, make = pipeline(graph, "a blue cube spins on sand at sunset", {})
    names = ("pab246", "calibrated", "calibrated-fast")
    off = make(TOP)
    videos = []
    for column, name in enumerate(names, 3):
        policy = graph.add("PABBroadcast", column, TOP + NEXT_ROW, POLICY, policy=name)
        videos.append(make(TOP, {"policy": (policy, 0)}, column))
    links = {"reference": (off, 1), "video": (videos[0], 1), "video_2": (videos[1], 1), "video_3": (videos[2], 1)}
    compared = graph.add("PABCompare", 6, TOP, (340, 200), links, labels=", ".join(("off", *names)))
    graph.add("PreviewAny", 6, 450, (340, 130), {"source": (compared, 0)})
    graph.add("PABSaveVideo", 7, TOP, SAVER, {"video": (compared, 1)}, filename_prefix="video/pab_speeds")
    graph.note(
        "## Choose your speed\n\nThree ways to reuse beside the video without reuse, at the same seed. **pab246** is "
        "the published one, **calibrated** takes as long and stays nearer, **calibrated-fast** takes half of it. The "
        "numbers say how near each stays: the higher the PSNR, the nearer.\n\nA model that nothing was calibrated for "
        "has `pab246`, `pab357` and `pab579`, and **Calibrate (PAB)**.",
        0, BELOW_LOADER, (340, 310),
    )  # fmt: skip


def image_to_video(graph: Graph) -> None:
    _, _, make = pipeline(graph, RED_BALL, {})
    policy = graph.add("PABBroadcast", 1, BELOW_PROMPT, POLICY)
    picture = graph.add("LoadImage", 0, 770, (340, 330), image="example.png")
    given = graph.add("PABGiven", 0, 1190, (340, 200), {"first_frame": (picture, 0)})
    video = make(TOP, {"policy": (policy, 0), "given": (given, 0)})
    graph.add("PABSaveVideo", 3, TOP, SAVER, {"video": (video, 1)}, filename_prefix="video/pab_image")
    graph.note(
        "## Image to video\n\nChoose a picture: the video starts from it. With a second one as the **last frame** it "
        "ends there; with a **video** it goes on from the clip's end; with **edit** the clip is changed.\n\nThe demo "
        "model knows its own world alone: give it a picture of a shape on a floor, such as a frame of the first "
        "template. Open-Sora takes any.",
        0, BELOW_LOADER, (340, 250),
    )  # fmt: skip


def calibrate(graph: Graph) -> None:
    loader, _, make = pipeline(graph, RED_BALL, {})
    found = graph.add("PABCalibrate", 1, BELOW_PROMPT, (420, 380), {"model": (loader, 0)})
    off, on = make(TOP), make(TOP + NEXT_ROW, {"policy": (found, 0)})
    compared = graph.add(
        "PABCompare", 3, TOP, (340, 160), {"reference": (off, 1), "video": (on, 1)}, labels="off, calibrated"
    )
    graph.add("PreviewAny", 3, 410, (340, 110), {"source": (compared, 0)})
    graph.add("PreviewImage", 3, 600, (440, 340), {"images": (found, 1)}, title="What was measured")
    links = {"model": (loader, 0), "policy": (found, 0)}
    graph.add("PABSaveSchedule", 3, 1010, (340, 120), links, filename_prefix="calibrated")
    graph.add("PABSaveVideo", 4, TOP, SAVER, {"video": (compared, 1)}, filename_prefix="video/pab_calibrated")
    graph.note(
        "## Calibrate\n\nMeasures on your prompts where in the run attention changes least, and makes a policy of it. "
        "The curves are U-shaped: the first and last steps shape the video.\n\nThe schedule is saved under "
        "**output/pab_schedules**: **Load Schedule (PAB)** brings it back without measuring. The broadcast node shows "
        "the curves from then on.",
        0, BELOW_LOADER, (340, 320),
    )  # fmt: skip


def worker_pool(graph: Graph) -> None:
    loader, text, _ = pipeline(graph, RED_BALL, {})
    policy = graph.add("PABBroadcast", 1, BELOW_PROMPT, POLICY)
    pool = graph.add("PABWorkers", 0, 790, (340, 160), devices="cpu*2")
    links = {"model": (loader, 0), "conditioning": (text, 0), "policy": (policy, 0), "workers": (pool, 0)}
    sampler = graph.add("PABSampler", 2, TOP, SAMPLER, links)
    decoder = {"model": (loader, 0), "latent": (sampler, 0), "workers": (pool, 0)}
    video = graph.add("PABDecode", 2, TOP + BELOW_SAMPLER, (240, 80), decoder)
    graph.add("PABSaveVideo", 3, TOP, SAVER, {"video": (video, 1)}, filename_prefix="video/pab_workers")
    graph.note(
        "## Several GPUs\n\nThe pool's processes keep the model, one on each device, and make the steps of the video "
        "together. `cpu*2` is to try it out on any machine; write **auto** or **0,1** for GPUs.\n\nWith the method "
        "**auto** a few steps are timed when a size is first made, and the fastest way is taken: where several devices "
        "are no faster than one, the sampler says so. The video is that of one device but for rounding.",
        0, BELOW_LOADER, (340, 270),
    )  # fmt: skip


def released(model: str, prompt: str, policy: str, text: str, **size: Any) -> Callable[[Graph], None]:
    """A released model, downloaded where it is not there yet."""

    def build(graph: Graph) -> None:
        fetched = graph.add("PABDownload", 0, TOP, (340, 70), model=model)
        _, _, make = pipeline(graph, prompt, {"checkpoint": (fetched, 0)}, **size)
        chosen = graph.add("PABBroadcast", 1, BELOW_PROMPT, POLICY, policy=policy)
        video = make(TOP, {"policy": (chosen, 0)})
        graph.add("PABSaveVideo", 3, TOP, SAVER, {"video": (video, 1)}, filename_prefix=f"video/{model}")
        graph.note(text, 0, 620, (340, 380))

    return build


_FIRST = (
    "\n\nThe first run downloads it to **models/pab** (some 20 to 30 GB, most of it the text encoder); an interrupted "
    "download goes on. Who has a T5 XXL in **models/text_encoders** can choose it at the loader.\n\n**Little GPU "
    "memory**: weights **fp8**, offload **parts** or **blocks** at the loader; kept **fp8** or **host** at the "
    "broadcast node, which tells how much it keeps."
)
TEMPLATES: dict[str, Callable[[Graph], None]] = {
    "pab_text_to_video": text_to_video,
    "pab_off_against_on": off_against_on,
    "pab_choose_your_speed": choose_your_speed,
    "pab_image_to_video": image_to_video,
    "pab_calibrate": calibrate,
    "pab_worker_pool": worker_pool,
    "pab_open_sora_480p": released(
        "open-sora",
        "a sailing boat glides over a calm sea at dawn, gentle waves, golden light",
        "pab246",
        "## Open-Sora 1.2, 480p\n\nTwo seconds of 848x480." + _FIRST,
        steps=30, width=848, height=480, frames=51,
    ),
    "pab_latte": released(
        "latte",
        "a dog in sunglasses runs along the beach",
        "pab236",
        "## Latte-1\n\n16 frames of 512x512, with a negative prompt if you like." + _FIRST,
    ),
    "pab_open_sora_plan": released(
        "open-sora-plan",
        "a quiet mountain lake, clouds drift over the peaks",
        "pab246",
        "## Open-Sora-Plan v1.1.0\n\n65 frames of 512x512 in 150 steps: slow, and the more is saved."
        + _FIRST,
    ),
}  # fmt: skip


def english(info: dict[str, Any]) -> dict[str, Any]:
    """locales/en/nodeDefs.json: what the nodes say themselves, for translators to begin with."""
    found = {}
    for name, node in info.items():
        if node["python_module"] != "custom_nodes.comfyui-pab":
            continue
        given = node["input"].get("required", {}) | node["input"].get("optional", {})
        inputs = {key: {"name": key, "tooltip": more[0]["tooltip"]} for key, (_, *more) in given.items()}
        outputs = {
            str(place): {"name": said, "tooltip": tooltip}
            for place, (said, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
        }
        about = {"display_name": node["display_name"], "description": node["description"], "inputs": inputs}
        found[name] = about | ({"outputs": outputs} if outputs else {})
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        with ComfyServer(provision(), base / "host", packed_plugin(base / "packed")) as server:
            info = server.object_info()
    info["LoadImage"]["input"]["required"]["image"][0][:] = ["example.png"]
    for name, build in TEMPLATES.items():
        graph = Graph(info)
        build(graph)
        text = json.dumps(graph.to_json(name), indent=2, ensure_ascii=False)
        (REPOSITORY / "workflows" / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        if name == "pab_text_to_video":  # the studio shares videos as this one
            own = REPOSITORY / "pab_core" / "workflows" / f"{name}.json"
            own.write_text(text + "\n", encoding="utf-8", newline="\n")
        print(name)
    names = json.dumps(english(info), indent=2, ensure_ascii=False)
    (REPOSITORY / "locales" / "en" / "nodeDefs.json").write_text(names + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
