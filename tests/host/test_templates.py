"""All templates: small pictures, workflows that fit the nodes, and a run of each with a demo model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from provision import COMFYUI_VERSION, REPOSITORY
from server import ComfyServer
from template import Prompt, load_template, nodes_of, to_prompt
from write_templates import TEMPLATES, Graph, english

from pab_core.video_io import read_mp4

FOLDER = REPOSITORY / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# Released models are not here; the demo model of the same family runs in their place.
STAND_IN = {"pab_latte": "demo-latte", "pab_open_sora_plan": "demo-plan", "pab_open_sora_480p": "demo"}


def test_each_template_has_a_small_picture() -> None:
    pictures = {path.stem: path for path in FOLDER.glob("*.jpg")}
    assert sorted(pictures) == NAMES
    for name, path in pictures.items():
        assert path.stat().st_size < 60_000, name
        with Image.open(path) as picture:
            assert min(picture.size) >= 200, name


def test_the_templates_are_those_that_the_script_writes(server: ComfyServer) -> None:
    if server.host.version != COMFYUI_VERSION:
        pytest.skip("They are written on the oldest host, and its own nodes have other inputs later.")
    info = server.object_info()
    assert sorted(TEMPLATES) == NAMES
    for name, build in TEMPLATES.items():
        graph = Graph(info)
        build(graph)
        assert graph.to_json(name) == load_template(name), name


def test_the_english_names_are_those_of_the_nodes(server: ComfyServer) -> None:
    written = json.loads((REPOSITORY / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert written == english(server.object_info())


def test_the_host_serves_names_and_help(server: ComfyServer) -> None:
    chinese = server.get("/i18n")["zh"]["nodeDefs"]
    assert chinese["PABBroadcast"]["display_name"] == "金字塔注意力广播"
    for page in ("PABBroadcast.md", "PABBroadcast/zh.md", "PABBroadcast/node.jpg", "PABCalibrate/figure.jpg"):
        assert len(server.request(f"/extensions/comfyui-pab/docs/{page}")) > 100


def small(name: str, info: dict[str, Any]) -> Prompt:
    """The template as a prompt, for a demo model and a short run."""
    prompt = to_prompt(load_template(name), info)
    for key in nodes_of(prompt, "PABSampler"):
        inputs = prompt[key]["inputs"]
        inputs.update(steps=4, width=0, height=0, frames=0)
        if name not in ("pab_latte", "pab_open_sora_plan"):
            inputs.update(steps=8, width=96, height=64, frames=17)
    for key in nodes_of(prompt, "PABCalibrate"):
        prompt[key]["inputs"]["prompts"] = "a red ball"
    if name in STAND_IN:
        for key in nodes_of(prompt, "PABDownload"):
            del prompt[key]
        (loader,) = nodes_of(prompt, "PABLoadModel")
        del prompt[loader]["inputs"]["checkpoint"]
        prompt[loader]["inputs"]["model"] = STAND_IN[name]
    return prompt


@pytest.mark.parametrize("name", NAMES)
def test_the_template_runs(server: ComfyServer, name: str, tmp_path: Path) -> None:
    prompt = small(name, server.object_info())
    _, outputs = server.run(prompt, timeout=600)
    (saver,) = [*nodes_of(prompt, "PABSaveVideo"), *nodes_of(prompt, "SaveVideo")]
    (saved,) = outputs[saver]["images"]
    file = tmp_path / "out.mp4"
    file.write_bytes(server.output(saved))
    frames, _ = read_mp4(file)
    beside = {"pab_off_against_on": 2, "pab_calibrate": 2, "pab_choose_your_speed": 4}.get(name, 1)
    if name in ("pab_latte", "pab_open_sora_plan"):
        assert frames.shape[1:] == (128, 192, 3)
    else:
        assert frames.shape == (17, 64 + (24 if beside > 1 else 0), 96 * beside, 3)
    assert frames.std() > 10
    for key in nodes_of(prompt, "PreviewAny"):
        assert "PSNR" in outputs[key]["text"][0]
    for key in nodes_of(prompt, "PreviewImage"):
        picture = Image.open(io.BytesIO(server.output(outputs[key]["images"][0])))
        assert picture.size[0] > 90


@pytest.mark.parametrize("name", sorted(STAND_IN))
def test_a_released_model_that_cannot_be_fetched_is_told_in_words(server: ComfyServer, name: str) -> None:
    # The host of the tests has no Hub; that the rest of the graph is valid is what /prompt says by taking it.
    prompt = to_prompt(load_template(name), server.object_info())
    end = server.wait(server.queue(prompt))
    assert end.kind == "execution_error"
    assert end.data["node_type"] == "PABDownload"
    assert end.data["exception_type"].endswith("PabError")
    assert "fetch the files of" in end.data["exception_message"]
    assert "models/pab" in end.data["exception_message"].replace("\\", "/")
