"""Checkpoints -> modules. Strict; see tensor_files for what a checkpoint is.

Keys and shapes are checked against the module, which was built on the meta device, before any tensor is read; then one
tensor after the other is read, converted and kept. So memory never holds much more than the finished module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .errors import PabError
from .models.detect import looks_like
from .models.fp8 import Quantiser, large_linears, replace_linears
from .tensor_files import Buffer, Stored, read_config, read_shapes, read_weights, stored_tensors, weight_files

__all__ = ["Loaded", "check_keys", "load_weights", "read_config", "read_shapes", "read_weights", "weight_files"]

Progress = Callable[[int, int], None]

# What only training needs, in checkpoints that were saved with it.
_TRAINING_ONLY = ("loss.",)


class Shaped(Protocol):
    """A tensor, or what is known of one."""

    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Loaded:
    """What loading a module came to; sizes in bytes."""

    stored: int  # of the tensors in the files that the module was filled from
    held: int  # of the module's tensors now
    left_out: int = 0  # tensors of the files that belong to something else than this module
    fp8_layers: int = 0
    fp8_saved: int = 0  # beside the same weights in the compute precision
    fp8_error: float = 0.0  # of all weights in fp8 together: root of sum (W - W8)^2 / sum W^2


def check_keys(
    title: str, expected: Mapping[str, Shaped], given: Mapping[str, Shaped], model: str = "its config.json"
) -> None:
    """PabError with a report of missing, unexpected and mis-shaped keys, if there are any.

    Args:
        title: where the given tensors come from.
        model: what says which are expected.
    """
    problems = []
    for what, keys in (("missing", expected.keys() - given.keys()), ("unexpected", given.keys() - expected.keys())):
        if keys:
            problems.append(f"{len(keys)} {what} ({_some(sorted(keys))})")
    shapes = [
        f"{key} is {list(given[key].shape)}, not {list(expected[key].shape)}"
        for key in sorted(expected.keys() & given.keys())
        if tuple(given[key].shape) != tuple(expected[key].shape)
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    if problems:
        hint = ""
        if len(expected.keys() & given.keys()) < len(expected) / 2:
            other = looks_like({key: tuple(tensor.shape) for key, tensor in given.items()})
            hint = f" They look like {other}." if other else ""
        raise PabError(f"The weights in {title} do not fit {model}: keys {', '.join(problems)}.{hint}")


def load_weights(
    module: nn.Module,
    source: Path,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    tied: Mapping[str, str] | None = None,
    *,
    storage: Literal["fp8"] | None = None,
    allow_pickle_tensors: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """Fills a module that was built on the meta device, strictly.

    Memory grows by the finished module and a few megabytes, on another device as on the host.

    Args:
        source: a folder with safetensors files, or one .safetensors file. Of a file that holds a whole pipeline, with
            each part under a prefix of its own (`model.diffusion_model.`), this module's part is taken.
        dtype: of the floating tensors, and of the arithmetic.
        tied: names of one and the same tensor, of which a checkpoint may hold either or both.
        storage: "fp8" keeps the weights of the large linear layers in float8_e4m3fn, with a scale for each row; see
            models.fp8. None keeps all in `dtype`.
        allow_pickle_tensors: where there is no safetensors file, reads a .bin, .pt or .ckpt by torch's reader of
            tensors alone (`weights_only=True`), which runs nothing. For autoencoders: those of Open-Sora-Plan are
            .ckpt files from v1.2.0 on and whoever trains one (v1.1.0's released one is safetensors, as are all parts of
            Open-Sora 1.2 and Latte-1). Their weights may lie under "state_dict"; weights of the training's losses,
            `loss.*`, are left out, whatever the format.
        progress: called with bytes done and bytes in all; what it raises ends the loading.

    Raises:
        PabError: files missing, unreadable, damaged or only pickled, keys or shapes that do not fit, or a device that
            does not know float8.
    """
    if storage == "fp8" and torch.device(device).type == "mps":
        raise PabError("Weights in fp8 do not work on this device (mps); load them as they are.")
    expected = module.state_dict()
    stored = stored_tensors(weight_files(source, allow_pickle_tensors=allow_pickle_tensors))
    given = _own_part(str(source), expected, stored)
    left_out = len(stored) - len(given)
    for one, other in (tied or {}).items():
        if one in given or other in given:
            tensor = given[other] if other in given else given[one]
            for name in (one, other):
                if name in expected:
                    given[name] = tensor
                else:  # a name that only the file has
                    given.pop(name, None)
    check_keys(str(source), expected, given, "its config.json" if source.is_dir() else "the model that it is read as")

    linears = large_linears(module) if storage == "fp8" else {}
    large = {f"{name}.weight" for name in linears}
    weights: dict[str, Tensor] = {}
    buffer, quantiser = Buffer(), Quantiser(device)
    error = norm = 0.0
    done, total = 0, sum({id(tensor): tensor.size for tensor in given.values()}.values())
    read: dict[int, Tensor] = {}  # tied names share a tensor
    for key, tensor in given.items():
        if id(tensor) in read:
            weights[key] = read[id(tensor)]
            continue
        if key in large:
            weights[key] = torch.empty(tensor.shape, dtype=torch.int8, device=device)
            scale = weights[key.removesuffix("weight") + "scale"] = torch.empty(tensor.shape[0], 1, device=device)
            for rows, piece in tensor.pieces(buffer):
                more_error, more_norm = quantiser.quantise(piece, weights[key][rows], scale[rows])
                error, norm = error + more_error, norm + more_norm
        else:
            weights[key] = tensor.load(dtype, device, buffer)
        read[id(tensor)] = weights[key]
        done += tensor.size
        if progress is not None:
            progress(done, total)
    replace_linears(module, linears)
    module.load_state_dict(weights, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers()))
    return Loaded(
        stored=total,
        held=sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers())),
        left_out=left_out,
        fp8_layers=len(linears),
        fp8_saved=sum(
            weights[key].numel() * (dtype.itemsize - 1) - weights[key.removesuffix("weight") + "scale"].nbytes
            for key in large
        ),
        fp8_error=(error / norm) ** 0.5 if norm else 0.0,
    )


def _own_part(title: str, expected: Mapping[str, Shaped], stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a file that are this module's, under its own names.

    A file may hold more: losses, or the parts of a whole pipeline, each under a prefix. The module's prefix is the one
    under which most of its keys are found.
    """
    given = {key: tensor for key, tensor in stored.items() if not key.startswith(_TRAINING_ONLY)}
    found: Counter[str] = Counter()
    for key in given:
        starts = [0, *(place + 1 for place, letter in enumerate(key) if letter == ".")]
        found.update(key[:start] for start in starts if key[start:] in expected)
    (prefix, count), (other, others) = [*found.most_common(2), ("", 0), ("", 0)][:2]
    if count == found[""] or count < len(expected) / 2:
        return given
    if count == others:
        raise PabError(f"{title} holds these weights twice, as {prefix}* and as {other}*; keep the one that you want.")
    return {key[len(prefix) :]: tensor for key, tensor in given.items() if key.startswith(prefix)}


def _some(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")
