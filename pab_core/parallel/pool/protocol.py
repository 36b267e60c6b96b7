"""Messages between a pool and its workers: a JSON header and the bytes of safetensors, each with its length in front.

    8 bytes  "PABPOOL1"
    4 bytes  length of the header, unsigned, little-endian
    8 bytes  length of the tensors
    header   a JSON object in UTF-8 with an entry "type"
    tensors  a safetensors file, or nothing

The same frames go through pipes, sockets and Ray's calls. What is read is data and stays data: nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `pab workers status` answers without torch
    from torch import Tensor

_MAGIC = b"PABPOOL1"
_LENGTHS = struct.Struct("<8sIQ")
MOST_HEADER = 64 * 2**20  # bytes; a schedule written step by step for a deep model has a few million
MOST_TENSORS = 64 * 2**30


class ProtocolError(Exception):
    """What came is no message of ours: the other side is broken or somebody else."""


class BrokenOff(ProtocolError):
    """The other side has ended in the middle of a message."""


@dataclass(frozen=True)
class Message:
    """`type` says what the other entries are; see rank.py for those to a worker, team.py for those from one."""

    type: str
    about: Mapping[str, Any] = field(default_factory=dict)
    tensors: bytes = b""

    def __getitem__(self, name: str) -> Any:
        return self.about[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.about.get(name, default)

    def to_bytes(self) -> bytes:
        header = json.dumps({**self.about, "type": self.type}).encode()
        return b"".join([_LENGTHS.pack(_MAGIC, len(header), len(self.tensors)), header, self.tensors])

    def unpack(self) -> dict[str, Tensor]:
        """The tensors that came along, on the CPU."""
        return unpack(self.tensors)


Read = Callable[[int], bytes]  # so many bytes or, at the end, fewer


def read_message(read: Read, most_header: int = MOST_HEADER, most_tensors: int = MOST_TENSORS) -> Message | None:
    """The next message; None where the other side has closed.

    ProtocolError: something else than a message, one larger than allowed, or half a one.
    """
    start = read(_LENGTHS.size)
    if not start:
        return None
    if len(start) < _LENGTHS.size:
        raise BrokenOff("the message breaks off")
    magic, header_size, tensor_size = _LENGTHS.unpack(start)
    if magic != _MAGIC or header_size > most_header or tensor_size > most_tensors:
        raise ProtocolError("this is no message, or one that is too large")
    header, tensors = read(header_size), read(tensor_size) if tensor_size else b""
    if len(header) < header_size or len(tensors) < tensor_size:
        raise BrokenOff("the message breaks off")
    try:
        about: Any = json.loads(header)
    except (ValueError, RecursionError):
        raise ProtocolError("the header is not JSON") from None
    if not isinstance(about, dict) or not isinstance(about.get("type"), str):
        raise ProtocolError("the header lacks its type")
    kind = about.pop("type")
    return Message(kind, about, tensors)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name -> safetensors."""
    if not tensors:
        return b""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def unpack(data: bytes) -> dict[str, Tensor]:
    """ProtocolError: the bytes are no safetensors."""
    if not data:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise ProtocolError(f"the tensors cannot be read: {error}") from None
