"""The files of a T5 encoder -> a TextEncoder, at once or when it is first needed.

Weights in fp8 stay so in memory, a quarter of float32's size, and are cast to the precision of the run when used. A
scaled weight is `values * scale`, with a scale for the layer or for each of its rows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding_cache import CachedTextEncoder, EmbeddingCache
from .errors import PabError
from .loading import check_keys
from .models.fp8 import Fp8Linear, Quantiser, large_linears
from .tensor_files import Stored
from .text import TextEncoder
from .text_encoder_files import EMBEDDING, SAME_EMBEDDING, TextEncoderFiles, find_text_encoder, load_tokenizer

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def cached_text_encoder(
    source: Path,
    tokenizer: Path | None,
    width: int,
    max_length: int,
    dtype: torch.dtype,
    device: torch.device | str,
    cleaning: str,
    spare_tokenizer: Path | None = None,
    *,
    storage: Literal["fp8"] | None = None,
    cache: EmbeddingCache | None = None,
) -> CachedTextEncoder:
    """T5 and its tokenizer: the files are checked now, the weights read when a prompt comes that `cache` has not.

    `find_text_encoder` says of which files, and `TextEncoder` what the rest is.

    dtype: of the arithmetic, and of all weights that are not in fp8.
    storage: "fp8" turns the large layers of other files to fp8; see models.fp8.
    """
    files = find_text_encoder(source, tokenizer, width, spare_tokenizer)
    made_with = f"{files.identity()} {max_length} {dtype} {storage}"
    return CachedTextEncoder(
        lambda: _load(files, max_length, dtype, torch.device(device), cleaning, storage),
        hashlib.sha256(made_with.encode()).hexdigest(),
        cleaning,
        cache,
    )


class ScaledLinear(Fp8Linear):
    """A linear layer without bias, with the weight and the scale of a file.

    Args:
        values: float8_e4m3fn [out, in].
        scale: float32 [1, 1] or [out, 1]; unlike Fp8Linear's own it may be any number, so the product is rounded.
        compute: the precision of the arithmetic; None: that of the input.
    """

    def __init__(self, values: Tensor, scale: Tensor, compute: torch.dtype | None = None):
        with torch.device("meta"):  # what is made there is replaced at once
            super().__init__(values.shape[1], values.shape[0], bias=False)
        self.weight = nn.Parameter(values.view(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        x = x.to(self.compute or x.dtype)
        return F.linear(x, self.dequantised(x.dtype))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in]: the product is formed in float32, and rounded once."""
        return self.weight.view(torch.float8_e4m3fn).to(dtype).mul_(self.scale)


def _load(
    files: TextEncoderFiles,
    max_length: int,
    dtype: torch.dtype,
    device: torch.device,
    cleaning: str,
    storage: Literal["fp8"] | None,
) -> TextEncoder:
    from transformers import T5Config, T5EncoderModel

    if storage == "fp8" and not _knows_fp8(device):
        raise PabError(f"Weights in fp8 do not work on this device ({device}); load them as they are.")
    config = T5Config.from_dict(files.config)
    tokenizer = load_tokenizer(files.tokenizer, config.vocab_size)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    read_as = "its config.json" if files.source.is_dir() else "the T5 v1.1 encoder that it is read as"
    check_keys(str(files.source), model.state_dict(), files.weights, read_as)
    keeps_fp8 = _knows_fp8(device)  # else weights in it are cast at once
    large = large_linears(model) if storage == "fp8" else {}
    for key, stored in files.weights.items():
        if key == SAME_EMBEDDING:
            continue
        path, _, name = key.rpartition(".")
        layer = model.get_submodule(path)
        # In float16 the results of these layers overflow: transformers, too, computes them in float32.
        exact = torch.float32 if dtype == torch.float16 and path.endswith(".wo") else None
        tensor, scale = stored.read(), _scale(files, key)
        if isinstance(layer, nn.Linear) and keeps_fp8 and (stored.dtype in _FP8 or path in large):
            if stored.dtype == torch.float8_e4m3fn:
                values = tensor.to(device)
            else:
                full = tensor.to(device).float() * scale.to(device)
                bits = torch.empty(full.shape, dtype=torch.int8, device=device)
                scale = torch.empty(len(full), 1, device=device)
                Quantiser(device).quantise(full, bits, scale)
                values = bits.view(torch.float8_e4m3fn)
            _replace(model, path, ScaledLinear(values, scale.to(device), exact))
            continue
        if stored.dtype in _FP8 or key in files.scales:
            # What fp8 cannot hold was stored as "not a number"; ComfyUI takes it for 0 as well.
            tensor = (tensor.float().view(len(tensor), -1) * scale).nan_to_num_().view(stored.shape)
        setattr(layer, name, nn.Parameter(tensor.to(device, exact or dtype), requires_grad=False))
    model.encoder.embed_tokens.weight = model.get_parameter(EMBEDDING)
    return TextEncoder(model, tokenizer, max_length, cleaning).eval()


def _knows_fp8(device: torch.device) -> bool:
    return device.type != "mps"


def _scale(files: TextEncoderFiles, key: str) -> Tensor:
    """float32 [1, 1] or [rows, 1]"""
    stored: Stored | None = files.scales.get(key)
    if stored is None:
        return torch.ones(1, 1)
    scale = stored.read().float().reshape(-1, 1)
    if len(scale) not in (1, files.weights[key].shape[0]):
        raise PabError(
            f"{files.source} has weights of an unknown form (scales {list(stored.shape)} of {key}); get the encoder in "
            "fp16, or in fp8 with one scale a layer."
        )
    return scale


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
