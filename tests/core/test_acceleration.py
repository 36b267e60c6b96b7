"""Compiled blocks follow the schedule as the plain run does. The compiler is left out; what it would be given is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixture_sets import load_set
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pab_core.acceleration.compiled import CompiledRun
from pab_core.broadcast import BroadcastRun, find_policy, resolve
from pab_core.models.registry import ARCHITECTURES

STEPS = 30


def fixture_model(name: str, family: str) -> nn.Module:
    fixture = load_set(name)
    architecture = ARCHITECTURES[family]
    model = architecture.build(architecture.read_config(fixture.config))
    model.load_state_dict(fixture.weights, strict=True)
    return model.eval()


def caller(name: str, family: str) -> Callable[[nn.Module, Any, float], Tensor]:
    """A call of the model at a timestep with the inputs of the set's first forward."""
    fixture = load_set(name)
    case = next(case for case in fixture.cases if case["kind"] == "forward" and case["name"] in ("fwd", "fwd_cfg"))
    inputs = fixture.inputs(case)

    def call(model: nn.Module, run: Any, t: float) -> Tensor:
        key = "timestep"
        return model(**(inputs | {key: torch.full_like(inputs[key], t)}), seam=run)

    return call


@pytest.mark.parametrize(
    ("name", "family", "policy"),
    [("opensora", "stdit3", "pab246"), ("latte", "latte", "pab236"), ("opensora_plan", "open-sora-plan", "pab246")],
)
@torch.no_grad()
def test_compiled_blocks_give_the_plain_runs_results(name: str, family: str, policy: str):
    torch._dynamo.reset()
    counters.clear()
    model, call = fixture_model(name, family), caller(name, family)
    branches: Any = model.branches
    timesteps = [999 - 33 * step for step in range(STEPS)]
    table = resolve(find_policy(policy, family, len(branches)), timesteps, branches)
    plain, fast = BroadcastRun(table), CompiledRun(table, backend="aot_eager")
    worst = 0.0
    for step, t in enumerate(timesteps):
        plain.step = fast.step = step
        expected, found = call(model, plain, t), call(model, fast, t)
        worst = max(worst, float((expected - found).abs().max() / expected.abs().max()))
        assert fast.kept_bytes == plain.kept_bytes
    assert worst < 1e-5
    assert fast.kept_bytes == 0
    # At most one graph for each pattern of each stream: all blocks share them, and streams do where they can.
    patterns = {
        (type(block), block.stream, tuple(_action(table, branch, step) for branch in block.branches))
        for block in blocks(model)
        for step in range(STEPS)
    }
    assert 0 < counters["stats"]["unique_graphs"] <= len(patterns)


def blocks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "stream")]


def _action(table: Any, branch: Any, step: int) -> str:
    source = table.source[branch][step]
    if source != step:
        return "reuse"
    return "keep" if (branch, step) in table.last_use else "compute"
