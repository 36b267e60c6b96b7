"""The process group of the ranks that make one video, and what they agree upon between steps.

A rank that fails leaves the group: its connections close, and whoever waits for it is told at once (gloo) or when the
host says so (NCCL, by `abort`). So a group lives until the first failure; the ranks that are left then join a new one.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...pipeline import Pipeline

_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class PeerLost(RuntimeError):
    """Another rank left while this one was waiting for it; that rank, not this one, knows why."""


class Group:
    """This process's place among the ranks of a job; of size 1 it is nothing but that.

    One at a time in a process: torch.distributed has one default group.
    """

    def __init__(self, rank: int = 0, size: int = 1, backend: str = "gloo") -> None:
        self.rank = rank
        self.size = size
        self.backend = backend
        self.attached: dict[Any, Pipeline] = {}  # pipelines that hold subgroups of this group
        self.aborted = False

    @classmethod
    def join(cls, rank: int, size: int, backend: str, store: Mapping[str, Any], seconds: float) -> Group:
        """Waits for all others; collective.

        Args:
            backend: "gloo" or "nccl".
            store: where they meet: {"file": path}, on one machine, or {"host": ..., "port": ...}, where rank 0 listens.
            seconds: the longest wait, here and in every collective.
        """
        # Its functions have the default group as a default argument: imported later, as by diffusers, they would hold
        # on to this group, and its connections would never close.
        import torch.distributed.nn.functional  # noqa: F401

        stores: Any = dist
        if backend == "nccl":
            # The host sees to errors: its watchdog would end the whole process, and the model with it.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        bound = timedelta(seconds=seconds)
        if "file" in store:
            if sys.platform in _LOOPBACK:  # a machine's own name need not lead back to it
                os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK[sys.platform])
            meeting: Any = stores.FileStore(store["file"], size)
        else:
            meeting = stores.TCPStore(store["host"], store["port"], size, rank == 0, timeout=bound)
        # With NCCL, too, small things are agreed upon over gloo, beside the GPUs' work.
        kinds = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"
        dist.init_process_group(kinds, store=meeting, rank=rank, world_size=size, timeout=bound)
        group = cls(rank, size, backend)
        group.any(False)
        return group

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; collective."""
        if self.aborted:
            raise PeerLost
        if self.size == 1:
            return flag
        said = torch.tensor([int(flag)])
        with _told_of_peers():
            dist.all_reduce(said, op=dist.ReduceOp.MAX)
        if self.aborted:
            raise PeerLost
        return bool(said.item())

    def share(self, make: Callable[[], bytes]) -> bytes:
        """What rank 0 makes, on every rank; collective. Where it fails, it raises there, and PeerLost elsewhere."""
        if self.size == 1:
            return make()
        made, failure = b"", None
        if self.rank == 0:
            try:
                made = make()
            except Exception as error:
                failure = error
        length = torch.tensor([-1 if failure is not None else len(made)])
        with _told_of_peers():
            dist.broadcast(length, 0)
            if failure is not None:
                raise failure
            if length.item() < 0:
                raise PeerLost
            content = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0 and made:
                content.copy_(torch.frombuffer(bytearray(made), dtype=torch.uint8))
            dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def abort(self) -> None:
        """From another thread: ends what waits on the GPU for ranks that will not come."""
        self.aborted = True
        if self.size > 1 and self.backend == "nccl":
            with suppress(Exception):
                every: Any = dist.distributed_c10d
                every._abort_process_group()  # with the groups made of it

    def leave(self) -> None:
        """Closes the connections; nothing that came from the group may still be held."""
        self.attached.clear()
        if self.size == 1:
            return
        if self.backend == "nccl" and not self.aborted:
            self.abort()
        with suppress(Exception):
            dist.destroy_process_group()
        gc.collect()
        self.size, self.rank = 1, 0


class _told_of_peers:
    """Turns what a collective raises when a peer has gone into PeerLost."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if is_peer_failure(error):
            raise PeerLost(str(error)) from error


def is_peer_failure(error: BaseException | None) -> bool:
    """Whether torch.distributed says with this that another rank has gone; it has words for it, not always a class."""
    if error is None or isinstance(error, PeerLost):
        return isinstance(error, PeerLost)
    if isinstance(error, dist.DistError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in words for sign in ("gloo", "Connection closed by peer", "NCCL", "ncclInternalError", "process group")
    )


def share_tensors(group: Group, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """As Group.share, of tensors; on the CPU."""
    from .protocol import pack, unpack

    return unpack(group.share(lambda: pack(make())))
