"""The text encoder of ranks that work together: one of them encodes, and all get the same."""

from __future__ import annotations

import torch
from torch import Tensor

from ...embedding_cache import CachedTextEncoder
from ...text import TextEmbedding
from .group import Group, share_tensors


class SharedTextEncoder(CachedTextEncoder):
    """Rank 0 encodes, and all get the same; the others never load the encoder."""

    def __init__(self, encoder: CachedTextEncoder, group: Group) -> None:
        super().__init__(encoder.load, encoder.identity, encoder.cleaning, encoder.cache)
        self._inner = encoder
        self._group = group

    def _encode(self, prompt: str, negative: str | None) -> TextEmbedding:
        def make() -> dict[str, Tensor]:
            inner = self._inner
            found = inner.encode(prompt) if negative is None else inner.encode_pair(prompt, negative)
            tensors = {"tokens": found.tokens, "mask": found.mask}
            tensors["left_out"] = torch.tensor(list(found.left_out.encode()), dtype=torch.uint8)
            return tensors if found.negative is None else {**tensors, "negative": found.negative}

        shared = share_tensors(self._group, make)
        left_out = bytes(shared["left_out"].tolist()).decode()
        return TextEmbedding(shared["tokens"], shared["mask"], left_out, shared.get("negative"))
