"""How much memory a decode takes at its worst moment, told before it starts, and the tiles with which it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..errors import PabError
from .latte import LatteVAE
from .memory import Size, causal_decoder, image_decoder, temporal_decoder
from .open_sora import OpenSoraVAE
from .open_sora_plan import CausalVAE
from .tiling import Tiling, split
from .video_vae import VideoVAE

# Share of the free memory that a decode may plan with: what decode_bytes does not see goes into the rest.
USABLE = 0.9
# What plain decoders need of a GPU by what decode_bytes tells: cuDNN's convolutions want channels last in memory, and
# copy what comes otherwise. Measured of Open-Sora's on an H100; those of acceleration.decoding need no copies.
PLAIN_ON_GPU = 4 / 3
# Sides of tiles to try, in latent pixels, the largest first.
TILE_SIDES = (128, 96, 80, 64, 56, 48, 40, 32, 24, 16)


def decode_bytes(
    vae: VideoVAE, num_frames: int, height: int, width: int, dtype: torch.dtype, tiling: Tiling | None = None
) -> int:
    """Bytes that decoding one clip of so many pixels needs at its worst moment, beside weights and latents.

    Encoding the same clip with the same tiling needs less. The autoencoder may be on the meta device.
    """
    latent_frames, h, w = vae.latent_size(num_frames, height, width)
    size = Size(vae.latent_channels, latent_frames, h, w)
    if isinstance(vae, OpenSoraVAE):
        count = _open_sora(vae, num_frames, size, tiling)
    elif isinstance(vae, CausalVAE):
        count = _open_sora_plan(vae, size, tiling)
    else:
        assert isinstance(vae, LatteVAE)
        count = _latte(vae, size, tiling)
    return count * dtype.itemsize


def _open_sora(vae: OpenSoraVAE, num_frames: int, size: Size, tiling: Tiling | None) -> int:
    """First all of time, in latents of images, then all images; a tiling may hold for either."""
    decoder = vae.spatial_vae.module.decoder
    images = Size(decoder.conv_in.in_channels, num_frames, size.height, size.width)
    chunk = size._replace(frames=max(vae.chunk_latents(num_frames)))
    grid = Grid.of(size, vae.spatial_factor, tiling)
    in_time = (
        size.elements
        + images.elements
        + grid.seam * images.channels * max(vae.chunk_frames(num_frames))
        + temporal_decoder(vae.temporal_vae, grid.tile(chunk))[0]
    )
    at_once = _frames_at_once(num_frames, vae.micro_batch_size or num_frames, tiling)
    pieces = [grid.tile(images._replace(frames=count)) for count in split(num_frames, at_once)]
    video = images.wide(3).larger(vae.spatial_factor)
    peaks = [image_decoder(decoder, piece)[0] for piece in pieces]
    if tiling is not None:
        return max(in_time, images.elements + grid.peak(peaks, video, at_once))
    # The parts of the video are joined at the end; until then there are those done.
    done = [video._replace(frames=at_once * number).elements for number in range(len(pieces))]
    in_space = max(map(sum, zip(peaks, done, strict=True)))
    return max(in_time, 2 * images.elements + max(in_space, 2 * video.elements))


def _open_sora_plan(vae: CausalVAE, size: Size, tiling: Tiling | None) -> int:
    pieces = vae.latent_pieces(size[1:], tiling)
    if not pieces:
        return size.elements + causal_decoder(vae, size)[0]
    grid = Grid.of(size, vae.spatial_factor, tiling)
    peaks = [causal_decoder(vae, grid.tile(size._replace(frames=b - a)))[0] for a, b, _ in pieces]
    kept = [kept for _, _, kept in pieces]
    video = size._replace(channels=3, frames=sum(kept)).larger(vae.spatial_factor)
    return size.elements + grid.peak(peaks, video, max(kept))


def _latte(vae: LatteVAE, size: Size, tiling: Tiling | None) -> int:
    at_once = _frames_at_once(size.frames, vae.frames_at_once, tiling)
    grid = Grid.of(size, vae.spatial_factor, tiling)
    pieces = [grid.tile(size._replace(frames=count)) for count in split(size.frames, at_once)]
    video = size.wide(3).larger(vae.spatial_factor)
    return size.elements + grid.peak([image_decoder(vae.decoder, piece)[0] for piece in pieces], video, at_once)


def _frames_at_once(count: int, most: int, tiling: Tiling | None) -> int:
    return min(count, most, count if tiling is None else tiling.frames)


class Grid(NamedTuple):
    """Tiles in space, in latent pixels."""

    height: int  # of a tile
    width: int
    tiles: int
    seam: int  # latent pixels of the seams that are kept at once
    factor: int

    @classmethod
    def of(cls, size: Size, factor: int, tiling: Tiling | None) -> Grid:
        if tiling is None:
            return cls(size.height, size.width, 1, 0, factor)
        tile = tiling.tile(factor)
        side = tile.side
        tops, lefts = tile.starts(size.height), tile.starts(size.width)
        low, right = (side - (starts[1] - starts[0]) if len(starts) > 1 else 0 for starts in (tops, lefts))
        height, width = min(side, size.height), min(side, size.width)
        ends = [*lefts[1:], size.width] if tile.even else [min(left + side, size.width) for left in lefts]
        seams = [end - left for left, end in zip(lefts, ends, strict=True)]
        # At the last tile of a row: those of the row above, and its own but for that tile's. The last row has none.
        lower = sum(seams) * (len(tops) > 1) + sum(seams[:-1]) * (len(tops) > 2)
        return cls(height, width, len(tops) * len(lefts), lower * low + right * height, factor)

    def tile(self, size: Size) -> Size:
        return size._replace(height=self.height, width=self.width)

    def peak(self, peaks: list[int], result: Size, kept: int) -> int:
        """Of `tiled`, given the peaks of converting a tile of each piece, and how many frames a piece gives at most.

        The result and the seams are there from the second tile on.
        """
        tile = self.tile(result._replace(frames=kept)).larger(self.factor).elements
        later = max([tile, *(peaks if self.tiles > 1 else peaks[1:])])
        seams = self.seam * self.factor**2 * result.channels * kept
        return max(peaks[0], result.elements + seams + later)


def choose_tiling(
    vae: VideoVAE, num_frames: int, height: int, width: int, dtype: torch.dtype, free_bytes: int | None
) -> Tiling | None:
    """The authors' own way of decoding where it fits in the free memory, or that is not known, else the largest tiles
    that do.

    None = whole frames, without tiles. Where whole frames are the authors' way, they are cut into tiles only if fewer
    of them at once do not help.

    Raises:
        PabError: not even the smallest tiles fit.
    """
    if free_bytes is None:
        return vae.authors_tiling
    free = free_bytes
    usable = USABLE / (PLAIN_ON_GPU if _copies(vae) else 1)

    def fits(tiling: Tiling | None) -> bool:
        return decode_bytes(vae, num_frames, height, width, dtype, tiling) <= usable * free

    if fits(vae.authors_tiling):
        return vae.authors_tiling
    tilings = list(_tilings(vae, height, width))
    for tiling in tilings:
        if fits(tiling):
            return tiling
    least = min(decode_bytes(vae, num_frames, height, width, dtype, tiling) for tiling in tilings) / usable
    raise PabError(
        f"Decoding {num_frames} frames of {width} x {height} pixels needs {_mebibytes(least)} of free memory even in "
        f"tiles of {tilings[-1].pixels} pixels, but {_mebibytes(free)} are free. Free some, make a shorter or "
        "smaller video, or decode on the CPU."
    )


def _copies(vae: VideoVAE) -> bool:
    """Whether its convolutions copy their input: on a GPU, by modules whose forward is their class's own."""
    return next(vae.parameters()).is_cuda and not any("forward" in vars(module) for module in vae.modules())


def _tilings(vae: VideoVAE, height: int, width: int) -> Iterator[Tiling]:
    """From the largest to the smallest."""
    factor = vae.spatial_factor
    most = -(-max(height, width) // factor)
    if vae.authors_tiling is not None:
        most = min(most, vae.authors_tiling.pixels // factor)
    for side in (most, *(side for side in TILE_SIDES if side < most)):
        for frames in vae.tile_frames:
            yield Tiling(pixels=side * factor, frames=frames)


def _mebibytes(count: float) -> str:
    return f"{math.ceil(count / 2**20):,} MiB"
