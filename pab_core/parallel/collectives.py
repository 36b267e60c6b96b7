"""The collectives of the parallel methods, over torch.distributed (NCCL, or gloo on the CPU), each of them counted.

A wait ends with the process group's own timeout, so a dead peer is an error and never a hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

# Purposes.
TEMPORAL = "temporal attention"  # what broadcast saves
PREDICTION = "prediction"  # at a model's end
AGREEMENT = "agreement"
FRAMES = "frames"  # of a decode


@dataclass
class Count:
    """Bytes of one rank.

    volume: as the paper counts, the whole of what a rank puts into an exchange, or has after a gather, its own part
    with it. padded: the same if every shard were as large as the largest, or as it really is where shards are padded.
    sent: what leaves the rank.
    """

    calls: int = 0
    volume: int = 0
    padded: int = 0
    sent: int = 0


@dataclass
class Traffic:
    """What the ranks of an attachment told each other, by kind of collective and purpose, since the last `clear`."""

    rows: dict[tuple[str, str], Count] = field(default_factory=dict)

    def add(self, kind: str, purpose: str, volume: int, padded: int, sent: int) -> None:
        row = self.rows.setdefault((kind, purpose), Count())
        row.calls += 1
        row.volume += volume
        row.padded += padded
        row.sent += sent

    def calls(self, purpose: str) -> int:
        return sum(row.calls for (_, of), row in self.rows.items() if of == purpose)

    def clear(self) -> None:
        self.rows.clear()


class Collectives:
    """Of one group of ranks. Sizes are those of the shards of an axis, by rank; they may differ."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic):
        self.group = group
        self.traffic = traffic
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def exchange(
        self, x: Tensor, cut: int, cut_sizes: Sequence[int], join: int, join_sizes: Sequence[int], purpose: str
    ) -> Tensor:
        """All-to-all: x, all of axis `cut` and this rank's shard of `join` -> its shard of `cut`, all of `join`."""
        pieces = self._swap(list(x.split(list(cut_sizes), dim=cut)), join, join_sizes)
        received = torch.cat(pieces, dim=join)
        # Of the rank with the largest shards, this is what all would send if shards were padded.
        larger = max(x.nbytes, received.nbytes)
        kept = pieces[self.rank].nbytes
        self.traffic.add("all-to-all", purpose, x.nbytes, larger, x.nbytes - kept)
        return received

    def gather(self, x: Tensor, dim: int, sizes: Sequence[int], purpose: str) -> Tensor:
        """All-gather of the shards of an axis; those smaller than the largest are padded on their way."""
        most = max(sizes)
        x = x.movedim(dim, 0)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x
        whole = x.new_empty(self.size * most, *x.shape[1:])
        # torch 2.13 renamed it and warns of the former name.
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        all_gather(whole, padded, group=self.group)
        row = padded[:1].nbytes
        self.traffic.add("all-gather", purpose, sum(sizes) * row, whole.nbytes, (self.size - 1) * padded.nbytes)
        parts = [part[:size] for part, size in zip(whole.split(most), sizes, strict=True)]
        return torch.cat(parts).movedim(0, dim).contiguous()  # some kernels want it so

    def reduce_scatter(self, x: Tensor, dim: int, sizes: Sequence[int], purpose: str) -> Tensor:
        """x is this rank's term of a sum -> this rank's shard of the sum.

        An all-to-all and a sum in the order of the ranks: as many bytes, any sizes, and the same result each time.
        """
        parts = self._swap(list(x.split(list(sizes), dim=dim)), dim, [sizes[self.rank]] * self.size)
        row = x.nbytes // x.shape[dim]
        own = parts[self.rank].nbytes
        self.traffic.add("reduce-scatter", purpose, x.nbytes, self.size * max(sizes) * row, x.nbytes - own)
        total = parts[0].float() if x.dtype.itemsize < 4 else parts[0]
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any rank says so."""
        told = torch.tensor([int(flag)], dtype=torch.int32, device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        self.traffic.add("all-reduce", AGREEMENT, 4, 4, 4)
        return bool(told.item())

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of the ranks' numbers."""
        told = torch.tensor([number], dtype=torch.int64, device=device)
        dist.all_reduce(told, dist.ReduceOp.MIN, group=self.group)
        self.traffic.add("all-reduce", AGREEMENT, 8, 8, 8)
        return int(told.item())

    def first(self, flag: bool, device: torch.device) -> bool:
        """What the first rank says."""
        return self.any(flag and self.rank == 0, device)

    def _swap(self, pieces: list[Tensor], dim: int, sizes: Sequence[int]) -> list[Tensor]:
        """Piece i goes to rank i; of what comes, from rank i, the axis `dim` has sizes[i]."""
        counts = [piece.numel() for piece in pieces]
        send = pieces[0].new_empty(sum(counts))
        for part, piece in zip(send.split(counts), pieces, strict=True):
            part.view(piece.shape).copy_(piece)
        own = list(pieces[self.rank].shape)
        shapes = [[*own[:dim], size, *own[dim + 1 :]] for size in sizes]
        expected = [torch.Size(shape).numel() for shape in shapes]
        received = send.new_empty(sum(expected))
        dist.all_to_all_single(received, send, expected, counts, group=self.group)
        return [part.view(shape) for part, shape in zip(received.split(expected), shapes, strict=True)]
