"""One ComfyUI for all tests of this folder, with the packed plugin in it. Where it cannot be made, the tests fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from packed import packed_plugin
from provision import Host, provision
from server import ComfyServer
from template import Prompt, load_template, to_prompt
from tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def host() -> Host:
    return provision()


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfyui")
    write_tiny_checkpoint(base / "models" / "pab" / "tiny")
    with ComfyServer(host, base, packed_plugin(tmp_path_factory.mktemp("packed"))) as running:
        yield running


@pytest.fixture
def template(server: ComfyServer) -> Prompt:
    """The template of this repository, as its page would send it; a fresh copy."""
    return to_prompt(load_template("pab_text_to_video"), server.object_info())
