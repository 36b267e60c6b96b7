"""Pixels as files have them, uint8 0..255, and as models do, in [-1, 1]."""

import torch
from torch import Tensor


def to_uint8(video: Tensor) -> Tensor:
    """[-1, 1], any shape -> uint8 0..255 on the CPU."""
    return to_levels(video).cpu()


def to_levels(video: Tensor) -> Tensor:
    """As to_uint8, on the video's own device."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_video(frames: Tensor) -> Tensor:
    """uint8 [T, H, W, 3] -> [1, 3, T, H, W] in [-1, 1]."""
    return frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
