"""Updates that wait for their reuse in the host's memory: on the device are only those under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..slots import Slot, side_stream

LEAVING = 2  # updates on their way to the host
COMING = 2  # updates on their way back
IN_USE = 3  # updates that were taken last, as many as a block has branches


class HostCache:
    """A store for BroadcastRun: what it keeps goes to the host (pinned memory, for a GPU), and comes back shortly
    before it is taken, in the order that `prefetch` was told.

    What `take` gives holds until three more were taken. One cache serves one run, on the device of the first update.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Update] = {}
        self._due: deque[Hashable] = deque()
        self._leaving: list[Slot] = []
        self._free: list[Slot] = []
        self._coming: dict[Hashable, Slot] = {}
        self._lent: deque[Slot] = deque()
        self._size = 0  # bytes of a slot

    @staticmethod
    def device_bytes(update: int) -> int:
        """What it takes on the device for updates of so many bytes each."""
        return (LEAVING + COMING + IN_USE) * update

    def keep(self, key: Hashable, value: Tensor) -> None:
        self._make_slots(value)
        host = torch.empty(value.numel() * value.element_size(), dtype=torch.uint8, pin_memory=value.is_cuda)
        slot = self._leaving.pop(0)
        self._leaving.append(slot)
        arrived = slot.send(value, host)
        self._kept[key] = _Update(host, value.shape, value.dtype, arrived)

    def prefetch(self, keys: Iterable[Hashable]) -> None:
        """The keys that will be taken next, in order."""
        self._due = deque(keys)
        # What came in vain gives way.
        for key in [key for key in self._coming if key not in self._due]:
            self._free.append(self._coming.pop(key))
        self._fetch()

    def take(self, key: Hashable) -> Tensor:
        update = self._kept[key]
        if len(self._lent) == IN_USE:
            self._lent[0].used()
            self._free.append(self._lent.popleft())
        if key in self._due:
            while self._due.popleft() != key:
                pass
        slot = self._coming.pop(key, None)
        if slot is None:
            if not self._free:
                self._free.append(self._coming.pop(next(iter(self._coming))))
            slot = self._free.pop(0)
            slot.fill(key, update.host, update.arrived)
        slot.wait()
        self._lent.append(slot)
        self._fetch()
        return slot.bytes[: update.host.numel()].view(update.dtype).view(update.shape)

    def drop(self, key: Hashable) -> None:
        del self._kept[key]

    @property
    def held_bytes(self) -> int:
        """On the host."""
        return sum(update.host.numel() for update in self._kept.values())

    def _fetch(self) -> None:
        """Starts to bring what is due next, as far as there is room."""
        for key in self._due:
            if not self._free or key not in self._kept:
                return
            if key not in self._coming:
                update = self._kept[key]
                slot = self._coming[key] = self._free.pop(0)
                slot.fill(key, update.host, update.arrived)

    def _make_slots(self, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if size <= self._size:
            return
        self._size = size
        self._coming.clear()
        self._lent.clear()
        out, back = side_stream(value.device), side_stream(value.device)
        self._leaving = [Slot(size, value.device, out) for _ in range(LEAVING)]
        self._free = [Slot(size, value.device, back) for _ in range(COMING + IN_USE)]


@dataclass(frozen=True)
class _Update:
    host: Tensor  # uint8 [bytes]
    shape: torch.Size
    dtype: torch.dtype
    arrived: torch.cuda.Event | None
