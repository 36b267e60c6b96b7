"""A run in fused operations, for CUDA GPUs with Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..broadcast import BroadcastRun
from ..broadcast.cache import Fp8Store
from ..broadcast.extrapolation import Extrapolation
from ..broadcast.run import Key
from ..models.layers import Branch, Update

# cuDNN's is the fastest of long sequences on GPUs that have it, and refuses what it cannot do.
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
LEAST_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)  # for which Triton has float8_e4m3fn


def why_not(device: torch.device) -> str | None:
    """What stands against fused operations on a device, in a sentence; None: nothing does."""
    if device.type != "cuda":
        return "Fused operations need a CUDA GPU."
    if find_spec("triton") is None:
        return "Fused operations need Triton, which this build of PyTorch came without."
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is too old for fused operations: they begin with Ampere."
    if "set_priority" not in signature(sdpa_kernel).parameters:
        return f"Fused operations need PyTorch 2.6 or newer, not {torch.__version__}."
    return None


@cache
def why_no_kernels(device: torch.device) -> str | None:
    """As `why_not`, by running one there: Triton builds them with a C compiler, which it looks for only then."""
    try:
        from .fused import residual

        with torch.cuda.device(device):
            residual(torch.zeros(1, 1, 1, 16, device=device))
    except torch.cuda.OutOfMemoryError:
        raise  # which says nothing of kernels, and may be over the next time
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton cannot make kernels on this machine ({lines[-1]}): it needs a C compiler such as gcc."
    return None


def writes_fp8(device: torch.device) -> bool:
    """Whether kernels can write and read what is kept in eight bits; elsewhere PyTorch does."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


@dataclass
class Stream:
    """The residual stream x [B, T, S, D], and what is still to be added to it."""

    x: Tensor
    own: bool = False  # whether x was made here: then sums may take its place
    fp8: bool = False  # whether kernels write and read what is kept in eight bits
    fresh: Any = None  # a fused.Fresh
    key: Key | None = None  # under which that is to be kept
    kept: list[Any] = field(default_factory=list)
    modulation: Sequence[Tensor] = ()  # of the block at hand, see updates.modulations
    before: Tensor | None = None  # x before the branches whose sum is to be kept
    sum_key: Key | None = None  # under which that is to be kept


class FusedRun(BroadcastRun):
    """What it does is the table's, as ever, in fewer kernels: whole blocks come through it, not single updates.

    Updates wait until something is computed from their sum, also over the end of their block. One kernel then adds
    them, writes the one that is to be kept, in eight bits too, and norms the sum as the next product wants it. The sum
    of a group's updates is what the stream has gained from its first to its last. Scores are reused as in any run.
    """

    def run_blocks(self, blocks: Sequence[Any], start: Callable[[], Tensor], cond: Any) -> Tensor:
        """The output [B, T, S, D] of the last of these blocks; `start` makes the input of the first."""
        stream = self._stream(start())
        if (self.step, self.lane) != self._place:
            self._enter(stream.x, cond)
        return self._run(stream, blocks, cond, None)

    def run_shared_blocks(self, blocks: Sequence[Any], x: Tensor, cond: Any, shared: Any) -> Tensor:
        """As run_blocks, of some of the frames; `shared`, a parallel.seam.FrameSeam, computes what needs the others."""
        return self._run(self._stream(x), blocks, cond, shared)

    def _stream(self, x: Tensor) -> Stream:
        return Stream(x.contiguous(), fp8=isinstance(self._store, Fp8Store) and writes_fp8(x.device))

    def _run(self, stream: Stream, blocks: Sequence[Any], cond: Any, shared: Any) -> Tensor:
        from .updates import modulations

        tables = modulations(blocks, cond)
        with sdpa_kernel(ATTENTION, set_priority=True):
            for block, table in zip(blocks, tables, strict=True):
                stream.modulation = table
                if shared is not None:
                    shared.enter(block)
                for branch, update in block.updates():
                    source, last, group = self._due(branch)
                    if source == self.step and group is None:
                        self._compute(stream, block, branch, update, cond, last, shared)
                    elif source == self.step:
                        self._compute_in_group(stream, block, branch, update, cond, last, shared)
                    elif self._reuses_scores(branch):
                        self._compute(stream, block, branch, update, cond, last, shared)
                    elif group is None or branch == group[0]:
                        self._add_kept(stream, branch, source, last, cond)
            self._settle(stream, cond)
            if stream.before is not None:
                self._add_gain(stream, cond)
        return stream.x

    def _due(self, branch: Branch) -> tuple[int, int | None, tuple[Branch, ...] | None]:
        """`_source` of a branch, and the group that it belongs to."""
        return *self._source(branch), self._group.get(branch)

    def _reuses_scores(self, branch: Branch) -> bool:
        return self.table.scores and branch.kind != "mlp"

    def _add_kept(self, stream: Stream, branch: Branch, source: int, last: int | None, cond: Any) -> None:
        """What is used in place of the update of a branch, or of the group that it is the first of, is to be added."""
        parts = self._kept_rows(branch, source, last) if stream.fp8 else None
        self._make_room(stream, 1 if parts is None else len(parts), cond)
        # What a store lends it may want back: taken when there is room.
        stream.kept += [self._reused(branch, cond, source, last)] if parts is None else parts

    def _kept_rows(self, branch: Branch, source: int, last: int | None) -> list[Any] | None:
        """The same as Rows to be added up, or None where it is more than a weighted sum of what is kept."""
        from .fused import Rows

        store, sources, weights = self._store, [source], [1.0]
        assert isinstance(store, Fp8Store)
        freed = sources if last == self.step else ()
        if isinstance(self._predictor, Extrapolation):
            found = self.table.sources(branch, self.step)
            sources, weights = found, self._predictor.weights(self.step, found)
            freed = self.table.freed(branch, self.step)
        elif self._predictor is not None:
            return None
        kept = [store.take_encoded((self.lane, branch, s)) for s in sources[: len(weights)]]
        for s in freed:
            store.drop((self.lane, branch, s))
        return [
            Rows(values, scales if weight == 1 else scales * weight)
            for weight, (values, scales) in zip(weights, kept, strict=True)
        ]

    def _make_room(self, stream: Stream, count: int, cond: Any) -> None:
        """For so many kept updates more that are to be added."""
        from .fused import MOST_KEPT

        if len(stream.kept) + count > MOST_KEPT:
            self._settle(stream, cond)

    def _compute_in_group(
        self, stream: Stream, block: Any, branch: Branch, update: Update, cond: Any, last: int | None, shared: Any
    ) -> None:
        """As _compute; what the stream gains from the first of the group to its last is kept, if that is reused.

        A model may add something else on the way, between two calls of `run_blocks`: that is left out.
        """
        group = self._group[branch]
        if last is not None and branch == group[0]:
            self._drop_decided(branch)
        if last is not None and stream.before is None:
            self._settle(stream, cond)
            stream.before, stream.own, stream.sum_key = stream.x, False, (self.lane, group[0], self.step)
        self._compute(stream, block, branch, update, cond, None, shared)
        if last is not None and branch == group[-1]:
            self._keep_sum(stream, self._add_gain(stream, cond), cond)

    def _add_gain(self, stream: Stream, cond: Any) -> Key:
        """What the stream gained is added to the sum; -> its key."""
        self._settle(stream, cond)
        assert stream.before is not None
        assert stream.sum_key is not None
        key, gain = stream.sum_key, stream.x - stream.before
        stream.before = None
        self._sums[key] = self._sums[key] + gain if key in self._sums else gain
        self.peak_bytes = max(self.peak_bytes, self.kept_bytes)
        return key

    def _keep_sum(self, stream: Stream, key: Key, cond: Any) -> None:
        """The sum of a group is complete: it is kept."""
        from .fused import rows_in_fp8

        value = self._sums.pop(key)
        self._keep_rows(key, rows_in_fp8(value) if stream.fp8 else value, value.dtype, cond)

    def _compute(
        self, stream: Stream, block: Any, branch: Branch, update: Update, cond: Any, last: int | None, shared: Any
    ) -> None:
        from .fused import Fresh
        from .updates import fused_update

        together = None if branch.kind != "temporal" else shared
        fused = fused_update(block, branch.kind, stream.x.shape[1] if together is None else together.num_frames)
        if shared is not None:
            update = shared.shared(branch, update)
        if fused is None or self._reuses_scores(branch) or (together is not None and not together.shares_gated(branch)):
            self._settle(stream, cond)
            plain = branch in self._group  # its sum is kept elsewhere
            value = update(stream.x, cond) if plain else self(branch, update, stream.x, cond)
            stream.x, stream.own = stream.x + value, True
            return
        if together is None:
            norm, gate, fp8 = fused.prepare(block, stream.modulation)
            h = fused.compute(block, self._settle(stream, cond, norm, fp8), cond)
        else:
            self._settle(stream, cond)
            gate, h = together.gated(fused.gated, stream.x)
        stream.fresh = Fresh(gate, h)
        stream.key = (self.lane, branch, self.step) if last is not None else None

    def _settle(self, stream: Stream, cond: Any, norm: Any = None, fp8: bool = False) -> Any:
        """Adds what waits; -> what the next product reads: x, its norm, either in eight bits."""
        from .fused import residual

        if stream.fresh is None and not stream.kept and norm is None and not fp8:
            return stream.x
        key = stream.key
        x, rows, kept = residual(
            stream.x,
            stream.fresh,
            stream.kept,
            norm=norm,
            rows_fp8=fp8,
            keep=key is not None,
            keep_fp8=stream.fp8,
            in_place=stream.own,
        )
        stream.own = stream.own or stream.fresh is not None or bool(stream.kept)
        stream.x, stream.fresh, stream.key, stream.kept = x, None, None, []
        if key is not None:
            assert kept is not None
            self._keep_rows(key, kept, x.dtype, cond)
        return rows

    def _keep_rows(self, key: Key, kept: Any, dtype: torch.dtype, cond: Any) -> None:
        """As `_keep`, of what `residual` gave to keep: a tensor, or Rows of one of type dtype."""
        from .fused import Rows

        if not isinstance(kept, Rows):
            return self._keep(key, kept, cond)
        assert isinstance(self._store, Fp8Store)
        self._store.keep_encoded(key, kept.values, kept.scales, dtype)
        if self._predictor is not None:
            self._predictor.note(key[0], key[1], cond)
        self.peak_bytes = max(self.peak_bytes, self.kept_bytes)
