"""DeepSpeed-Ulysses (arXiv 2309.14509): inside temporal attention, ranks swap frames for heads and back.

Four all-to-alls of M/N each: of queries, keys, values, and the output. As reuse of scores does, it meets the attention
core from outside, where the blocks call it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .collectives import TEMPORAL, Collectives
from .layout import Layout, shares


class Ulysses:
    """Each rank attends with some of the heads, over all frames."""

    takes_any_attention = False

    def __init__(self, collectives: Collectives, model: Any):
        self.collectives = collectives

    def attend(self, layout: Layout, block: Any, update: Any, x: Tensor) -> Tensor:
        with HeadExchange(self.collectives, layout.frames):
            return update(block, x, layout.own)


class HeadExchange(TorchFunctionMode):
    """Inside the `with`, attention over [N, heads, T / N, d] is over all T frames, with a part of the heads."""

    def __init__(self, collectives: Collectives, frames: list[int]):
        super().__init__()
        self.collectives = collectives
        self.frames = frames

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        assert (kwargs or {}).get("attn_mask") is None, "along time nothing is masked"
        heads = shares(args[0].shape[1], self.collectives.size)
        swap = self.collectives.exchange
        query, key, value = (swap(part, 1, heads, 2, self.frames, TEMPORAL) for part in args)
        # The outer mode's turn, if there is one: what keeps scores keeps those of this rank's heads.
        out: Tensor = func(query, key, value, **(kwargs or {}))
        return swap(out, 2, self.frames, 1, heads, TEMPORAL)
