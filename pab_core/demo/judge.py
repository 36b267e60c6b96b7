"""A small network that says what a demo video shows: shape and colour of the object, and how it moves.

It learns from rendered clips alone, where the truth is known, and never sees a frame that the video model made.
Two parts: `FrameNet` looks at single frames, `MotionNet` at the object's track and at its surface over time.

    python -m pab_core.demo.judge --seconds 60 --output judge.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import COLOURS, MOTIONS, SHAPES

JUDGE_FILE = Path(__file__).with_name("judge.safetensors")
FRAMES, HEIGHT, WIDTH, FPS = 34, 128, 192, 16
SMALL = (HEIGHT // 2, WIDTH // 2)  # what MotionNet looks at: detail that a soft video lacks must not matter
# An object that neither travels nor turns is none of the model's motions; without this class it would pass for "spin".
VERDICT_MOTIONS = (*MOTIONS, "still")
LOOKS = 8  # frames of a clip that vote on shape and colour
CROP = 24


class Verdict(NamedTuple):
    """What a clip shows: members of SHAPES, COLOURS and VERDICT_MOTIONS."""

    shape: str
    colour: str
    motion: str


class FrameGuess(NamedTuple):
    """Logits for N frames."""

    mask: Tensor  # [N, H/4, W/4], of the object
    shape: Tensor  # [N, 4]
    colour: Tensor  # [N, 8]


def conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class FrameNet(nn.Module):
    """Frames [N, 3, 128, 192] in -1..1 -> where the object is, its shape and its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.quarter = nn.Sequential(conv(16, 40, stride=2), conv(40, 40))
        self.eighth = nn.Sequential(conv(40, 64, stride=2), conv(64, 64, dilation=2))
        self.sixteenth = nn.Sequential(conv(64, 72, stride=2), conv(72, 72, dilation=2))
        self.join = nn.Sequential(nn.Conv2d(40 + 64 + 72, 40, 1), nn.SiLU())
        self.mask = nn.Conv2d(40, 1, 3, padding=1)
        self.look = conv(64 + 72, 64)
        self.shape = nn.Linear(2 * 64, len(SHAPES))
        self.colour = nn.Sequential(nn.Linear(40 + 40 + 3, 48), nn.SiLU(), nn.Linear(48, len(COLOURS)))

    def forward(self, x: Tensor) -> FrameGuess:
        quarter = self.quarter(self.stem(x))
        eighth = self.eighth(quarter)
        deep = self.sixteenth(eighth)
        size = quarter.shape[-2:]
        joined = self.join(torch.cat([quarter, F.interpolate(eighth, size), F.interpolate(deep, size)], dim=1))
        mask = self.mask(joined)
        look = self.look(torch.cat([eighth, F.interpolate(deep, eighth.shape[-2:])], dim=1))
        # The floor of 0.01 keeps pooling defined where no object is seen.
        near = mask.detach().sigmoid() + 0.01
        near_look = F.avg_pool2d(near, 2)
        strongest = (look * near_look.clamp(max=1)).amax((2, 3))
        colours = [pool(quarter, near), pool(joined, near), pool(F.avg_pool2d(x, 4), near)]
        shape = self.shape(torch.cat([pool(look, near_look), strongest], dim=1))
        return FrameGuess(mask[:, 0], shape, self.colour(torch.cat(colours, dim=1)))


def pool(features: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over space: [N, C, h, w], [N, 1, h, w] -> [N, C]."""
    return (features * weight).sum((2, 3)) / weight.sum((2, 3))


def track_of(mask: Tensor) -> Tensor:
    """Object masks [B, T, h, w] in 0..1 -> track [B, T, 3]: centre x, y (-1..1, y downwards), side length.

    The side is the root of the object's share of the frame. Only the surroundings of the densest place count, so stray
    spots elsewhere do not pull the centre away.
    """
    h, w = mask.shape[-2:]
    flat = mask.flatten(0, 1)
    peak = F.avg_pool2d(flat[:, None], 9, stride=1, padding=4).flatten(1).argmax(1)
    row = torch.arange(h, device=mask.device).view(1, h, 1)
    column = torch.arange(w, device=mask.device).view(1, 1, w)
    peak_row, peak_column = (peak // w).view(-1, 1, 1), (peak % w).view(-1, 1, 1)
    reach = 13 * w / 48
    near = ((row - peak_row).abs() <= reach) & ((column - peak_column).abs() <= reach)
    weight = flat * (flat > 0.3) * near
    area = weight.sum((1, 2))
    # A trace of weight at the peak: where no object is seen, the centre is there.
    total = area + 1e-3
    x = ((weight * column).sum((1, 2)) + 1e-3 * peak_column.flatten()) / total
    y = ((weight * row).sum((1, 2)) + 1e-3 * peak_row.flatten()) / total
    track = torch.stack([(2 * x + 1) / w - 1, (2 * y + 1) / h - 1, (area / (h * w)).sqrt()], dim=-1)
    return track.view(*mask.shape[:2], 3)


class MotionNet(nn.Module):
    """Track [B, T, 3] and small clip [B, 3, T, 64, 96] -> logits [B, 10] of VERDICT_MOTIONS.

    A 3-D convolution sees the surface of the object, and its change, in a window that moves and grows with it (spin); a
    1-D convolution reads this together with the track.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surface = nn.Sequential(
            nn.Conv3d(6, 12, 3, (1, 2, 2), 1, bias=False),
            nn.BatchNorm3d(12),
            nn.SiLU(),
            nn.Conv3d(12, 20, 3, (1, 2, 2), 1, bias=False),
            nn.BatchNorm3d(20),
            nn.SiLU(),
        )
        self.time = nn.Sequential(
            nn.Conv1d(8 + 20, 48, 5, padding=2), nn.SiLU(), nn.Conv1d(48, 48, 5, padding=2), nn.SiLU()
        )
        self.out = nn.Linear(48 * 5, len(VERDICT_MOTIONS))

    def forward(self, track: Tensor, clip: Tensor) -> Tensor:
        window = follow(track, clip)
        # Alike by day and by night, and in a pale reconstruction.
        contrast = window.std((1, 2, 3, 4), keepdim=True) + 0.05
        window = (window - window.mean((2, 3, 4), keepdim=True)) / contrast
        moved = F.pad(window.diff(dim=2), (0, 0, 0, 0, 1, 0))
        surface = self.surface(torch.cat([window, 2 * moved], dim=1)).mean((3, 4))
        place, size = track[..., :2], track[..., 2:].clamp(min=0.02).log()
        centred = torch.cat([place, size], dim=-1)
        centred = centred - centred.mean(1, keepdim=True)
        change = F.pad(centred.diff(dim=1), (0, 0, 1, 0))
        values = torch.cat([place, 4 * centred, 20 * change], dim=-1).transpose(1, 2)
        read = self.time(torch.cat([values, surface], dim=1))
        return self.out(F.adaptive_avg_pool1d(read, 5).flatten(1))


def follow(track: Tensor, clip: Tensor) -> Tensor:
    """A window around the object in every frame -> [B, 3, T, CROP, CROP]; it is 1.2 times the object's side."""
    batch, _, frames, height, width = clip.shape
    # An unsteady window would make a still surface move.
    track = F.avg_pool1d(F.pad(track.transpose(1, 2), (2, 2), mode="replicate"), 5, stride=1).transpose(1, 2)
    side = (1.2 * track[..., 2]).clamp(min=0.1) * (height * width) ** 0.5  # pixels
    step = torch.linspace(-0.5, 0.5, CROP, device=clip.device)
    x = track[..., 0, None] + side[..., None] * step * (2 / width)
    y = track[..., 1, None] + side[..., None] * step * (2 / height)
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, CROP, -1), y[:, :, :, None].expand(-1, -1, -1, CROP)], dim=-1
    ).flatten(0, 1)
    pictures = clip.transpose(1, 2).flatten(0, 1)
    window = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return window.view(batch, frames, 3, CROP, CROP).transpose(1, 2)


class Judge(nn.Module):
    """Both networks and the verdict on whole clips."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = FrameNet()
        self.motion = MotionNet()

    @torch.no_grad()
    def verdicts(self, video: Tensor) -> list[Verdict]:
        """Clips [B, 3, T, H, W] in -1..1 on the judge's device -> a verdict each; other sizes are scaled to 192x128."""
        return [self._verdict(clip) for clip in video]

    def _verdict(self, clip: Tensor) -> Verdict:
        pictures = clip.transpose(0, 1)
        if pictures.shape[-2:] != (HEIGHT, WIDTH):
            pictures = F.interpolate(pictures, (HEIGHT, WIDTH), mode="bilinear", antialias=True)
        guess = self.frames(pictures)
        track = track_of(guess.mask.sigmoid()[None])
        spread = torch.linspace(0, len(pictures) - 1, LOOKS).round().long().to(clip.device)
        shape = guess.shape[spread].log_softmax(1).mean(0)
        colour = guess.colour[spread].log_softmax(1).mean(0)
        small = F.avg_pool2d(pictures, 2).transpose(0, 1)[None]
        motion = self.motion(track, small)[0]
        best = [int(logits.argmax()) for logits in (shape, colour, motion)]
        return Verdict(SHAPES[best[0]], tuple(COLOURS)[best[1]], VERDICT_MOTIONS[best[2]])


def load_judge(path: str | Path = JUDGE_FILE, device: torch.device | str = "cpu") -> Judge:
    """The trained judge; PabError where the file is missing, broken or of another judge."""
    from ..loading import check_keys, read_weights

    judge = Judge()
    weights = read_weights([Path(path)], torch.float32, device)
    check_keys(str(path), judge.state_dict(), weights)
    judge.to(device).load_state_dict(weights)
    return judge.eval()


def save_judge(judge: Judge, path: str | Path) -> None:
    """Writes the weights at half precision."""
    from safetensors.torch import save_file

    weights = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    made = "trained by pab_core/demo/train_judge.py on clips that pab_core/demo/render.py rendered, on nothing else"
    save_file({k: v.cpu().contiguous() for k, v in weights.items()}, path, {"made": made})


if __name__ == "__main__":
    from .train_judge import main

    main()
