"""A T5 encoder of 100 kB with random weights, in all the forms in which T5 v1.1 XXL is passed around."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_checkpoint import write_json
from torch import Tensor

TOKENIZER = Path(__file__).resolve().parents[2] / "pab_core" / "demo" / "weights" / "tokenizer"
WIDTH = 32
CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
PREFIX = "text_encoders.t5xxl.transformer."  # of a file that holds a whole model


def reference(weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with these weights, as they are."""
    from transformers import T5Config, T5EncoderModel

    model: Any = T5EncoderModel(T5Config.from_dict(CONFIG))
    model.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    return model.to(dtype).eval()


def tiny_weights(seed: int = 0) -> dict[str, Tensor]:
    """float32, in the layout of the released encoder; large enough that every layer moves the result."""
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shapes = {key: value.shape for key, value in T5EncoderModel(T5Config.from_dict(CONFIG)).state_dict().items()}
        weights = {
            key: torch.randn(shape) * (shape[1] ** -0.5 if is_layer(key) else 1) for key, shape in shapes.items()
        }
    for key in weights:
        if key.endswith(".q.weight"):
            weights[key] *= CONFIG["d_kv"] ** -0.5  # T5 does not scale its attention: its weights are that much smaller
    del weights["encoder.embed_tokens.weight"]  # saved once, as shared.weight
    return weights


def is_layer(key: str) -> bool:
    return key.startswith("encoder.block.") and "norm" not in key and "relative" not in key


def write_folder(folder: Path, weights: dict[str, Tensor]) -> Path:
    """config.json and two safetensors files with an index, as transformers writes a large encoder."""
    write_json(folder / "config.json", CONFIG)
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, keys in shards.items():
        save_file({key: weights[key] for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def to_fp8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As t5xxl_fp8_e4m3fn.safetensors: every tensor is in fp8, norms and embedding too."""
    return {key: tensor.to(torch.float8_e4m3fn) for key, tensor in weights.items()}


def to_scaled_fp8(weights: dict[str, Tensor], rows: bool = False) -> dict[str, Tensor]:
    """As t5xxl_fp8_e4m3fn_scaled.safetensors: the layers in fp8, with a scale each, all else in fp16.

    rows: a scale for each row, under the newer names.
    """
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, tensor in weights.items():
        if not is_layer(key):
            scaled[key] = tensor.half()
            continue
        scale = (tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().max()) / 448
        scaled[key] = (tensor / scale).to(torch.float8_e4m3fn)
        stem = key.removesuffix("weight")
        scaled[stem + ("weight_scale" if rows else "scale_weight")] = scale
        scaled[stem + ("input_scale" if rows else "scale_input")] = torch.tensor(0.5)
    return scaled


def dequantised(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a file of one of these forms stands for, in float32."""
    result = {}
    for key, tensor in file.items():
        if "scale" in key.rsplit(".", 1)[-1]:
            continue
        stem = key.removesuffix("weight")
        scale = file.get(stem + "scale_weight", file.get(stem + "weight_scale", torch.tensor(1.0)))
        result[key] = tensor.float() * scale
    return result
