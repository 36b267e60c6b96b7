"""Converting a clip piece by piece, so that memory is bounded by a tile: pieces in time, overlapping tiles in space.

Every autoencoder here goes through `tiled`; they differ in how they cut time. Tiles are spread evenly, all of one size,
unless it must be as Open-Sora-Plan's authors have it: they start tiles at fixed steps, and a sliver that is left at the
edge is worked on alone, with statistics of its own. diffusers' own AutoencoderKL.enable_tiling is not used: it leaves
such slivers, its sizes are kept on the module, it holds all tiles of a batch before it joins them, it tells no
progress, and it knows neither Open-Sora's temporal part nor Latte's temporal decoder.

Source of the scheme: Open-Sora-Plan v1.1.0's causal autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import PabError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tiling:
    """How much of a clip is worked on at once; the sizes are those of Open-Sora-Plan's authors.

    pixels: side of a tile. frames: most frames of a tile; see each autoencoder's `decode` for what fewer change.
    overlap: share of a tile's side that its neighbour covers too; the seam is blended over it. even: spread the tiles
    evenly, so that all are of one size; else they start at fixed steps and the last are cut off by the edge (and may
    overlap by more than a half: each fades over from the one before, as the authors have it).
    """

    pixels: int = 512
    frames: int = 29
    overlap: float = 0.25
    even: bool = True

    def __post_init__(self) -> None:
        if self.pixels < 1 or self.frames < 1:
            raise PabError(f"A VAE tile needs pixels and frames, but has {self.pixels} and {self.frames}.")
        if not (0 <= self.overlap <= 0.5 or (not self.even and 0 <= self.overlap < 1)):
            raise PabError(
                f"VAE tiles overlap by a share of 0 to 0.5 of their side, not {self.overlap:g}: beyond a half, three "
                "tiles would meet in one place."
            )

    def tile(self, spatial_factor: int) -> Tile:
        """The same in latent pixels; PabError where that is too small."""
        side = self.pixels // spatial_factor
        if side < 1 or (side < 2 and self.overlap):
            raise PabError(
                f"A VAE tile of {self.pixels} pixels is {side} latent pixels, too few; take at least "
                f"{2 * spatial_factor} pixels."
            )
        return Tile(side, int(side * self.overlap), self.even)


class Tile(NamedTuple):
    """A square tile in latent pixels."""

    side: int
    overlap: int
    even: bool

    def starts(self, size: int) -> list[int]:
        """Where tiles start along an axis. Of 6 that share 2, on 10: the fewest, [0, 4], or in steps, [0, 4, 8]."""
        step = self.side - self.overlap
        if not self.even:
            return list(range(0, size, step))
        count = 1 if size <= self.side else -(-(size - self.overlap) // step)
        return [round(i * (size - self.side) / (count - 1)) for i in range(count)] if count > 1 else [0]


class Piece(NamedTuple):
    """Frames `first` to `end` of the input are converted together; of the result the last `kept` frames are kept."""

    first: int
    end: int
    kept: int


def separate(taken: Sequence[int], kept: Sequence[int]) -> list[Piece]:
    """Pieces that know nothing of each other, by the frames that each takes and gives."""
    ends = list(accumulate(taken))
    return [Piece(end - frames, end, given) for end, frames, given in zip(ends, taken, kept, strict=True)]


def split(count: int, size: int) -> list[int]:
    """Lengths of the parts of `size` that make `count`, the last maybe shorter: 51 in 20s -> [20, 20, 11]."""
    return [min(size, count - start) for start in range(0, count, size)]


def tiled(
    convert: Callable[[Tensor, int], Tensor],
    x: Tensor,
    pieces: Sequence[Piece],
    tile: Tile,
    units: tuple[int, int],
    progress: Progress | None = None,
) -> Tensor:
    """Converts x [B, C, T, h, w] tile by tile; memory: the result, one tile's conversion, the seams of a row of tiles.

    A row is joined from left to right, then faded over from the row above. The authors of tiles in steps fade each tile
    from the one above first, which leaves a trace where four tiles meet.

    Args:
        convert: tile [B, C, t, h, w] and the number of frames to keep -> a new tensor of at least so many frames.
        pieces: how time is cut.
        units: pixels of x, and of the result, that a latent pixel stands for.
        progress: called with the tiles done and those in all after each; what it raises ends the work.
    """
    unit, out_unit = units
    size = [count // unit for count in x.shape[3:]]
    rows, columns = (_spans(count, tile) for count in size)
    total = len(pieces) * len(rows) * len(columns)
    out = x.new_empty(0)
    done = start = 0
    for piece in pieces:
        above: list[Tensor] = []  # the lower seams of the row above
        for row in rows:
            seams: list[Tensor] = []
            left = x.new_empty(0)
            for column in columns:
                part = x[:, :, piece.first : piece.end, row.taken(unit), column.taken(unit)]
                made = convert(part, piece.kept)[:, :, -piece.kept :]
                if not done:
                    frames = sum(piece.kept for piece in pieces)
                    out = made.new_empty(*made.shape[:2], frames, *(count * out_unit for count in size))
                width, height = column.kept * out_unit, row.kept * out_unit
                if above and not tile.even:
                    blend(made, above[len(seams)], dim=3)
                if seams:
                    blend(made, left, dim=4)
                # Copies, because a view would hold the whole tile while the next is made.
                left = made[..., width:].clone()
                if tile.even:
                    made = made[..., :width]
                seams.append(made[:, :, :, height:].clone())
                if above and tile.even:
                    blend(made, above[len(seams) - 1], dim=3)
                to = out[:, :, start : start + piece.kept, row.placed(out_unit), column.placed(out_unit)]
                to.copy_(made[:, :, :, :height, :width])
                del part, made, to
                done += 1
                if progress is not None:
                    progress(done, total)
            above = seams
        start += piece.kept
    return out


class _Span(NamedTuple):
    """A tile along one axis, in latent pixels: `kept` of it, from `first` on, go to the result as they are."""

    first: int
    end: int | None  # None: to the edge
    kept: int

    def taken(self, unit: int) -> slice:
        return slice(self.first * unit, None if self.end is None else self.end * unit)

    def placed(self, unit: int) -> slice:
        return slice(self.first * unit, (self.first + self.kept) * unit)


def _spans(size: int, tile: Tile) -> list[_Span]:
    # Pixels beyond a whole latent one go to the last of even tiles, as they go to the conversion of the whole; the
    # authors' tiles take them as far as they reach.
    return [
        _Span(first, None if tile.even and first + tile.side >= size else first + tile.side, after - first)
        for first, after in pairwise([*tile.starts(size), size])
    ]


def blend(tile: Tensor, before: Tensor, dim: int) -> None:
    """Fades the tile, in place, over from its neighbour: `before` is what the neighbour made of their common part."""
    extent = before.shape[dim]
    if extent == 0:
        return
    shape = [extent if axis == dim else 1 for axis in range(tile.ndim)]
    share = (torch.arange(extent, dtype=torch.float64) / extent).view(shape)
    edge = tile.narrow(dim, 0, extent)
    edge.mul_(share.to(edge)).add_(before * (1 - share).to(before))
