"""How near a video is to another: PSNR, SSIM and LPIPS of uint8 videos [T, H, W, 3], and their statistics.

A value that is not a number is told as such: it is never left out of a mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..errors import PabError
from .lpips import Lpips

PSNR_IDENTICAL = 100.0  # dB told for identical frames, as the paper's authors count them
_FRAMES = 64  # compared at a time
_VIDEOS = 8


@dataclass(frozen=True)
class Distance:
    """Of a video from its reference. NaN where a metric has no value."""

    psnr: float  # dB, mean over the frames; PSNR_IDENTICAL where they are identical
    ssim: float  # mean over the frames, 1 = identical
    lpips: float  # mean over the frames, 0 = identical


METRICS = ("psnr", "ssim", "lpips")
BETTER_ABOVE = {"psnr": True, "ssim": True, "lpips": False}


def compare(video: Tensor, reference: Tensor, lpips: Lpips | None) -> Distance:
    """Two videos uint8 [T, H, W, 3]; without `lpips`, its value is NaN.

    Raises:
        PabError: they are not of one shape.
    """
    return compare_all([(video, reference)], lpips)[0]


def compare_all(pairs: Sequence[tuple[Tensor, Tensor]], lpips: Lpips | None) -> list[Distance]:
    """As `compare`, of many pairs of a video and its reference; a GPU is given the frames of several at once."""
    for pair in pairs:
        check_videos(*pair)
    found: list[Distance] = []
    for _, alike in groupby(pairs, key=lambda pair: pair[0].shape):
        some = list(alike)
        for start in range(0, len(some), _VIDEOS):
            found += _compare(some[start : start + _VIDEOS], lpips)
    return found


def _compare(pairs: Sequence[tuple[Tensor, Tensor]], lpips: Lpips | None) -> list[Distance]:
    """Of pairs of one shape."""
    length = len(pairs[0][0])
    ours, theirs = (torch.cat(videos) for videos in zip(*pairs, strict=True))
    if lpips is not None:  # where that computes fast, all else does
        ours, theirs = (one.to(lpips.weights[0].device) for one in (ours, theirs))
    frames = [psnr_of_frames(ours, theirs), ssim_of_frames(ours, theirs)]
    frames.append([math.nan] * len(ours) if lpips is None else lpips.frames(ours, theirs))
    return [
        Distance(*(statistics.fmean(values[i : i + length]) for values in frames)) for i in range(0, len(ours), length)
    ]


def check_videos(video: Tensor, reference: Tensor) -> None:
    for one in (video, reference):
        if one.dtype != torch.uint8 or one.ndim != 4 or one.shape[3] != 3 or one.numel() == 0:
            raise PabError(f"A video to compare is uint8 [T, H, W, 3], not {one.dtype} {list(one.shape)}.")
    if video.shape != reference.shape:
        sizes = [f"{v.shape[0]} frames of {v.shape[2]}x{v.shape[1]}" for v in (video, reference)]
        raise PabError(f"The videos cannot be compared: one has {sizes[0]}, the other {sizes[1]}. Make them alike.")


def psnr(video: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over the frames."""
    return statistics.fmean(psnr_of_frames(video, reference))


def psnr_of_frames(video: Tensor, reference: Tensor) -> list[float]:
    parts = zip(video.split(_FRAMES), reference.split(_FRAMES), strict=True)
    errors = torch.cat([(ours.double() - theirs.double()).square().mean((1, 2, 3)) for ours, theirs in parts])
    return [
        min(10 * math.log10(255**2 / error), PSNR_IDENTICAL) if error else PSNR_IDENTICAL for error in errors.tolist()
    ]


def ssim(video: Tensor, reference: Tensor) -> float:
    """Structural similarity (Wang et al. 2004; Gaussian window of 11, sigma 1.5), mean over frames and channels."""
    return statistics.fmean(ssim_of_frames(video, reference))


def find_ssim() -> Any:
    """torchmetrics' function. PabError where that is not installed: asked before a bench makes its first clip."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise PabError("SSIM needs the package torchmetrics: pip install torchmetrics.") from None
    return structural_similarity_index_measure


def ssim_of_frames(video: Tensor, reference: Tensor) -> list[float]:
    structural_similarity = find_ssim()
    if min(video.shape[1:3]) < 11:
        return [math.nan] * len(video)  # smaller than its window
    parts = []
    for ours, theirs in zip(video.split(_FRAMES), reference.split(_FRAMES), strict=True):
        a, b = (part.permute(0, 3, 1, 2).float() / 255 for part in (ours, theirs))
        found = structural_similarity(a, b, data_range=1.0, reduction="none")
        assert isinstance(found, Tensor)
        parts.append(found.view(len(ours)))
    return torch.cat(parts).tolist()


@dataclass(frozen=True)
class Summary:
    """Of some values; mean and error are NaN where any of them is."""

    count: int
    mean: float
    error: float  # standard error of the mean; NaN for fewer than two values
    not_numbers: int

    @property
    def text(self) -> str:
        if self.not_numbers:
            return f"NaN in {self.not_numbers} of {self.count}"
        return f"{self.mean:.4g}" if math.isnan(self.error) else f"{self.mean:.4g} ± {self.error:.2g}"

    def to_json(self) -> dict[str, Any]:
        def number(value: float) -> float | None:
            return None if math.isnan(value) else value

        told = {"count": self.count, "mean": number(self.mean), "error": number(self.error)}
        return told | ({"not_numbers": self.not_numbers} if self.not_numbers else {})


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard error."""
    count, bad = len(values), sum(not math.isfinite(value) for value in values)
    if bad or not count:
        return Summary(count, math.nan, math.nan, bad)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
    return Summary(count, statistics.fmean(values), error, 0)


def paired(values: Sequence[float], others: Sequence[float]) -> Summary:
    """Of the differences value - other, of the same prompts and seeds in the same order: what the videos have in common
    cancels, so a small difference shows that the two means' own errors would hide."""
    return summarise([a - b for a, b in zip(values, others, strict=True)])
