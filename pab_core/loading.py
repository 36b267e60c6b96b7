"""Checkpoint folders -> modules. Strict, safetensors only, nothing is ever unpickled.

A pipeline folder holds transformer/, vae/, text_encoder/, tokenizer/ and scheduler/, each with a config.json and
safetensors files, as diffusers and transformers write them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import PabError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON object in folder/name; PabError if it is missing or broken."""
    path = folder / name
    if not folder.is_dir():
        raise PabError(f"The checkpoint has no folder {folder}; it is incomplete, fetch it again.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PabError(f"The checkpoint folder {folder} has no {name}; it is incomplete, fetch it again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PabError(f"{path} is not valid JSON ({error}); fetch the file again.") from None
    if not isinstance(config, dict):
        raise PabError(f"{path} holds no JSON object; fetch the file again.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one module: those of an index, or the only one there is."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(read_config(folder, indices[0].name).get("weight_map", {}).values()))
        # Only plain names: an index must not lead out of its folder.
        files = [folder / Path(name).name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise PabError(f"{folder} lacks {', '.join(missing)}, which {indices[0].name} names; fetch it again.")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise PabError(f"{folder} holds {len(files)} safetensors files and no index that joins them; keep one.")
    pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLED]
    if pickled:
        raise PabError(
            f"{folder} holds weights only as {pickled[0]}, a format that can run code when opened and is never loaded "
            "here; get the safetensors version."
        )
    raise PabError(f"The checkpoint folder {folder} has no safetensors file; it is incomplete, fetch it again.")


def read_weights(files: Iterable[Path], dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of the files; floating ones converted to `dtype`."""
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt", device=str(device)) as reader:
                for key in reader.keys():  # noqa: SIM118 - not a dict
                    tensor = reader.get_tensor(key)
                    weights[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        except (SafetensorError, OSError) as error:
            raise PabError(
                f"{file} is truncated or not a safetensors file ({error}); delete it and fetch it again."
            ) from None
    return weights


def check_keys(title: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """PabError with a report of missing, unexpected and mis-shaped keys, if there are any."""
    problems = []
    for what, keys in (("missing", expected.keys() - given.keys()), ("unexpected", given.keys() - expected.keys())):
        if keys:
            problems.append(f"{len(keys)} {what} ({_some(sorted(keys))})")
    shapes = [
        f"{key} is {list(given[key].shape)}, not {list(expected[key].shape)}"
        for key in sorted(expected.keys() & given.keys())
        if given[key].shape != expected[key].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    if problems:
        raise PabError(f"The weights in {title} do not fit its config.json: keys {', '.join(problems)}.")


def load_weights(
    module: nn.Module,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    tied: Mapping[str, str] | None = None,
) -> None:
    """Fills a module that was built on the meta device, from the safetensors files of `folder`, strictly.

    tied: names of one and the same tensor, of which a checkpoint may hold either or both.
    """
    weights = read_weights(weight_files(folder), dtype, device)
    for one, other in (tied or {}).items():
        if one in weights or other in weights:
            weights[one] = weights[other] = weights.get(other, weights.get(one, torch.empty(0)))
    check_keys(str(folder), module.state_dict(), weights)
    module.load_state_dict(weights, strict=True, assign=True)


def _some(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")
