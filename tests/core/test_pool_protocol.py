"""Messages of the pool: what goes in comes out, and what is no message is refused before anything is made of it."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch

from pab_core.parallel.pool.protocol import Message, ProtocolError, pack, read_message, unpack


def reader(data: bytes):
    return io.BytesIO(data).read


def test_messages_follow_each_other():
    tensors = {"frames": torch.arange(24, dtype=torch.uint8).view(2, 2, 2, 3), "latents": torch.randn(1, 4)[:, ::2]}
    first = Message("done", {"id": "ab", "about": {"seconds": {"text": 0.5}}}, pack(tensors))
    read = reader(first.to_bytes() + Message("beat").to_bytes())
    found = read_message(read)
    assert found == first
    assert found is not None
    back = found.unpack()
    assert back.keys() == tensors.keys()
    assert all((back[name] == tensors[name]).all() for name in tensors)
    assert read_message(read) == Message("beat")
    assert read_message(read) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + data,
        lambda data: struct.pack("<8sIQ", b"PABPOOL1", 2**31, 0) + data,
        lambda data: struct.pack("<8sIQ", b"PABPOOL1", 2, 2**60) + b"{}",
        lambda data: struct.pack("<8sIQ", b"PABPOOL1", 2, 0) + b"{}",
        lambda data: struct.pack("<8sIQ", b"PABPOOL1", 4, 0) + b"\x80\x04K\x01",
        lambda data: struct.pack("<8sIQ", b"PABPOOL1", 9, 0) + json.dumps([1, 2, 3]).encode(),
    ],
    ids=["half a start", "half a message", "another protocol", "header", "tensors", "no type", "no JSON", "a list"],
)
def test_what_is_no_message_is_refused(damage):
    with pytest.raises(ProtocolError):
        read_message(reader(damage(Message("job", {"id": "1"}).to_bytes())))


def test_tensors_that_are_none_are_refused():
    with pytest.raises(ProtocolError):
        unpack(b"\x80\x04\x95")
    assert unpack(b"") == {}
