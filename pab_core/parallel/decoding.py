"""VAE decode shared out among ranks: each decodes a run of frames, then all get all frames.

How time can be cut follows from the autoencoder. Open-Sora's decodes pictures one by one after time has run in chunks;
Latte's decodes batches of frames that know nothing of each other; Open-Sora-Plan's is causal, and is cut where its own
tiling cuts it: where that makes a single piece, every rank decodes all. So each rank does what one device would do with
those frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ..autoencoders import CausalVAE, LatteVAE, OpenSoraVAE, Tiling, VideoVAE, choose_tiling
from ..autoencoders.open_sora_plan import LATENT_SCALE
from ..autoencoders.tiling import Progress, split, tiled
from ..devices import free_bytes
from ..pipeline import Pipeline
from .collectives import FRAMES, Collectives, Traffic
from .pipelines import RankPipeline, fields_of, group_or_default


def split_decode(pipe: Pipeline, group: dist.ProcessGroup | None = None) -> Pipeline:
    """The same pipeline with its VAE decode shared out among the ranks of a group.

    Every rank calls `decode` with the same arguments and gets all frames; its `progress` tells of its own part.

    Args:
        pipe: on this rank's device, also one from `attach`.
        group: None: the default group, which must have been initialised.

    Returns:
        `pipe` itself for a group of one rank.
    """
    group = group_or_default(group)
    if dist.get_world_size(group) == 1:
        return pipe
    traffic = pipe.traffic if isinstance(pipe, RankPipeline) else Traffic()
    return SplitDecodePipeline(**fields_of(pipe), whole=pipe, ranks=Collectives(group, traffic))


@dataclass
class SplitDecodePipeline(RankPipeline):
    """See `split_decode`."""

    def decode(
        self,
        latents: Tensor,
        num_frames: int | None = None,
        *,
        tiling: Tiling | Literal["fit"] | None = "fit",
        **settings: Any,
    ) -> Tensor:
        """As Pipeline.decode, on every rank."""
        inner = self.inner()
        vae = inner._vae()
        if tiling == "fit":
            tiling = self._fitting(vae, self.spec.num_frames if num_frames is None else num_frames, latents)
        inner.vae = SplitVAE(vae, self.ranks)  # pyright: ignore[reportAttributeAccessIssue]
        return inner.decode(latents, num_frames, tiling=tiling, **settings)

    def _fitting(self, vae: VideoVAE, num_frames: int, latents: Tensor) -> Tiling | None:
        """Tiles that fit on the fullest of the devices: other tiles make other frames."""
        free = free_bytes(self.device)
        least = None if free is None else self.ranks.least(free, self.device)
        height, width = (side * vae.spatial_factor for side in latents.shape[3:])
        return choose_tiling(vae, num_frames, height, width, next(vae.parameters()).dtype, least)


class SplitVAE:
    """An autoencoder whose `decode` is shared out; all else is the autoencoder's own."""

    def __init__(self, vae: VideoVAE, ranks: Collectives):
        self.vae = vae
        self.ranks = ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    @torch.no_grad()
    def decode(
        self, z: Tensor, num_frames: int, progress: Progress | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """As VideoVAE.decode, on every rank."""
        lengths = free_runs(self.vae, z, num_frames, tiling)
        if len(lengths) == 1:
            return self.vae.decode(z, num_frames, progress, tiling)
        owners = deal(lengths, self.ranks.size)
        sizes = [
            sum(length for length, owner in zip(lengths, owners, strict=True) if owner == rank)
            for rank in range(self.ranks.size)
        ]
        end = list(accumulate(sizes))[self.ranks.rank]
        first = end - sizes[self.ranks.rank]
        height, width = (side * self.vae.spatial_factor for side in z.shape[3:])
        own = z.new_empty(len(z), 3, 0, height, width)
        if first < end:
            own = decode_frames(self.vae, z, num_frames, slice(first, end), progress, tiling)
        return self.ranks.gather(own, 2, sizes, FRAMES)


def free_runs(vae: VideoVAE, z: Tensor, num_frames: int, tiling: Tiling | None) -> list[int]:
    """Lengths of the runs of frames that can be decoded apart from the others, in their order."""
    if isinstance(vae, OpenSoraVAE):
        return [1] * num_frames
    if isinstance(vae, LatteVAE):
        at_once = vae.frames_at_once if tiling is None else min(vae.frames_at_once, tiling.frames)
        return split(num_frames, at_once)
    assert isinstance(vae, CausalVAE), type(vae)
    kept = [piece.kept for piece in vae.latent_pieces(z.shape[2:], tiling)] or [num_frames]
    ends = [min(end, num_frames) for end in accumulate(kept)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return [length for length in lengths if length > 0]


def deal(lengths: Sequence[int], ranks: int) -> list[int]:
    """The rank of each run: neighbours stay together, and each rank gets about as many frames as any other."""
    total = sum(lengths)
    middles = (end - length / 2 for end, length in zip(accumulate(lengths), lengths, strict=True))
    return [int(middle * ranks / total) for middle in middles]


def decode_frames(
    vae: VideoVAE,
    z: Tensor,
    num_frames: int,
    frames: slice,
    progress: Progress | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Some of the frames that `vae.decode` makes of latents [B, Z, T', h, w]: whole runs of `free_runs`."""
    if isinstance(vae, OpenSoraVAE):
        # The chunks in time that hold these frames, then the pictures alone.
        counts, sizes = vae.chunk_frames(num_frames), vae.chunk_latents(num_frames)
        ends = list(accumulate(counts))
        held = [i for i, end in enumerate(ends) if end > frames.start and end - counts[i] < frames.stop]
        some = slice(held[0], held[-1] + 1)
        first = sum(sizes[: held[0]])
        part = vae.denormalize(z[:, :, first : first + sum(sizes[some])])
        latents = vae.decode_temporal(part, sum(counts[some]), tiling)
        start = frames.start - sum(counts[: held[0]])
        latents = latents[:, :, start : start + frames.stop - frames.start]
        return vae.decode_spatial(latents, vae.micro_batch_size, progress, tiling)
    if isinstance(vae, LatteVAE):
        return vae.decode(z[:, :, frames], frames.stop - frames.start, progress, tiling)
    assert isinstance(vae, CausalVAE), type(vae)
    assert tiling is not None, "without tiles it has one run"
    pieces = vae.latent_pieces(z.shape[2:], tiling)
    starts = accumulate((piece.kept for piece in pieces), initial=0)
    own = [piece for piece, start in zip(pieces, starts, strict=False) if frames.start <= start < frames.stop]

    def decode(x: Tensor, kept: int) -> Tensor:
        return vae.decoder(vae.post_quant_conv(x))

    # Not vae.decode: by itself, a piece no larger than a tile would not be cut in space.
    units = (1, vae.spatial_factor)
    video = tiled(decode, z / LATENT_SCALE, own, tiling.tile(vae.spatial_factor), units, progress)
    return video[:, :, : frames.stop - frames.start]
