"""Kernels that are recorded once and then started together (CUDA graphs).

A processor that starts a model's thousand kernels one by one takes about as long for a small clip as for a large one:
30 to 50 ms a step of Open-Sora on servers, more in eight bits. A GPU is done sooner with a small clip, or with its
share of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

LEAST_STARTS = 6  # of a record: making one takes longer than a step, by the times of whole loops about three
Compute = Callable[[Tensor, Any], Tensor]  # x and the conditioning -> x
Start = Callable[[], None]
_RECORDING = Lock()  # memory is given back before a record is made, and cannot be while another is


@dataclass
class Recorder:
    """Of one run, with which it dies. What is asked for is computed as it is the first time, which makes what it needs
    (kernels, plans, workspaces); recorded the second time; and from then on the record is started."""

    _starts: dict[Any, Start | None] = field(default_factory=dict)
    _inputs: dict[Any, tuple[Tensor, Any]] = field(default_factory=dict)  # x, where the result goes too, and cond
    _pool: Any = None  # of memory, which all records share: each is done before the next begins
    _gave_up: bool = False

    def __call__(self, place: Any, way: Any, compute: Compute, x: Tensor, cond: Any, left: int) -> Tensor:
        """compute(x, cond), where that depends on nothing else but place and way, and leaves nothing but its result;
        the next call may write over that.

        Args:
            place: for which x and the tensors of cond, a dataclass, have the same shapes each time.
            left: how often the same will be asked for yet, this time included.
        """
        key = (place, way)
        known, start = key in self._starts, self._starts.setdefault(key, None)
        if self._gave_up or (start is None and not (known and left >= LEAST_STARTS)):
            return compute(x, cond)
        if start is None:
            start = self._record(place, compute, x, cond)
            if start is None:
                return compute(x, cond)
            self._starts[key] = start
        own_x, own_cond = self._inputs[place]
        own_x.copy_(x)
        for name, value in _tensors(own_cond).items():
            value.copy_(getattr(cond, name))
        start()
        if left == 1:  # while a clip is decoded, memory is needed elsewhere
            del self._starts[key]
            if not any(self._starts.values()):
                self._let_go()
        return own_x

    def owns(self, x: Tensor) -> bool:
        """Whether a later call may write over x."""
        return any(x.data_ptr() == own.data_ptr() for own, _ in self._inputs.values())

    def _record(self, place: Any, compute: Compute, x: Tensor, cond: Any) -> Start | None:
        """None: it cannot be, and nothing more is recorded."""
        try:
            with _RECORDING:
                if self._pool is None:
                    self._pool = new_pool()
                if place not in self._inputs:
                    self._inputs[place] = x.clone(), replace(cond, **{k: v.clone() for k, v in _tensors(cond).items()})
                own_x, own_cond = self._inputs[place]
                return record(lambda: own_x.copy_(compute(own_x, own_cond)), x.device, self._pool)
        except torch.cuda.OutOfMemoryError:
            pass  # a record takes more, without which the clip may well fit
        except Exception as error:  # whatever a kernel's package raises: it has been computed so before
            said = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(
                f"This GPU's work cannot be recorded ({said[0]}): the result is the same, small clips take longer.",
                stacklevel=2,
            )
        self._gave_up = True
        self._let_go()
        return None

    def _let_go(self) -> None:
        """Of the memory of all records."""
        self._starts.clear()
        self._inputs.clear()
        self._pool = None


def new_pool() -> Any:
    torch.cuda.empty_cache()  # what records of earlier runs had is given back only so
    return torch.cuda.graph_pool_handle()


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all records: a library keeps working memory for every stream that it has seen."""
    return torch.cuda.Stream(device)


def record(compute: Callable[[], Any], device: torch.device, pool: Any) -> Start:
    """-> what computes it."""
    graph, stream, now = torch.cuda.CUDAGraph(), recording_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(now)
    with torch.cuda.stream(stream):
        # Other threads of the process may use the GPU meanwhile.
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            compute()
        except BaseException:
            with suppress(Exception):  # it has been cut off, which is not what is to be told
                graph.capture_end()
            raise
        graph.capture_end()
    now.wait_stream(stream)
    return graph.replay


def _tensors(cond: Any) -> dict[str, Tensor]:
    values = {f.name: getattr(cond, f.name) for f in fields(cond)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
