"""Method "auto": how many ranks share a clip, and how, by what a step should cost; then checked against the clock.

The model: a step takes what it takes on one device, divided as evenly as frames and batch allow, and what its
collectives take on the link between the devices,

    t(method, n) = t(1) x largest share + calls x latency + bytes / bandwidth

with the time of one device, the latency and the bandwidth measured by the workers when a model first runs at a size
(measuring.py). Bytes and calls of a step that computes all temporal attention, x of M bytes (parallel/dsp.py, ...):

    dsp 2 calls of M/n a temporal block, ulysses 4 of M/n, megatron an all-gather and a reduce-scatter of M each

of which (n - 1)/n leave the device. The CFG split halves the batch and swaps no more than one prediction a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import PabError
from ..methods import METHODS, Sizes, check_sizes, find_method

# (calls a temporal block, bytes of all its calls in units of M, before the division by n where there is one)
_TRAFFIC = {"dsp": (2, 2.0, True), "ulysses": (4, 4.0, True), "megatron": (2, 2.0, False)}
_WORTHWHILE = 0.95  # of one device's time: what gains less is within what two measurements differ by


@dataclass(frozen=True)
class Shape:
    """What of a clip and its model decides what there is to divide and to send."""

    frames: int  # latent
    tokens: int  # of a frame
    heads: int
    guided: bool
    hidden_size: int
    depth: int  # temporal blocks
    bytes: int  # of a number

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Shape:
        return cls(**plain)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.frames, self.tokens, self.heads, self.guided)

    def activations(self, batch: int) -> int:
        """M: bytes of x [batch, T, S, D]."""
        return batch * self.frames * self.tokens * self.hidden_size * self.bytes


@dataclass(frozen=True)
class Costs:
    """Measured. alone: seconds of a step on one device, None where it does not fit there; latency: seconds of a
    collective; bandwidth: bytes a second that leave a device in one."""

    alone: float | None
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Plan:
    """How a team makes a clip: with its first `ranks` ranks. `why`: a sentence for the user, where one is due."""

    method: str
    ranks: int
    why: str = ""


def estimate(method: str, ranks: int, shape: Shape, costs: Costs) -> float:
    """Seconds of a step that reuses nothing; PabError where so many ranks cannot share the clip."""
    check_sizes(method, ranks, shape.sizes)
    alone = 1.0 if costs.alone is None else costs.alone  # where it is not known only the order of methods matters
    if ranks == 1:
        return alone
    parts = find_method(method)
    inner = ranks // 2 if parts.halves else ranks
    batch = 2 if shape.guided else 1
    share, seconds = 1.0, 0.0
    if parts.halves:
        share, batch = 0.5, 1
        seconds += costs.latency
    if parts.sequence is not None and inner > 1:
        # The rank with the most frames sets the pace.
        share *= -(-shape.frames // inner) / shape.frames
        calls, units, divided = _TRAFFIC[parts.sequence]
        moved = units * shape.activations(batch) / (inner if divided else 1) * (inner - 1) / inner
        seconds += shape.depth * (calls * costs.latency + moved / costs.bandwidth)
    return alone * share + seconds


def choose(ranks: int, shape: Shape, costs: Costs) -> Plan:
    """The method, and as many of the ranks, that should take the least time; of equals the one listed first.

    One device only where the clip is known to fit on it, or where nothing can be shared out.
    """
    best, least = Plan("none", 1), math.inf if costs.alone is None else estimate("none", 1, shape, costs)
    for count in range(ranks, 1, -1):
        for method in METHODS:
            try:
                seconds = estimate(method, count, shape, costs)
            except PabError:
                continue
            if seconds < least * (1 if best.ranks > 1 else _WORTHWHILE):
                best, least = Plan(method, count), seconds
    return best


def check(plan: Plan, ranks: int, shape: Shape, costs: Costs, measured: float | None) -> Plan:
    """What is done after all, once a step of the plan has been measured; with a warning where devices gain nothing."""
    if plan.ranks == 1:
        reason = (
            f"moving data between them costs more than it saves: {_link(costs)}"
            if shape.frames > 1 or shape.guided
            else "this clip has a single latent frame and no guidance, nothing to divide"
        )
        return Plan("none", 1, f"{ranks} devices would be no faster than one for this clip ({reason}); one makes it.")
    if measured is None or costs.alone is None or measured <= costs.alone * _WORTHWHILE:
        if plan.ranks < ranks:
            why = f"This clip is made by {plan.ranks} of the {ranks} devices; more would not make it faster."
            return Plan(plan.method, plan.ranks, why)
        return plan
    expected = estimate(plan.method, plan.ranks, shape, costs)
    return Plan(
        "none",
        1,
        f"{plan.ranks} devices are no faster than one for this clip (a step takes {measured:.3g} s on them by "
        f"{plan.method}, where {expected:.3g} s were expected, and {costs.alone:.3g} s on one; {_link(costs)}): one "
        "makes it. Use the devices for several videos side by side.",
    )


def _link(costs: Costs) -> str:
    return f"{costs.bandwidth / 1e9:.2g} GB/s and {costs.latency * 1e6:.0f} us a call between them"
