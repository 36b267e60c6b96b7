"""Random training clips and frames, rendered on the device, and how the trainings cut them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .render import frame_table, render, trace_frames
from .scenes import Scenes, sample_scenes

FRAMES, HEIGHT, WIDTH, FPS = 34, 128, 192, 16
SUPERSAMPLE = 2


class ClipSource:
    """Draws scenes of one split and renders them. `chunk` clips are traced at once; compiled, always that many."""

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        compiled: bool,
        split: str = "train",
        chunk: int = 16,
        num_frames: int = FRAMES,
        fps: int = FPS,
    ):
        self.device, self.split, self.chunk = device, split, chunk
        self.num_frames, self.fps = num_frames, fps
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.trace = torch.compile(trace_frames, dynamic=False) if compiled else None

    def scenes(self, count: int) -> Scenes:
        return sample_scenes(count, self.generator, self.device, split=self.split)

    @torch.no_grad()
    def render(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """-> video [B, 3, T, H, W] in [-1, 1], object mask [B, T, H, W]."""
        return render(scenes, self.num_frames, HEIGHT, WIDTH, self.fps, SUPERSAMPLE, chunk=self.chunk, trace=self.trace)

    def clips(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of clips [B, 3, T, H, W] and masks [B, 1, T, H, W]."""
        while True:
            video, mask = self.render(self.scenes(count))
            yield video, mask[:, None]

    def chunks(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same cut as Open-Sora's autoencoder cuts clips: [2B, 3, 17, H, W] and masks [2B, 1, 17, H, W]."""
        for video, mask in self.clips(count):
            yield chunks(video), chunks(mask)

    @torch.no_grad()
    def frames(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of single frames, each of another scene: [batch, 3, 1, H, W] and masks [batch, 1, 1, H, W].

        As many are traced at once as a chunk of clips has frames, so that the compiled tracer serves both.
        """
        count = self.chunk * self.num_frames
        while True:
            table = frame_table(self.scenes(count), self.num_frames, self.fps)
            moment = torch.randint(self.num_frames, (count,), generator=self.generator).to(self.device)
            rows = torch.arange(count, device=self.device) * self.num_frames + moment
            picked = {name: values[rows] for name, values in table.items()}
            image, mask = (self.trace or trace_frames)(picked, HEIGHT, WIDTH, SUPERSAMPLE)
            yield from zip(
                image[:, :, None].split(batch)[: count // batch],
                mask[:, None, None].split(batch)[: count // batch],
                strict=True,
            )


def chunks(video: Tensor) -> Tensor:
    """[B, C, 34, H, W] -> [2B, C, 17, H, W], as Open-Sora's autoencoder cuts it."""
    return torch.cat(video.split(17, dim=2))


def object_windows(video: Tensor, mask: Tensor, side: int, random_share: float = 0.25) -> tuple[Tensor, Tensor]:
    """Cuts a window of side x side pixels out of each sample, near its object or (a share of them) anywhere.

    video [N, 3, T, H, W], mask [N, 1, T, H, W] -> both cut, contiguous.
    """
    count, height, width = len(video), *video.shape[3:]
    seen = mask.sum(dim=(1, 2))  # [N, H, W]

    def starts(size: int, weight: Tensor) -> Tensor:
        places = torch.arange(size, device=video.device)
        centre = (weight * places).sum(1) / weight.sum(1).clamp(min=1e-3)
        around = centre - side / 2 + (torch.rand(count, device=video.device) - 0.5) * side * 0.6
        anywhere = torch.rand(count, device=video.device) * (size - side)
        chosen = torch.where(torch.rand(count, device=video.device) < random_share, anywhere, around)
        return chosen.round().clamp(0, size - side).long()[:, None] + torch.arange(side, device=video.device)

    rows, columns = starts(height, seen.sum(2)), starts(width, seen.sum(1))  # each [N, side]
    samples = torch.arange(count, device=video.device)[:, None, None]

    def cut(x: Tensor) -> Tensor:
        windows = x.movedim(0, 2).flatten(0, 1)  # [C T, N, H, W]
        windows = windows[:, samples, rows[:, :, None], columns[:, None, :]]  # [C T, N, side, side]
        return windows.unflatten(0, x.shape[1:3]).movedim(2, 0).contiguous()

    return cut(video), cut(mask)
