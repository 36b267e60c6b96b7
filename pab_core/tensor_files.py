"""The tensors in a checkpoint's files, read by plain reads; nothing that comes with a checkpoint is ever run.

A part of a checkpoint is a folder with a config.json and safetensors files, as diffusers and transformers write it, or
one .safetensors file. Keys and shapes come from the files' headers; a tensor is read when it is asked for, straight
into memory of its own. (A memory map of the file would count as memory of the process beside it.)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import PabError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PIECE = 2**22  # bytes
_HEADER_LIMIT = 100_000_000  # bytes, of the format's specification
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Buffer:
    """Bytes that pieces of tensors are read into, one after the other.

    To take and free large blocks of memory over and over can leave holes in the heap that add up to several times the
    model (seen with glibc 2.36).
    """

    def __init__(self) -> None:
        self.bytes = torch.empty(_PIECE, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """`size` bytes; what was in them is lost."""
        if size > len(self.bytes):
            self.bytes = torch.empty(size, dtype=torch.uint8)
        return self.bytes[:size]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet; what is read of it is on the CPU, in memory of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    # start, stop, buffer -> these rows of the first axis (a scalar counts as one row), in the buffer or, without one,
    # in memory of their own
    rows: Callable[[int, int, Buffer | None], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        return self.rows(0, self.shape[0] if self.shape else 1, None).view(self.shape)

    def pieces(self, buffer: Buffer) -> Iterator[tuple[slice, Tensor]]:
        """All rows, a few megabytes at a time, with their place; a piece is overwritten by the next."""
        count = self.shape[0] if self.shape else 1
        step = max(1, _PIECE * count // max(self.size, 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield slice(start, stop), self.rows(start, stop, buffer)

    def load(self, dtype: torch.dtype, device: torch.device | str, buffer: Buffer) -> Tensor:
        """The tensor on a device, a floating one in `dtype`."""
        dtype = dtype if self.dtype.is_floating_point else self.dtype
        if dtype == self.dtype and torch.device(device).type == "cpu":
            return self.read()
        result = torch.empty(self.shape, dtype=dtype, device=device)
        for place, piece in self.pieces(buffer):
            result.view(self.shape or (1,))[place].copy_(piece)
        return result


# --- what files there are ---------------------------------------------------------------------------------------------


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON object in folder/name; PabError if it is missing, broken or may not be read."""
    path = folder / name
    try:
        if not folder.is_dir():
            raise PabError(f"The checkpoint has no folder {folder}; it is incomplete, fetch it again.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PabError(f"The checkpoint folder {folder} has no {name}; it is incomplete, fetch it again.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise PabError(f"{path} is not valid JSON ({error}); fetch the file again.") from None
    if not isinstance(config, dict):
        raise PabError(f"{path} holds no JSON object; fetch the file again.")
    return config


def weight_files(source: Path, *, allow_pickle_tensors: bool = False) -> list[Path]:
    """The files that hold the weights of one module.

    Args:
        source: a folder - those of an index, or the only one there is - or a file.
        allow_pickle_tensors: a .bin, .pt or .ckpt file will do where there is no safetensors file.
    """
    try:
        if not source.is_dir():
            files = [source] if source.exists() else []
        else:
            files = sorted(source.iterdir())
    except OSError as error:
        raise _unreadable(source, error) from None
    if not files and not source.is_dir():
        raise PabError(f"The checkpoint has no {source}; it is incomplete, fetch it again.")
    indices = [file for file in files if file.name.endswith(".safetensors.index.json")]
    if indices:
        return _listed(source, indices[0])
    safe = [file for file in files if file.suffix == ".safetensors"]
    pickled = [file for file in files if file.suffix in _PICKLED]
    found = safe or (pickled if allow_pickle_tensors else [])
    if len(found) == 1:
        return found
    if found:
        raise PabError(f"{source} holds {len(found)} {found[0].suffix} files and no index that joins them; keep one.")
    if pickled:
        name = pickled[0].name
        raise PabError(
            f"{source} holds weights only as {name}, a format that can run code when opened and is never loaded here; "
            'get the safetensors version, or convert it in its folder with: python -c "import torch, safetensors.torch '
            f"as s; s.save_file({{k: v.clone() for k, v in torch.load('{name}', map_location='cpu', weights_only=True)"
            ".items()}, 'model.safetensors')\""
        )
    if files == [source]:
        raise PabError(f"{source} is no safetensors file; give a .safetensors file or the folder of a checkpoint.")
    raise PabError(f"The checkpoint folder {source} has no safetensors file; it is incomplete, fetch it again.")


def _listed(folder: Path, index: Path) -> list[Path]:
    """The files that an index names."""
    weight_map = read_config(folder, index.name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PabError(f"{index} names no files; fetch it again.")
    # Only plain names: an index must not lead out of its folder.
    files = [folder / Path(name).name for name in sorted({str(name) for name in weight_map.values()})]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise PabError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; fetch it again.")
    return files


# --- what is in them --------------------------------------------------------------------------------------------------


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """All tensors of the files by key, unread.

    A pickle among the files, which the caller must have allowed, is opened by torch's reader of tensors alone; see
    `_pickled`.
    """
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors.update(_pickled(file) if file.suffix in _PICKLED else _safetensors(file))
    return tensors


def read_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the files, by key; no tensor is read."""
    return {key: tensor.shape for key, tensor in stored_tensors(files).items()}


def read_weights(files: Iterable[Path], dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of the files; floating ones converted to `dtype`."""
    buffer = Buffer()
    return {key: tensor.load(dtype, device, buffer) for key, tensor in stored_tensors(files).items()}


def _safetensors(file: Path) -> dict[str, Stored]:
    """By the format's specification: the header's length in 8 bytes, the header in JSON, the tensors' bytes."""
    tensors: dict[str, Stored] = {}
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            start, end = 8 + length, os.fstat(stream.fileno()).st_size
            if not 2 <= length <= min(_HEADER_LIMIT, end - 8):
                raise ValueError("it has no header")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        last = start
        for key, entry in header.items():
            shape, (first, stop) = tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, first, stop)):
                raise ValueError(f"the place of {key} is no place")
            if entry["dtype"] not in _DTYPES:
                raise PabError(
                    f"{file} holds tensors of the type {entry['dtype']} ({key}), which is not known here; get the file "
                    "in bf16, fp16, fp32 or fp8."
                )
            dtype = _DTYPES[entry["dtype"]]
            if stop - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{key} has the wrong size")
            tensors[key] = Stored(shape, dtype, partial(_read, file, start + first, shape[1:], dtype))
            last = max(last, start + stop)
        if last != end:
            raise ValueError(f"it has {end} bytes instead of {last}")
    except OSError as error:
        raise _unreadable(file, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from None
    return tensors


def _read(
    file: Path, offset: int, row: tuple[int, ...], dtype: torch.dtype, start: int, stop: int, buffer: Buffer | None
) -> Tensor:
    """Rows start to stop of a tensor whose bytes begin at `offset`; `row` is the shape of one."""
    row_size = math.prod(row) * dtype.itemsize
    size = (stop - start) * row_size
    data = torch.empty(size, dtype=torch.uint8) if buffer is None else buffer.take(size)
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset + start * row_size)
            _fill(stream, data.numpy().data)
    except OSError as error:
        raise _unreadable(file, error) from None
    except EOFError as error:
        raise _damaged(file, error) from None
    return data.view(dtype).view(stop - start, *row)


def _fill(stream: FileIO, target: memoryview) -> None:
    """Reads until the target is full: one call of the system reads 2 GiB at most."""
    while target:
        count = stream.readinto(target)
        if not count:
            raise EOFError("it ends too early")
        target = target[count:]


def _pickled(file: Path) -> dict[str, Stored]:
    """Tensors of a file that torch.save wrote, by its reader that builds tensors and plain containers only.

    Whoever trains with Lightning, as Open-Sora-Plan's autoencoder was, has the weights under "state_dict", beside
    counters and the optimizer's state, which are left out. The file is mapped into memory here, and counts beside
    what is read of it until all is loaded.
    """
    try:
        content = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise _unreadable(file, error) from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PabError(
            f"{file} is damaged, or holds more than tensors and is refused, since it could run code ({reason:.200}); "
            "get the safetensors version."
        ) from None
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise PabError(f"{file} is not a plain list of weights; get the safetensors version.")
    return {str(key): Stored(tuple(t.shape), t.dtype, partial(_rows, t)) for key, t in content.items()}


def _rows(tensor: Tensor, start: int, stop: int, buffer: Buffer | None) -> Tensor:
    rows = tensor[start:stop] if tensor.ndim else tensor[None]
    return rows.clone(memory_format=torch.contiguous_format) if buffer is None else rows


def _unreadable(path: Path, error: OSError) -> PabError:
    return PabError(
        f"{path} cannot be read ({error.strerror or error}); check that your user may read it and that its disk is "
        "there."
    )


def _damaged(file: Path, error: Exception) -> PabError:
    return PabError(f"{file} is truncated or not a safetensors file ({error}); delete it and fetch it again.")
