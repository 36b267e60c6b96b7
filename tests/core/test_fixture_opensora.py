"""STDiT3, rectified flow and broadcast against the authors' code, as the set's cases.json says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_checks import assert_decisions, assert_near, assert_rows_near, case_name
from fixture_sets import load_set
from torch import Tensor

from pab_core.broadcast import BroadcastRun, Policy, ScheduleTable, resolve
from pab_core.models.stdit3 import STDiT3, STDiT3Config
from pab_core.sampling import FlowStep, RectifiedFlow

SET = load_set("opensora")
FORWARDS = [case for case in SET.cases if case["kind"] == "forward"]
LOOPS = [case for case in SET.cases if case["kind"] == "loop"]
FORWARD_ATOL = 2e-5
LOOP_ATOL = 2e-3


@pytest.fixture(scope="module")
def model() -> STDiT3:
    with torch.device("meta"):
        model = STDiT3(STDiT3Config.from_dict(SET.config))
    model.load_state_dict(SET.weights, strict=True, assign=True)
    return model.eval()


def case_timesteps(case: dict[str, Any]) -> Tensor:
    inputs = SET.inputs(case)
    frames, height, width = (int(inputs[key][0]) for key in ("num_frames", "height", "width"))
    return RectifiedFlow().timesteps(case["num_sampling_steps"], frames, height, width)


def case_table(model: STDiT3, case: dict[str, Any]) -> ScheduleTable:
    policy = Policy.from_authors(case["pab"]) if case["pab"] else Policy()
    return resolve(policy, case_timesteps(case).tolist(), model.branches)


def test_fixture_set_has_cases_of_both_kinds():
    assert FORWARDS
    assert LOOPS
    assert len(FORWARDS) + len(LOOPS) == len(SET.cases)


@pytest.mark.parametrize("case", FORWARDS, ids=case_name)
@torch.no_grad()
def test_fixture_forward(model: STDiT3, case: dict[str, Any], record_property):
    inputs = SET.inputs(case)
    given = {key: inputs[key] for key in ("x", "timestep", "y", "fps", "height", "width")}
    out = model(**given, mask=inputs.get("mask"), x_mask=inputs.get("x_mask"))
    (target,) = SET.expected(case).values()
    assert_near(case["name"], out, target, FORWARD_ATOL, record_property)


@pytest.mark.parametrize("case", LOOPS, ids=case_name)
@torch.no_grad()
def test_fixture_loop(model: STDiT3, case: dict[str, Any], record_property):
    inputs, expected = SET.inputs(case), SET.expected(case)
    timesteps = case_timesteps(case)
    assert (timesteps - expected["timesteps"]).abs().max().item() <= 1e-3
    run = BroadcastRun(case_table(model, case))
    y = inputs["y"]
    y = torch.cat([y, model.y_embedder.y_embedding[None, None, : y.shape[2]]])
    size = {key: inputs[key] for key in ("fps", "height", "width")}

    def velocity(z: Tensor, t: Tensor, step: int, x_mask: Tensor | None) -> Tensor:
        run.step = step
        x_mask = None if x_mask is None else x_mask.repeat(2, 1)
        out = model(z.repeat(2, 1, 1, 1, 1), t.repeat(2), y, inputs.get("mask"), x_mask=x_mask, seam=run, **size)
        cond, uncond = out[:, : z.shape[1]].chunk(2)
        return uncond + case["cfg_scale"] * (cond - uncond)

    masked = "cond_mask" in inputs
    rows: list[Tensor] = []

    def keep(state: FlowStep) -> None:
        # A masked loop's rows are what the model was fed, a plain one's what a step left.
        if masked and state.step and state.step % case["save_every"] == 0:
            rows.append(state.model_input)
        if not masked and (state.step + 1) % case["save_every"] == 0:
            rows.append(state.latents)

    last = RectifiedFlow().sample(
        velocity,
        inputs["z"],
        timesteps,
        cond_mask=inputs.get("cond_mask"),
        step_noise=(lambda step: inputs["step_noise"][step]) if masked else None,
        on_step=keep,
    )
    assert_rows_near(case["name"], rows, last, expected["latents"], LOOP_ATOL, record_property)
    assert run.kept_bytes == 0


@pytest.mark.parametrize("case", [c for c in LOOPS if c["name"] in (SET.trace or {})], ids=case_name)
def test_fixture_decisions(model: STDiT3, case: dict[str, Any]):
    assert_decisions(case_table(model, case), (SET.trace or {})[case["name"]])


def test_fixture_every_broadcast_loop_has_recorded_decisions():
    assert {case["name"] for case in LOOPS if case["pab"]} <= set(SET.trace or {})
