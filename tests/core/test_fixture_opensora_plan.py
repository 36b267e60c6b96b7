"""LatteT2V of Open-Sora-Plan, PNDM and broadcast against the authors' code, as the set's cases.json says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_checks import assert_decisions, assert_near, assert_rows_near, case_name
from fixture_sets import load_set
from torch import Tensor

from pab_core.broadcast import BroadcastRun, Policy, ScheduleTable, resolve
from pab_core.models.latte_layers import latte_branches
from pab_core.models.open_sora_plan import OpenSoraPlanConfig, OpenSoraPlanT2V
from pab_core.noise_sampling import NoiseSampler, NoiseStep

SET = load_set("opensora_plan")
FORWARDS = [case for case in SET.cases if case["kind"] == "forward"]
LOOPS = [case for case in SET.cases if case["kind"] == "loop"]
FORWARD_ATOL = 1e-6
LOOP_ATOL = 5e-4


@pytest.fixture(scope="module")
def model() -> OpenSoraPlanT2V:
    with torch.device("meta"):
        model = OpenSoraPlanT2V(OpenSoraPlanConfig.from_dict(SET.config))
    model.load_state_dict(SET.weights, strict=True, assign=True)
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    return model.eval()


def case_timesteps(case: dict[str, Any]) -> Tensor:
    return NoiseSampler.from_config(case["scheduler"]).timesteps(case["num_inference_steps"])


def case_table(model: OpenSoraPlanT2V, case: dict[str, Any]) -> ScheduleTable:
    steps = case["num_inference_steps"]
    policy = Policy.from_authors(case["pab"], steps=steps) if case["pab"] else Policy()
    return resolve(policy, case_timesteps(case).tolist(), model.branches)


def test_fixture_set_has_cases_of_both_kinds():
    assert FORWARDS
    assert LOOPS
    assert len(FORWARDS) + len(LOOPS) == len(SET.cases)


@pytest.mark.parametrize("case", FORWARDS, ids=case_name)
@torch.no_grad()
def test_fixture_forward(model: OpenSoraPlanT2V, case: dict[str, Any], record_property):
    temporal = case.get("enable_temporal_attentions", True)
    out = model(**SET.inputs(case), enable_temporal_attentions=temporal)
    (target,) = SET.expected(case).values()
    assert_near(case["name"], out, target, FORWARD_ATOL, record_property)


@pytest.mark.parametrize("case", LOOPS, ids=case_name)
@torch.no_grad()
def test_fixture_loop(model: OpenSoraPlanT2V, case: dict[str, Any], record_property):
    inputs, expected = SET.inputs(case), SET.expected(case)
    assert torch.equal(case_timesteps(case), expected["timesteps"])
    run = BroadcastRun(case_table(model, case))
    text = inputs["prompt_embeds"]
    if case["guidance_scale"] > 1:
        text = torch.cat([inputs["negative_prompt_embeds"], text])
    temporal = case.get("enable_temporal_attentions", True)
    rows: list[Tensor] = []

    def predict(x: Tensor, t: Tensor, step: int) -> Tensor:
        run.step = step
        return model(x, t, text, enable_temporal_attentions=temporal, seam=run)

    def keep(state: NoiseStep) -> None:
        if (state.step + 1) % case["save_every"] == 0:
            rows.append(state.latents)

    last = NoiseSampler.from_config(case["scheduler"]).sample(
        predict,
        inputs["latents"],
        case["num_inference_steps"],
        guidance=case["guidance_scale"],
        eta=case.get("eta", 0.0),
        on_step=keep,
    )
    assert_rows_near(case["name"], rows, last, expected["latents"], LOOP_ATOL, record_property)
    assert run.kept_bytes == 0


@pytest.mark.parametrize("case", [c for c in LOOPS if c["name"] in (SET.trace or {})], ids=case_name)
def test_fixture_decisions(model: OpenSoraPlanT2V, case: dict[str, Any]):
    assert_decisions(case_table(model, case), (SET.trace or {})[case["name"]])


def test_fixture_every_broadcast_loop_has_recorded_decisions():
    assert {case["name"] for case in LOOPS if case["pab"]} <= set(SET.trace or {})


def test_cross_attention_is_in_spatial_blocks_only():
    kinds = [(branch.stream, branch.kind) for branch in latte_branches(3) if branch.block == 1]
    assert kinds == [
        ("spatial", "spatial"),
        ("spatial", "cross"),
        ("spatial", "mlp"),
        ("temporal", "temporal"),
        ("temporal", "mlp"),
    ]
