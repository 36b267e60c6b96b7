"""Dynamic sequence parallelism (arXiv 2403.10266): for temporal attention, ranks swap frames for tokens and back.

Two all-to-alls of M/N each, where M is the size of x and N the number of ranks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .collectives import TEMPORAL, Collectives
from .layout import Layout


class Dsp:
    """All tokens' frames come together on the rank that holds the token."""

    takes_any_attention = True

    def __init__(self, collectives: Collectives, model: Any):
        self.collectives = collectives

    def attend(self, layout: Layout, block: Any, update: Any, x: Tensor) -> Tensor:
        x = self.collectives.exchange(x, 2, layout.tokens, 1, layout.frames, TEMPORAL)  # [B, T, S / N, D]
        x = update(block, x, layout.whole)
        return self.collectives.exchange(x, 1, layout.frames, 2, layout.tokens, TEMPORAL)
