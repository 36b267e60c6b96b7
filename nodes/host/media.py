"""The host's IMAGE and VIDEO, made of frames and read back, and what its page is told of a saved one"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

from fractions import Fraction
from typing import Any

import comfy_api.latest as api
import torch
from comfy.cli_args import args
from torch import Tensor

from .memory import result_device


def images(frames: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] as the host's IMAGE: float 0..1, [T, H, W, 3]."""
    return frames.to(result_device(), torch.float32) / 255


def frames_of(batch: Tensor) -> Tensor:
    """The host's IMAGE [T, H, W, 3 or 4] as frames uint8 [T, H, W, 3]."""
    return (batch[..., :3].float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def read_video(given: Any) -> tuple[Tensor, float]:
    """The host's VIDEO -> an IMAGE batch and its frames a second."""
    parts = given.get_components()
    return parts.images, float(parts.frame_rate)


def video(batch: Tensor, fps: float) -> Any:
    """An IMAGE batch as the host's VIDEO."""
    return api.InputImpl.VideoFromComponents(api.Types.VideoComponents(images=batch, frame_rate=Fraction(fps)))


def shown_video(result: Any) -> Any:
    """What the page plays on a node that has saved a video."""
    return api.ui.PreviewVideo([result])


def workflow_tags(prompt: Any, extra: Any) -> dict[str, Any]:
    """What the page reads a workflow from when a file is dropped on it; empty where the host was told to write none."""
    if args.disable_metadata:
        return {}
    return {**(extra or {}), **({} if prompt is None else {"prompt": prompt})}
