"""Text embeddings kept, so that what was encoded once is not encoded again, nor the encoder even loaded for it."""

import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .prompt_cleaning import clean_prompt, clean_text
from .text import TextEmbedding, TextEncoder

_FORMAT = "1"  # part of every name: embeddings made in another way than today's are not found


class EmbeddingCache:
    """Embeddings by name, on the CPU: those used last in memory, and all of them in `folder` if one is given.

    A file that is damaged counts as none, and one that cannot be written is only warned of.
    """

    def __init__(self, max_bytes: int = 128 * 2**20, folder: Path | None = None):
        self.max_bytes = max_bytes  # of memory; files are never deleted
        self.folder = folder
        self._kept: OrderedDict[str, TextEmbedding] = OrderedDict()  # the one used last at the end
        self._lock = threading.Lock()

    def get(self, name: str) -> TextEmbedding | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        found = None if self.folder is None else _read(self.folder / f"{name}.safetensors")
        if found is not None:
            self._keep(name, found)
        return found

    def put(self, name: str, embedding: TextEmbedding) -> None:
        """`embedding` is on the CPU."""
        self._keep(name, embedding)
        if self.folder is None:
            return
        try:
            _write(self.folder / f"{name}.safetensors", embedding)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"The text embedding could not be kept in {self.folder} ({error}); the next run will encode the prompt "
                "again.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _keep(self, name: str, embedding: TextEmbedding) -> None:
        with self._lock:
            self._kept[name] = embedding
            self._kept.move_to_end(name)
            total = sum(map(_size, self._kept.values()))
            while total > self.max_bytes:
                _, dropped = self._kept.popitem(last=False)
                total -= _size(dropped)


class CachedTextEncoder:
    """A text encoder that is loaded when a prompt comes that is not in the cache.

    Args:
        load: makes the encoder; called at most once, unless it is released.
        identity: of the encoder's weights, tokenizer, precision and length: equal only where the embeddings are.
        cleaning: the encoder's.
    """

    def __init__(
        self, load: Callable[[], TextEncoder], identity: str, cleaning: str, cache: EmbeddingCache | None = None
    ):
        self.load = load
        self.identity = identity
        self.cleaning = cleaning
        self.cache = cache or EmbeddingCache()
        self.loaded: TextEncoder | None = None

    @property
    def encoder(self) -> TextEncoder:
        """The encoder itself, loaded if it is not yet."""
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded

    def release(self) -> None:
        """Forgets the encoder, not the embeddings; the next new prompt loads it again."""
        self.loaded = None

    def find(self, prompt: str, negative: str | None = None) -> TextEmbedding | None:
        """What is kept of a prompt, without loading anything; `negative` None: of `encode`, else of `encode_pair`."""
        return self.cache.get(self._name(prompt, negative))

    def encode(self, prompt: str) -> TextEmbedding:
        """As TextEncoder.encode; the result is on the CPU."""
        return self._encode(prompt, None)

    def encode_pair(self, prompt: str, negative: str = "") -> TextEmbedding:
        """As TextEncoder.encode_pair; the result is on the CPU."""
        return self._encode(prompt, negative)

    def _encode(self, prompt: str, negative: str | None) -> TextEmbedding:
        name = self._name(prompt, negative)
        found = self.cache.get(name)
        if found is None:
            found = self.encoder.encode_batch([prompt], negative).to("cpu")
            self.cache.put(name, found)
        return found

    def _name(self, prompt: str, negative: str | None) -> str:
        parts = [_FORMAT, self.identity, clean_prompt(prompt, self.cleaning)]
        parts.append("" if negative is None else "-" + clean_text(negative, self.cleaning))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _size(embedding: TextEmbedding) -> int:
    return sum(tensor.nbytes for tensor in (embedding.tokens, embedding.negative) if tensor is not None)


def _write(path: Path, embedding: TextEmbedding) -> None:
    tensors: dict[str, Tensor] = {"tokens": embedding.tokens, "mask": embedding.mask}
    if embedding.negative is not None:
        tensors["negative"] = embedding.negative
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first, so that no reader and no later run ever meets half a file.
    handle, unfinished = tempfile.mkstemp(prefix=path.stem[:16], suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        metadata = {"left_out": embedding.left_out}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata)
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _read(path: Path) -> TextEmbedding | None:
    """None where there is no file, or none that can be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as reader:
            # Copies: the tensors of an open file would keep it from being replaced.
            tensors = {name: reader.get_tensor(name).clone() for name in reader.keys()}  # noqa: SIM118 - not a dict
            left_out = (reader.metadata() or {}).get("left_out", "")
    except (SafetensorError, OSError):
        return None
    tokens, mask, negative = (tensors.get(name) for name in ("tokens", "mask", "negative"))
    if tokens is None or mask is None or tokens.ndim != 3 or not tokens.is_floating_point() or mask.dtype != torch.bool:
        return None
    if mask.shape != tokens.shape[:2] or (negative is not None and negative.shape != tokens.shape):
        return None
    return TextEmbedding(tokens, mask, left_out, negative)
