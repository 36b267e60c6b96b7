"""Pieces of device memory through which host memory comes and goes, on a GPU beside the computation.

Pieces of fixed size bound the memory: the host may be far ahead of the GPU, and with a new tensor for each copy all of
that lead would be allocated at once. A copy waits, on the GPU and not on the host, until its piece is free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """For copies beside the computation; None where copies are done at once."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


class Slot:
    """`size` bytes on a device; `side` is the stream that copies."""

    def __init__(self, size: int, device: torch.device, side: torch.cuda.Stream | None) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        if side is not None:
            self.bytes.record_stream(side)  # others get the memory only when no copy is under way any more
        self.side = side
        self.holds: Any = None  # name of what it was filled with last
        self._copied = None if side is None else torch.cuda.Event()
        self._used = None if side is None else torch.cuda.Event()
        self.used()  # what had the memory before may still read it

    def fill(self, name: Any, host: Tensor, after: torch.cuda.Event | None = None) -> None:
        """Starts to copy bytes of the host (pinned, for a GPU) into the slot; `after`: when they are there."""
        self.holds = name
        target = self.bytes[: host.numel()]
        if self.side is None or self._copied is None or self._used is None:
            target.copy_(host)
            return
        with torch.cuda.stream(self.side):
            self.side.wait_event(self._used)
            if after is not None:
                self.side.wait_event(after)
            target.copy_(host, non_blocking=True)
            self._copied.record(self.side)

    def wait(self) -> None:
        """What is computed from here on comes after the copy."""
        if self._copied is not None:
            torch.cuda.current_stream(self.bytes.device).wait_event(self._copied)

    def used(self) -> None:
        """What was computed up to here may still read the slot; the next copy comes after it."""
        if self._used is not None:
            self._used.record(torch.cuda.current_stream(self.bytes.device))

    def send(self, value: Tensor, host: Tensor) -> torch.cuda.Event | None:
        """Starts to copy a tensor through the slot into bytes of the host -> what to wait for before these are read."""
        self.wait()
        target = self.bytes[: host.numel()]
        target.view(value.dtype).view(value.shape).copy_(value)
        if self.side is None or self._copied is None or self._used is None:
            host.copy_(target)
            return None
        self.used()
        with torch.cuda.stream(self.side):
            self.side.wait_event(self._used)
            host.copy_(target, non_blocking=True)
            self._copied.record(self.side)
            done = torch.cuda.Event()
            done.record(self.side)
        return done
