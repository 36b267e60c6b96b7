"""One ComfyUI for all tests of this folder, with the packed plugin in it. Where it cannot be made, the tests fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from packed import packed_plugin
from PIL import Image
from provision import Host, provision
from server import ComfyServer
from template import Prompt, load_template, node_of, to_prompt


@pytest.fixture(scope="session")
def host() -> Host:
    return provision()


@pytest.fixture(scope="session")
def server(host: Host, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(folder, base / "models" / "pab" / folder.name)
    (base / "input").mkdir()
    # What ComfyUI's own input folder has, and a template names.
    Image.effect_mandelbrot((320, 200), (-2, -1.2, 1, 1.2), 40).convert("RGB").save(base / "input" / "example.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAB_WORKERS", str(base / "workers"))  # no pool of this machine's user
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers: no test downloads
        with ComfyServer(host, base, packed_plugin(tmp_path_factory.mktemp("packed"))) as running:
            yield running


@pytest.fixture
def template(server: ComfyServer) -> Prompt:
    """The template of this repository, as its page would send it; a fresh copy."""
    return to_prompt(load_template("pab_text_to_video"), server.object_info())


@pytest.fixture
def short(template: Prompt) -> Prompt:
    """The first template, for a small and short clip of eight steps."""
    sampler = template[node_of(template, "PABSampler")]["inputs"]
    sampler.update(steps=8, width=96, height=64, frames=17, seed=5)
    return template
