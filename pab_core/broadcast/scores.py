"""Reuse of attention's scores, softmax(q k), in place of its output: the ablation of the paper (arXiv 2408.12588).

Slower than computing them by a fused kernel, and larger than the outputs: for comparison only. Queries and keys are
still projected, since the blocks know nothing of this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ScoreReuse(TorchFunctionMode):
    """Inside the `with`, attention is computed step by step; with `scores` given, it uses these for its own.

    Otherwise `scores` holds those of the attention that was computed, [..., queries, keys].
    """

    def __init__(self, scores: Tensor | None = None):
        super().__init__()
        self.given = scores
        self.scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args
        assert self.scores is None, "a branch attends once"
        if self.given is not None:
            self.scores = self.given
        else:
            self.scores = attention_scores(query, key, **(kwargs or {}))
        return self.scores.to(value.dtype) @ value


def attention_scores(query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """query [..., M, d], key [..., L, d], mask bool (True = seen) or a bias [..., M or 1, L] -> [..., M, L]."""
    products = (query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            products = products.masked_fill(~attn_mask, float("-inf"))
        else:
            products = products + attn_mask
    return products.softmax(dim=-1).to(query.dtype)
