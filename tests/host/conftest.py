"""One ComfyUI for all tests of this folder, with the packed plugin in it. Where it cannot be made, the tests fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from packed import packed_plugin
from provision import Host, provision
from server import ComfyServer
from template import Prompt, load_template, to_prompt


@pytest.fixture(scope="session")
def host() -> Host:
    return provision()


@pytest.fixture(scope="session")
def server(host: Host, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(folder, base / "models" / "pab" / folder.name)
    with ComfyServer(host, base, packed_plugin(tmp_path_factory.mktemp("packed"))) as running:
        yield running


@pytest.fixture
def template(server: ComfyServer) -> Prompt:
    """The template of this repository, as its page would send it; a fresh copy."""
    return to_prompt(load_template("pab_text_to_video"), server.object_info())
