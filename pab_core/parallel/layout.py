"""Which part of a clip a rank holds during one call of the model: a run of latent frames, all tokens of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..models.latte_layers import Conditioning as LatteConditioning
from ..models.stdit3 import Conditioning as STDiT3Conditioning


def shares(count: int, ranks: int) -> list[int]:
    """`count` things dealt to ranks as evenly as can be, the first ranks have one more: 15 to 4 -> [4, 4, 4, 3]."""
    least, more = divmod(count, ranks)
    return [least + (rank < more) for rank in range(ranks)]


@dataclass(frozen=True)
class Layout:
    """The shards of one call of the model, by rank, and what its blocks are given on this rank."""

    rank: int
    frames: list[int]  # latent frames of each rank where x is cut along time
    tokens: list[int]  # tokens of each rank where x is cut along the tokens of a frame
    whole: Any  # the model's Conditioning, of all frames
    own: Any  # the same, of this rank's frames

    @classmethod
    def of(cls, x: Tensor, cond: Any, rank: int, ranks: int) -> Layout:
        """x [B, T, S, D] and the conditioning, both of all frames."""
        frames = shares(x.shape[1], ranks)
        return cls(rank, frames, shares(x.shape[2], ranks), cond, cut_conditioning(cond, _span(frames, rank)))

    @property
    def span(self) -> slice:
        """This rank's frames."""
        return _span(self.frames, self.rank)

    def take(self, x: Tensor) -> Tensor:
        """x [B, T, S, D], of all frames or of this rank's -> of this rank's."""
        return x if x.shape[1] == self.frames[self.rank] else x[:, self.span].contiguous()

    def put(self, x: Tensor) -> Tensor:
        """This rank's frames in their place in a clip of zeros: [B, T, S, D]."""
        clip = x.new_zeros(x.shape[0], sum(self.frames), *x.shape[2:])
        clip[:, self.span] = x
        return clip


def cut_conditioning(cond: Any, frames: slice) -> Any:
    """What a model gives to every block, for some of its frames."""
    if isinstance(cond, STDiT3Conditioning):
        # One row for all frames, or a row for each where some are given.
        modulation = cond.modulation if cond.modulation.shape[1] == 1 else cond.modulation[:, frames]
        return replace(cond, modulation=modulation, angles=cond.angles[frames])
    assert isinstance(cond, LatteConditioning), type(cond)
    return replace(cond, token_bias=None if cond.token_bias is None else cond.token_bias[:, frames])


def _span(sizes: list[int], rank: int) -> slice:
    end = list(accumulate(sizes))[rank]
    return slice(end - sizes[rank], end)
