"""LatteT2V, DDIM by diffusers and broadcast against the authors' code, as the set's cases.json says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_checks import assert_decisions, assert_near, assert_rows_near, case_name
from fixture_sets import load_set
from torch import Tensor

from pab_core.broadcast import BroadcastRun, Policy, ScheduleTable, resolve
from pab_core.models.latte import LatteConfig, LatteT2V
from pab_core.noise_sampling import NoiseSampler, NoiseStep

SET = load_set("latte")
FORWARDS = [case for case in SET.cases if case["kind"] == "forward"]
LOOPS = [case for case in SET.cases if case["kind"] == "loop"]
FORWARD_ATOL = 1e-6
LOOP_ATOL = 1e-3


@pytest.fixture(scope="module")
def model() -> LatteT2V:
    with torch.device("meta"):
        model = LatteT2V(LatteConfig.from_dict(SET.config))
    model.load_state_dict(SET.weights, strict=True, assign=True)
    return model.eval()


def case_table(model: LatteT2V, case: dict[str, Any]) -> ScheduleTable:
    steps = case["num_inference_steps"]
    policy = Policy.from_authors(case["pab"], steps=steps) if case["pab"] else Policy()
    timesteps = NoiseSampler.from_config(case["scheduler"]).timesteps(steps)
    return resolve(policy, timesteps.tolist(), model.branches)


def case_loop(
    model: LatteT2V, case: dict[str, Any], table: ScheduleTable | None, steps: int | None = None
) -> tuple[Tensor, list[NoiseStep]]:
    """-> the final latents, and where the loop stood after each call of the model; None leaves the seam plain."""
    inputs = SET.inputs(case)
    text = torch.cat([inputs[key] for key in ("negative_prompt_embeds", "prompt_embeds") if key in inputs])
    temporal = case.get("enable_temporal_attentions", True)
    run = None if table is None else BroadcastRun(table)
    states: list[NoiseStep] = []

    def predict(x: Tensor, t: Tensor, step: int) -> Tensor:
        if run is None:
            return model(x, t, text[-len(x) :], enable_temporal_attentions=temporal)
        run.step = step
        return model(x, t, text[-len(x) :], enable_temporal_attentions=temporal, seam=run)

    last = NoiseSampler.from_config(case["scheduler"]).sample(
        predict,
        inputs["latents"],
        steps or case["num_inference_steps"],
        guidance=case["guidance_scale"],
        eta=case.get("eta", 0.0),
        on_step=states.append,
    )
    assert run is None or run.kept_bytes == 0
    return last, states


def test_fixture_set_has_cases_of_both_kinds():
    assert FORWARDS
    assert LOOPS
    assert len(FORWARDS) + len(LOOPS) == len(SET.cases)


@pytest.mark.parametrize("case", FORWARDS, ids=case_name)
@torch.no_grad()
def test_fixture_forward(model: LatteT2V, case: dict[str, Any], record_property):
    temporal = case.get("enable_temporal_attentions", True)
    out = model(**SET.inputs(case), enable_temporal_attentions=temporal)
    (target,) = SET.expected(case).values()
    assert_near(case["name"], out, target, FORWARD_ATOL, record_property)


@pytest.mark.parametrize("case", LOOPS, ids=case_name)
@torch.no_grad()
def test_fixture_loop(model: LatteT2V, case: dict[str, Any], record_property):
    expected = SET.expected(case)
    table = case_table(model, case)
    assert list(table.timesteps) == expected["timesteps"].tolist()
    last, states = case_loop(model, case, table)
    assert [state.timestep for state in states] == list(table.timesteps)
    rows = [state.latents for state in states if (state.step + 1) % case["save_every"] == 0]
    assert_rows_near(case["name"], rows, last, expected["latents"], LOOP_ATOL, record_property)


@pytest.mark.parametrize("case", [c for c in LOOPS if c["name"] in (SET.trace or {})], ids=case_name)
def test_fixture_decisions(model: LatteT2V, case: dict[str, Any]):
    assert_decisions(case_table(model, case), (SET.trace or {})[case["name"]])


def test_fixture_every_broadcast_loop_has_recorded_decisions():
    assert {case["name"] for case in LOOPS if case["pab"]} <= set(SET.trace or {})


@pytest.mark.parametrize("name", ["off", "ranges of 1"])
@torch.no_grad()
def test_fixture_broadcast_off_is_bit_exact(model: LatteT2V, name: str):
    """With nothing reused, a run through the seam and the plain model give the very same bits."""
    case = LOOPS[0]
    steps = min(case["num_inference_steps"], 6)
    timesteps = NoiseSampler.from_config(case["scheduler"]).timesteps(steps)
    policy = Policy("off") if name == "off" else Policy("ones", 1, 1, 1)
    table = resolve(policy, timesteps.tolist(), model.branches)
    plain, _ = case_loop(model, case, None, steps)
    seamed, _ = case_loop(model, case, table, steps)
    assert torch.equal(plain, seamed)
