"""One ComfyUI for all tests of this folder, with the packed plugin in it. Where it cannot be made, the tests fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from packed import packed_plugin
from provision import Host, provision
from server import ComfyServer
from template import Prompt, load_template, node_of, to_prompt


@pytest.fixture(scope="session")
def host() -> Host:
    return provision()


@pytest.fixture(scope="session")
def server(
    host: Host, folder: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfyui")
    for checkpoint in (folder, demo_folder):
        shutil.copytree(checkpoint, base / "models" / "pab" / checkpoint.name)
    with ComfyServer(host, base, packed_plugin(tmp_path_factory.mktemp("packed"))) as running:
        yield running


@pytest.fixture
def template(server: ComfyServer, demo_folder: Path) -> Prompt:
    """The template of this repository, as its page would send it; a fresh copy.

    In place of the demo model it names the untrained checkpoint of the same architecture, so that what is tested does
    not hang on how well, or whether, a model was trained.
    """
    prompt = to_prompt(load_template("pab_text_to_video"), server.object_info())
    model = prompt[node_of(prompt, "PABLoadModel")]["inputs"]
    assert model["model"] == "demo"
    model["model"] = demo_folder.name
    return prompt
