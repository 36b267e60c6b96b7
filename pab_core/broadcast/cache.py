"""Where a run keeps the updates that it will reuse, and how much room they take, known before the run.

As computed (`PlainStore`) or in eight bits (`Fp8Store`), on the device of the run. Others may keep them elsewhere.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import PabError
from ..models.layers import Branch
from .schedule import ScheduleTable

Storage = Literal["plain", "fp8", "host"]
_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max
_SCALE_BYTES = 4  # a float32 for each row


class Store(Protocol):
    """Keeps tensors by key, from `keep` to `drop`. One store serves one run.

    A store may also have `prefetch(keys)`, called at the start of each step with the keys that the step will take.
    """

    def keep(self, key: Hashable, value: Tensor) -> None: ...

    def take(self, key: Hashable) -> Tensor:
        """The tensor, in the shape and type in which it was kept; it stays kept."""
        ...

    def drop(self, key: Hashable) -> None: ...

    @property
    def held_bytes(self) -> int: ...


class PlainStore:
    """Keeps tensors as they are, where they are."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}
        self.held_bytes = 0

    def keep(self, key: Hashable, value: Tensor) -> None:
        assert key not in self._kept
        self._kept[key] = value
        self.held_bytes += value.nbytes

    def take(self, key: Hashable) -> Tensor:
        return self._kept[key]

    def drop(self, key: Hashable) -> None:
        self.held_bytes -= self._kept.pop(key).nbytes


class Fp8Store:
    """Keeps tensors as float8_e4m3fn with a float32 scale for each row (token), so that a loud token costs the others
    no precision: 3 bits of mantissa, a relative error of at most 1/16 in each number."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor, Tensor, torch.dtype]] = {}
        self.held_bytes = 0

    def keep(self, key: Hashable, value: Tensor) -> None:
        self.keep_encoded(key, *encode_fp8(value), value.dtype)

    def take(self, key: Hashable) -> Tensor:
        return decode_fp8(*self._kept[key])

    def keep_encoded(self, key: Hashable, value: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """What `encode_fp8` made of a tensor of type dtype: for those who melt it into other work."""
        assert key not in self._kept
        self._kept[key] = value, scale, dtype
        self.held_bytes += value.nbytes + scale.nbytes

    def take_encoded(self, key: Hashable) -> tuple[Tensor, Tensor]:
        return self._kept[key][:2]

    def drop(self, key: Hashable) -> None:
        value, scale, _ = self._kept.pop(key)
        self.held_bytes -= value.nbytes + scale.nbytes


def encode_fp8(value: Tensor) -> tuple[Tensor, Tensor]:
    """value [..., D] -> the same in eight bits, and its scales, float32 [..., 1]."""
    # A row of zeros has no scale of its own: any does.
    scale = (value.abs().amax(dim=-1, keepdim=True).float() / _FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return (value / scale).to(_FP8), scale


def decode_fp8(value: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (value.float() * scale).to(dtype)


def make_store(storage: str = "plain") -> Store:
    """The store of that name; PabError where there is none. For one run."""
    if storage == "plain":
        return PlainStore()
    if storage == "fp8":
        return Fp8Store()
    if storage == "host":
        from .host_cache import HostCache

        return HostCache()
    raise PabError(f"There is no storage named '{storage}' for reused updates: choose plain, fp8 or host.")


def update_bytes(shape: Sequence[int], dtype: torch.dtype, storage: Storage = "plain") -> int:
    """Bytes of one kept update [..., D] of a model that computes in `dtype`."""
    if storage == "fp8":
        return math.prod(shape[:-1]) * (shape[-1] + _SCALE_BYTES)
    return math.prod(shape) * dtype.itemsize


def predicted_cache_bytes(table: ScheduleTable, size: int | Callable[[Branch], int], lanes: int = 1) -> int:
    """The most bytes that a run by this table will hold for reuse at one moment, known before the run.

    The run is followed branch by branch, since updates are kept and freed in the middle of a step. A table that is
    decided in the run (TeaCache) holds one update from the first step on. The one that a block is using is not counted.

    Args:
        size: bytes of one kept update, from `update_bytes`; a function of the branch where branches differ, as for
            reused scores.
        lanes: 2 where guidance calls the model once with the prompt and once without.
    """
    size_of = size if callable(size) else lambda branch: size
    if table.decide is not None:
        return lanes * size_of(table.branches[0])
    held = most = 0
    for step in range(table.steps):
        for _ in range(lanes):
            for branch in table.keepers:
                if table.source[branch][step] == step and (branch, step) in table.last_use:
                    held += size_of(branch)
                held -= size_of(branch) * len(table.freed(branch, step))
                most = max(most, held)
    return most
