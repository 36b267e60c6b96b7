"""What the tests share: one thread, and checkpoints of random weights, written once and never changed by a test."""

from __future__ import annotations

import os

# Kernels run number by number on the CPU; Triton reads this as it is imported, which torch does.
os.environ["TRITON_INTERPRET"] = "1"

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from demo_checkpoint import write_demo_checkpoint
from tiny_checkpoint import write_tiny_checkpoint

from pab_core.pipeline import Pipeline

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For this process and those it starts: with small tensors more threads gain nothing, and on a busy machine they
    wait for each other at every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint named "tiny"."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pipe(folder: Path) -> Pipeline:
    """The tiny checkpoint, loaded."""
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo model's architecture and size, untrained, named "demo-random"."""
    return write_demo_checkpoint(tmp_path_factory.mktemp("models") / "demo-random")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system (CHROMIUM, or on the path); one for all tests, since playwright runs once a process."""
    from playwright.sync_api import expect, sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "these tests need Chromium: install it, or name it with CHROMIUM"
    expect.set_options(timeout=90_000)  # a video takes seconds, and more on a busy machine
    with sync_playwright() as playwright:
        # Tests run as root in containers, where Chromium's own sandbox cannot start.
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()
