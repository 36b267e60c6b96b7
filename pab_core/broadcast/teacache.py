"""TeaCache (arXiv 2411.19108): each step either computes the whole model or reuses all that its blocks last added.

The run decides once a step, in one place: the relative change of the first block's input, normalised and modulated by
the timestep, is put through a polynomial that says how much the model's output changes then, and added up; as long as
the sum is below the threshold, the step is reused. The first and the last step are computed.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PabError
from ..models.layers import Branch, modulate
from .calibrated import read_coefficients
from .schedule import ScheduleTable

# By family and depth, highest power first: the authors' (ali-vilab/TeaCache); Latte-1's are not known here. Those in
# files go before them, the demo models' among them: see calibrated.py.
COEFFICIENTS: dict[tuple[str, int], tuple[float, ...]] = {
    ("stdit3", 28): (2.17546007e02, -1.18329252e02, 2.68662585e01, -4.59364272e-02, 4.84426240e-02),
    ("open-sora-plan", 28): (2.05943668e05, -1.48759286e04, 3.06085986e02, 1.31418080e00, 2.39658469e-03),
}
SLOW = 0.1  # the authors' gentler threshold


@dataclass(frozen=True)
class TeaCache:
    """threshold: of the estimated relative change of the output that may add up before a step is computed again."""

    threshold: float
    coefficients: tuple[float, ...]
    name: str = "teacache"
    steps: None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 100:
            raise PabError(f"TeaCache's threshold is a number above 0, such as 0.1, not {self.threshold:g}.")

    def resolve(self, timesteps: tuple[float, ...], branches: tuple[Branch, ...]) -> ScheduleTable:
        computed = dict.fromkeys(branches, tuple(range(len(timesteps))))
        return ScheduleTable(self.name, timesteps, computed, groups=(branches,), decide=self)

    def begin(self, model: nn.Module) -> "TeaCacheDecision":
        return TeaCacheDecision(self, first_modulation(model))


class TeaCacheDecision:
    """The state of one run."""

    def __init__(self, policy: TeaCache, table: Tensor):
        self.policy = policy
        self.table = table  # [6, D]
        self.sum = 0.0
        self.before: Tensor | None = None

    def reuse(self, step: int, steps: int, x: Tensor, cond: Any) -> bool:
        signal = modulated_input(x, cond.modulation, self.table)
        before, self.before = self.before, signal
        if before is None or step in (0, steps - 1):
            self.sum = 0.0
            return False
        self.sum += polynomial(self.policy.coefficients, relative_change(signal, before))
        if self.sum < self.policy.threshold:
            return True
        self.sum = 0.0
        return False


def coefficients_of(family: str, depth: int) -> tuple[float, ...] | None:
    """Highest power first; None where none are known for the model."""
    return read_coefficients(family, depth) or COEFFICIENTS.get((family, depth))


def teacache(family: str, depth: int, threshold: float | None = None) -> TeaCache:
    """PabError where no coefficients are known for the model."""
    coefficients = coefficients_of(family, depth)
    if coefficients is None:
        raise PabError(
            f"TeaCache is not calibrated for a {family} model of depth {depth}: fit it with pab calibrate --teacache, "
            "or choose a policy that needs no calibration, such as one of those named pab."
        )
    name = "teacache" if threshold is None else f"teacache{threshold:g}"
    return TeaCache(SLOW if threshold is None else threshold, coefficients, name)


def first_modulation(model: nn.Module) -> Tensor:
    """The scale-shift table [6, D] of the block that runs first."""
    first = model.branches[0]  # pyright: ignore[reportIndexIssue]
    for module in model.modules():
        if module is not model and getattr(module, "branches", (None,))[0] == first:
            return module.scale_shift_table  # pyright: ignore[reportReturnType]
    raise AssertionError(f"{type(model).__name__} has no block for {first}")


def modulated_input(x: Tensor, modulation: Tensor, table: Tensor) -> Tensor:
    """x [B, T, S, D], modulation [B, 6, D] or [B, 1 or T, 6, D] -> what the first self-attention is given."""
    rows = (modulation if modulation.ndim == 4 else modulation[:, None]) + table  # [B, 1 or T, 6, D]
    shift, scale = rows[:, :, None, 0], rows[:, :, None, 1]
    return modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)


def relative_change(now: Tensor, before: Tensor) -> float:
    """Mean absolute difference over the mean absolute value before."""
    return ((now - before).abs().mean() / before.abs().mean()).item()


def polynomial(coefficients: tuple[float, ...], x: float) -> float:
    """Highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
