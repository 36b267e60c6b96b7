"""The files that a T5 encoder and its tokenizer come in: folders, or one of the single files that ComfyUI users have.

A single file has the weights under transformers' names and no config: the sizes are read from the shapes. It may have
them under a prefix, beside the other parts of a whole model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PabError
from .models.detect import looks_like
from .tensor_files import Stored, read_config, stored_tensors, weight_files

EMBEDDING = "shared.weight"
SAME_EMBEDDING = "encoder.embed_tokens.weight"  # one tensor with two names, of which a file may have either or both
_LAST = "encoder.final_layer_norm.weight"
_ATTENTION = "encoder.block.{}.layer.0.SelfAttention."
_FEED_FORWARD = "encoder.block.0.layer.1.DenseReluDense."
_SCALES = (".scale_weight", ".weight_scale")  # of scaled fp8 weights: the older and the newer name
# Marks of the format and scales of the input, for arithmetic in fp8, which is not done here; and what is no encoder's.
_UNUSED_ENDS = (".scale_input", ".input_scale", ".comfy_quant")
_UNUSED_STARTS = ("scaled_fp8", "decoder.", "lm_head.")
_VOCABULARIES = ("spiece.model", "tokenizer.json")
_WANTED = "T5 v1.1 XXL is needed, such as t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn.safetensors"


@dataclass(frozen=True)
class TextEncoderFiles:
    """A T5 encoder that was found, with its sizes; no weight is read yet."""

    source: Path  # a folder or a file
    config: dict[str, Any]  # for T5Config
    weights: dict[str, Stored]  # the encoder's own, by transformers' names
    scales: dict[str, Stored]  # by the names of the weights that they belong to
    tokenizer: Path  # a folder

    def identity(self) -> str:
        """Another one wherever the files are others, told by size, time and first megabyte of those with weights."""
        digest = hashlib.sha256(repr(sorted(self.config.items())).encode())
        for path in weight_files(self.source):
            about = path.stat()
            digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
        for name in ("tokenizer_config.json", *_VOCABULARIES):
            if (self.tokenizer / name).is_file():
                digest.update((self.tokenizer / name).read_bytes())
        return digest.hexdigest()


def find_text_encoder(
    source: Path, tokenizer: Path | None, width: int, spare_tokenizer: Path | None = None
) -> TextEncoderFiles:
    """Finds and checks all that can be checked without reading weights.

    Args:
        source: a folder with config.json and safetensors files, or a single safetensors file.
        tokenizer: a folder with tokenizer_config.json, and spiece.model or tokenizer.json; None: `source` itself, the
            folder tokenizer/ beside it, or `spare_tokenizer`, whichever is there first.
        width: channels of the embeddings that the transformer reads.

    Raises:
        PabError: files missing, damaged or of another model.
    """
    if not source.exists():
        raise PabError(f"There is no text encoder {source}. {_WANTED}, or a folder that holds it.")
    stored = stored_tensors(weight_files(source))
    prefix = next((key.removesuffix(_LAST) for key in stored if key.endswith(_LAST)), "")
    stored = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    config = read_config(source) if source.is_dir() else _config_of_shapes(source, stored)
    if config.get("model_type", "t5") != "t5":
        raise PabError(f"The text encoder in {source} is of the kind '{config['model_type']}'. {_WANTED}.")
    if config.get("d_model") != width:
        raise PabError(
            f"The text_encoder gives {config.get('d_model')} channels, but the transformer's caption_channels is "
            f"{width}: these parts of the checkpoint do not belong together. The text encoder is {source}."
        )
    weights, scales = {}, {}
    for key, tensor in stored.items():
        end = next(filter(key.endswith, _SCALES), None)
        if end is not None:
            scales[key.removesuffix(end) + ".weight"] = tensor
        elif not key.endswith(_UNUSED_ENDS) and not key.startswith(_UNUSED_STARTS):
            weights[key] = tensor
    unknown = next((key for key, tensor in weights.items() if not tensor.dtype.is_floating_point), None)
    if unknown is not None:
        raise PabError(f"{source} has weights of an unknown form ({unknown} is {weights[unknown].dtype}). {_WANTED}.")
    if EMBEDDING in weights or SAME_EMBEDDING in weights:
        weights[EMBEDDING] = weights[SAME_EMBEDDING] = weights.get(EMBEDDING) or weights[SAME_EMBEDDING]
    return TextEncoderFiles(source, config, weights, scales, _tokenizer_folder(source, tokenizer, spare_tokenizer))


def load_tokenizer(folder: Path, vocabulary: int) -> Any:
    """transformers' tokenizer; PabError if it is damaged, or has more tokens than the encoder's vocabulary."""
    from transformers import AutoTokenizer

    read_config(folder, "tokenizer_config.json")
    # Without its vocabulary, transformers would quietly make a tokenizer that knows no word.
    if not _has_vocabulary(folder):
        raise PabError(f"{folder} has no {' or '.join(_VOCABULARIES)}; it is incomplete, fetch it again.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PabError(
            f"The tokenizer in {folder} is damaged or of an unknown kind ({reason}); fetch it again."
        ) from error
    if len(tokenizer) > vocabulary:
        raise PabError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, but the text encoder knows {vocabulary}: these "
            "parts do not belong together."
        )
    return tokenizer


def _config_of_shapes(file: Path, stored: Mapping[str, Stored]) -> dict[str, Any]:
    """What a config.json would say: T5 v1.1 throughout, of which only the sizes differ."""
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    first = _ATTENTION.format(0)
    try:
        vocabulary, d_model = shapes.get(EMBEDDING) or shapes[SAME_EMBEDDING]
        buckets, heads = shapes[first + "relative_attention_bias.weight"]
        inner, d_ff = shapes[first + "q.weight"][0], shapes[_FEED_FORWARD + "wi_0.weight"][0]
        # UMT5 has such a bias in every block.
        if _ATTENTION.format(1) + "relative_attention_bias.weight" in shapes or not heads:
            raise KeyError
    except (KeyError, ValueError, IndexError):
        other = "a T5 v1.0 text encoder" if _FEED_FORWARD + "wi.weight" in shapes else looks_like(shapes)
        likeness = f" It looks like {other}." if other else ""
        raise PabError(f"{file} is no T5 v1.1 text encoder.{likeness} {_WANTED}.") from None
    return {
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": d_model,
        "d_kv": inner // heads,
        "d_ff": d_ff,
        "num_layers": len({key.split(".")[2] for key in shapes if key.startswith("encoder.block.")}),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def _tokenizer_folder(source: Path, given: Path | None, spare: Path | None) -> Path:
    if given is not None:
        return given.parent if given.is_file() else given
    beside = source.parent / "tokenizer"
    if source.is_dir() and _has_vocabulary(source):
        return source
    if beside.is_dir():
        return beside
    if spare is not None and spare.is_dir():
        return spare
    raise PabError(
        f"The text encoder {source} is incomplete without its tokenizer: put T5's tokenizer_config.json, and "
        f"spiece.model or tokenizer.json, into {beside}, or give the folder that has them."
    )


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _VOCABULARIES)
