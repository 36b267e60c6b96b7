"""Converting a clip piece by piece, so that memory is bounded by a tile: chunks in time, overlapping tiles in space.

Source of the scheme: Open-Sora-Plan v1.1.0's causal autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PabError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile in pixels and frames, and the same in latents; the defaults are those of the authors' pipeline.

    A clip no larger than one tile is worked on whole. `overlap`: share of a tile that its neighbour covers too.
    """

    pixels: int = 512
    frames: int = 29
    latent_pixels: int = 64
    latent_frames: int = 8
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if min(self.frames, self.latent_frames) < 2:
            raise PabError("A VAE tile needs at least 2 frames and 2 latent frames: neighbouring chunks share one.")
        if not 0 <= self.overlap < 1 or int(min(self.pixels, self.latent_pixels) * (1 - self.overlap)) < 1:
            raise PabError(
                f"VAE tiles of {self.latent_pixels} latent pixels that overlap by {self.overlap:g} never advance; "
                "take larger tiles or a smaller overlap."
            )


def exceeds(x: Tensor, frames: int, pixels: int) -> bool:
    """Whether x [B, C, T, h, w] is larger than one tile."""
    return x.shape[2] > frames or max(x.shape[3:]) > pixels


def tiled(
    convert: Callable[[Tensor], Tensor],
    x: Tensor,
    frames: int,
    pixels: int,
    out_pixels: int,
    overlap: float,
    progress: Progress | None = None,
) -> Tensor:
    """Converts x [B, C, T, h, w] piece by piece.

    Time is cut into chunks of `frames` that share a frame, which is dropped from the later chunk; each chunk into tiles
    of `pixels` a side, of which a share of `overlap` is covered twice. A converted tile has `out_pixels` a side.
    """
    step = int(pixels * (1 - overlap))
    starts = [list(range(0, size, step)) for size in x.shape[3:]]
    chunks = list(_chunks(x.shape[2], frames))
    total = len(chunks) * len(starts[0]) * len(starts[1])
    seam = int(out_pixels * overlap)
    done = 0
    converted: list[Tensor] = []
    for first, end in chunks:
        rows: list[Tensor] = []
        above: list[Tensor] = []
        for top in starts[0]:
            row: list[Tensor] = []
            for column, left in enumerate(starts[1]):
                tile = convert(x[:, :, first:end, top : top + pixels, left : left + pixels])
                if above:
                    tile = blend(above[column], tile, seam, dim=3)
                if row:
                    tile = blend(row[-1], tile, seam, dim=4)
                row.append(tile)
                done += 1
                if progress is not None:
                    progress(done, total)
            kept = out_pixels - seam
            rows.append(torch.cat([tile[:, :, :, :kept, :kept] for tile in row], dim=4))
            above = row
        chunk = torch.cat(rows, dim=3)
        converted.append(chunk[:, :, 1:] if converted else chunk)
    return torch.cat(converted, dim=2)


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """First and end frame of each chunk: 6 in chunks of 3 -> (0, 3), (2, 5), (4, 6)."""
    for first in range(0, max(count - 1, 1), size - 1):
        yield first, min(first + size, count)


def blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """The tile with its first `extent` rows or columns faded over from the last ones of its neighbour."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return tile
    shape = [extent if axis == dim else 1 for axis in range(tile.ndim)]
    share = (torch.arange(extent, dtype=torch.float64) / extent).view(shape)
    old = before.narrow(dim, before.shape[dim] - extent, extent) * (1 - share).to(before)
    new = tile.narrow(dim, 0, extent) * share.to(tile)
    return torch.cat([old + new, tile.narrow(dim, extent, tile.shape[dim] - extent)], dim=dim)
