"""Bytes of the tensors alive at the worst moment of a computation: the same on every machine, unlike what a process or
a GPU reports. What a library takes for itself inside one operation, such as a convolution's workspace, is not seen.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts every storage that is made inside the `with`, from the operation that makes it to its last reference.

    `now` and `peak` are in bytes. What was there before counts nothing. Works on every device, meta tensors too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}  # by the identity of a living storage

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in given and key not in self._known:
                size = storage.nbytes()
                self._known[key] = weakref.finalize(storage, self._free, key, size)
                self.now += size
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def peak_live_bytes(compute: Callable[[], Any]) -> int:
    """The most bytes of new tensors that lived at once while `compute` ran, its result among them."""
    with LiveBytes() as live, torch.no_grad():
        result = compute()
    del result
    return live.peak


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
