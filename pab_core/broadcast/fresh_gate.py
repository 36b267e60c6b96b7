"""Reuse under the gate of the present step: what a branch computed before its gate is reused, the gate is not.

A block scales each update by a gate that follows from the timestep and costs next to nothing. What is kept is the gated
update, as ever, and beside it the gate that it was computed under, a number for each channel: the update times the
present gate over that one is the ungated update under the present gate, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.layers import Branch


class FreshGate:
    """A predictor. Cross-attention has no gate and is reused as it is."""

    def __init__(self) -> None:
        self._blocks: dict[Branch, Any] = {}
        self._gates: dict[tuple[str, Branch], Tensor] = {}  # of the last computed updates, float32 [B, 1 or T, 1, D]

    def begin(self, model: nn.Module) -> None:
        for module in model.modules():
            if module is not model:
                self._blocks |= dict.fromkeys(getattr(module, "branches", ()), module)

    def note(self, lane: str, branch: Branch, cond: Any) -> None:
        if branch.kind != "cross":
            self._gates[lane, branch] = self._gate(branch, cond)

    def predict(self, lane: str, branch: Branch, step: int, kept: Sequence[tuple[int, Tensor]], cond: Any) -> Tensor:
        value = kept[0][1]
        if branch.kind == "cross":
            return value
        then, now = self._gates[lane, branch], self._gate(branch, cond)
        # Under a gate of zero nothing is known of the channel, and nothing was added for it.
        ratio = torch.where(then == 0, torch.ones_like(then), now / then)
        return value * ratio.to(value.dtype)

    @property
    def held_bytes(self) -> int:
        """One row for thousands of tokens: left out of what is predicted."""
        return sum(gate.numel() * gate.element_size() for gate in self._gates.values())

    def _gate(self, branch: Branch, cond: Any) -> Tensor:
        rows = slice(3, 6) if branch.kind == "mlp" else slice(0, 3)
        return self._blocks[branch]._modulation(cond, rows)[2].float()
