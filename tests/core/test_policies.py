"""Policies by name: what each resolves to, and what a run by it computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pab_core.broadcast import (
    BroadcastRun,
    Policy,
    ScheduleTable,
    Window,
    customise,
    find_policy,
    policy_names,
    resolve,
    steps_of,
)
from pab_core.broadcast.delta_dit import DELTA_DIT
from pab_core.broadcast.find import calibrated_path
from pab_core.broadcast.scores import ScoreReuse
from pab_core.broadcast.teacache import TeaCache, modulated_input, polynomial, relative_change, teacache
from pab_core.errors import PabError
from pab_core.evaluate.flops import as_published, count_call, paper_setting
from pab_core.models.latte import LatteConfig, LatteT2V
from pab_core.models.layers import Branch
from pab_core.models.registry import MODELS, model_spec
from pab_core.models.stdit3 import STDiT3, STDiT3Config
from pab_core.settings import schedule_for

STEPS = 10
TIMES = [1000.0 - 100 * i for i in range(STEPS)]


def small_latte() -> LatteT2V:
    torch.manual_seed(0)
    return LatteT2V(LatteConfig(2, 8, 3, sample_size=8, caption_channels=12)).eval()


def small_stdit3() -> STDiT3:
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(16, 3, 2, caption_channels=12, model_max_length=5)).eval()
    for name, parameter in model.named_parameters():
        if name != "rope.freqs":
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def call(model: torch.nn.Module, step: int, seam: Any = None) -> Tensor:
    """The model on an input of its own at each step."""
    torch.manual_seed(100 + step)
    x, t, text = torch.randn(2, 4, 3, 8, 8), torch.full((2,), TIMES[step]), torch.randn(1, 5, 12).repeat(2, 1, 1)
    given = {} if seam is None else {"seam": seam}
    if isinstance(model, STDiT3):
        given |= {"fps": torch.tensor([8.0]), "height": torch.tensor([64.0]), "width": torch.tensor([64.0])}
    with torch.no_grad():
        return model(x, t, text, **given)


def walk(model: torch.nn.Module, table: ScheduleTable) -> tuple[list[Tensor], BroadcastRun]:
    run = BroadcastRun(table)
    run.begin(model)
    made = []
    for run.step in range(table.steps):
        made.append(call(model, run.step, run))
    return made, run


MODELS_HERE = pytest.mark.parametrize("make", [small_latte, small_stdit3])


# By name


@pytest.mark.parametrize("family", ["stdit3", "latte", "open-sora-plan"])
def test_every_name_resolves_on_the_released_model(family: str):
    spec = next(spec for spec in MODELS.values() if spec.family == family and spec.depth == 28)
    for name in policy_names(family, 28):
        policy = find_policy(name, family, 28)
        assert policy.name == name
        assert schedule_for(spec, policy).policy == name


def test_names_that_need_calibration_are_listed_where_there_is_one():
    assert "teacache" in policy_names("stdit3", 28)
    assert "teacache" not in policy_names("latte", 28)
    assert not calibrated_path("stdit3", 3).is_file()
    assert "calibrated" not in policy_names("stdit3", 3)
    with pytest.raises(PabError, match=r"No schedule has been calibrated for a stdit3 model of depth 3.*pab calibrate"):
        find_policy("calibrated", "stdit3", 3)
    with pytest.raises(PabError, match=r"TeaCache is not calibrated for a latte model of depth 28"):
        find_policy("teacache", "latte", 28)


@pytest.mark.parametrize(
    ("name", "near"), [("tgat", "tgate"), ("steps", "steps20"), ("deltadit", "delta-dit"), ("steps0", "steps20")]
)
def test_a_name_that_is_nearly_right_is_met_with_the_right_one(name: str, near: str):
    with pytest.raises(PabError, match=f"no policy named '{name}'. Did you mean {near}?"):
        find_policy(name, "stdit3", 28)


@pytest.mark.parametrize("policy", [None, 246, b"pab246"])
def test_what_is_no_policy_is_told(policy: Any):
    with pytest.raises(PabError, match="A policy is a name such as pab246, the path of a schedule file or a Policy"):
        find_policy(policy, "stdit3", 28)


def test_ranges_of_more_digits():
    policy = cast(Policy, find_policy("pab2-12-30", "stdit3", 28))
    assert (policy.spatial, policy.temporal, policy.cross) == (2, 12, 30)
    with pytest.raises(PabError, match="below 1"):
        find_policy("pab2-0-30", "stdit3", 28)
    branches = small_stdit3().branches
    assert resolve(find_policy("pab2-4-10", "stdit3", 3), TIMES, branches).reused_share() > 0.1
    with pytest.raises(PabError, match="temporal broadcast range 12 is longer than the run, which calls the model 10"):
        resolve(policy, TIMES, branches)


def test_policies_without_ranges_take_no_settings():
    assert customise("delta-dit", "stdit3", 28) == DELTA_DIT["stdit3"]
    with pytest.raises(PabError, match="delta-dit has no ranges or window to change"):
        customise("delta-dit", "stdit3", 28, spatial=3)


def test_ranges_and_windows_set_by_hand_must_fit_the_run():
    branches = small_stdit3().branches
    for cross in (12, 10**20):
        with pytest.raises(PabError, match=f"cross broadcast range {cross} is longer than the run.* the model 10"):
            resolve(cast(Policy, customise("pab246", "stdit3", 3, cross=cross)), TIMES, branches)
    narrow = cast(Policy, customise("pab246", "stdit3", 3, window=Window(0.31, 0.32)))
    with pytest.raises(PabError, match=r"holds none of the run's 10 steps.*or the policy off"):
        resolve(narrow, TIMES, branches)
    # The published ranges may outlast a short run, and the published window miss one of a single step.
    assert resolve(find_policy("pab246", "stdit3", 3), [1000.0], branches).reused_share() == 0
    assert resolve(find_policy("pab579", "stdit3", 3), TIMES[:4], branches).reused_share() > 0


# Fewer steps


def test_fewer_steps_reuse_nothing_and_say_how_many():
    policy = find_policy("steps20", "stdit3", 28)
    assert steps_of(policy, 30) == 20
    assert steps_of(find_policy("pab246", "stdit3", 28), 30) == 30
    table = resolve(policy, TIMES, small_stdit3().branches)
    assert table.sampler_steps == 20
    assert table.reused_share() == 0
    with pytest.raises(PabError, match="makes 20 steps, more than the 10 of the run"):
        steps_of(policy, 10)


# T-GATE and Delta-DiT


def test_tgate_by_hand():
    table = schedule_for(MODELS["open-sora"], "tgate")
    for kind in ("spatial", "temporal"):
        assert table.reused_row(kind) == [float(0 < i < 12 and i % 2 == 1) for i in range(30)]
    assert table.reused_row("cross") == [float(i > 12) for i in range(30)]
    assert all(table.source[b][13:] == (12,) * 17 for b in table.branches if b.kind == "cross")
    assert table.reused_share("mlp") == 0
    latte = schedule_for(MODELS["latte"], "tgate")
    assert latte.reused_row("spatial") == [float(0 < i < 20 and i % 2 == 1) for i in range(50)]
    assert latte.reused_row("cross") == [float(i > 20) for i in range(50)]
    plan = schedule_for(MODELS["open-sora-plan"], "tgate")
    assert plan.reused_row("temporal") == [float(0 < i < 60 and i % 3 != 0) for i in range(159)]
    assert plan.reused_row("cross") == [float(i > 90) for i in range(159)]


@pytest.mark.parametrize(
    ("model", "blocks", "steps"), [("open-sora", 6, [1, 3, 5]), ("latte", 2, [1]), ("open-sora-plan", 3, [1])]
)
def test_delta_dit_by_hand(model: str, blocks: int, steps: list[int]):
    table = schedule_for(MODELS[model], "delta-dit")
    for branch in table.branches:
        assert [i for i in range(table.steps) if table.reuses(branch, i)] == (steps if branch.block < blocks else [])
    (group,) = table.groups
    assert {branch.block for branch in group} == set(range(blocks))
    assert len(table.keepers) == len(table.branches) - len(group) + 1


def test_the_baselines_cost_what_the_paper_says():
    """TFLOPs of Open-Sora in the paper's table, with 18 text tokens."""
    spec, paper = model_spec("open-sora"), paper_setting("open-sora")
    counted = as_published(count_call(spec, paper.config, 18), spec, paper, 18).without_cores(paper.unseen_cores)
    for name, published in (("tgate", 2818.40), ("delta-dit", 3166.47)):
        total = paper.text_encoder + paper.decoder + counted.over(schedule_for(spec, name)) / 1e12
        assert total == pytest.approx(published, rel=1e-4)


@MODELS_HERE
def test_delta_dit_adds_the_residual_of_its_blocks(make: Any):
    """At a reused step, the first blocks give what they are given plus the output minus the input of the step before,
    and what the model adds between its blocks (Latte's frame positions) is added once."""
    model = make()
    table = resolve(DELTA_DIT["stdit3"], TIMES, model.branches)
    (group,) = table.groups
    after = table.branches[len(group)]
    made, run = walk(model, table)

    sums: dict[int, Tensor] = {}
    met: list[Branch] = []

    def seam(branch: Branch, update: Any, x: Tensor, cond: Any) -> Tensor:
        met.append(branch)
        if step % 2 == 0 or branch not in group:
            value = update(x, cond)
            if branch in group:
                sums[step] = sums.get(step, 0) + value
            return value
        return sums[step - 1] if branch == group[0] else torch.zeros_like(x)

    for step in range(2):
        torch.testing.assert_close(made[step], call(model, step, seam), rtol=1e-5, atol=1e-5)
    assert after in met
    # It is not the plain model, and not the sign with which the paper measured it.
    plain = call(model, 1)
    assert not torch.allclose(made[1], plain, atol=1e-3)
    assert run.kept_bytes == 0
    # One tensor is kept for the whole range.
    assert run.peak_bytes == sums[0].numel() * 4


# Scores


def test_scores_246_reuses_scores_where_pab246_reuses_updates():
    scores, updates = (schedule_for(MODELS["open-sora"], name) for name in ("scores246", "pab246"))
    assert scores.scores
    assert not updates.scores
    assert dict(scores.source) == dict(updates.source)


@MODELS_HERE
def test_attention_by_scores_is_attention(make: Any):
    """Where the model sees the same input, the scores kept are those that it would compute."""
    model = make()
    policy = Policy("scores", 2, 2, 2, scores=True)
    run = BroadcastRun(resolve(policy, TIMES, model.branches))
    for run.step in range(2):
        torch.testing.assert_close(call(model, 0, run), call(model, 0), rtol=1e-4, atol=1e-5)
    assert run.kept_bytes == 0
    assert run.peak_bytes > 0


@MODELS_HERE
def test_reused_scores_meet_fresh_values(make: Any):
    model = make()
    run = BroadcastRun(resolve(Policy("scores", 2, 2, 2, scores=True), TIMES, model.branches))
    seen: list[tuple[Tensor, Tensor]] = []
    for run.step in range(2):
        for branch, update, x, cond in captured(model, run.step):
            if run.step == 0:
                run(branch, update, x, cond)
                continue
            if branch.kind == "mlp":
                torch.testing.assert_close(run(branch, update, x, cond), update(x, cond))
                continue
            by_scores, fresh = run(branch, update, x, cond), update(x, cond)
            seen.append((by_scores, fresh))
    assert seen
    assert all(not torch.allclose(a, b, atol=1e-6) for a, b in seen)


def captured(model: torch.nn.Module, step: int) -> list[tuple[Branch, Any, Tensor, Any]]:
    """The seam's calls at a step of the plain model."""
    found: list[tuple[Branch, Any, Tensor, Any]] = []

    def seam(branch: Branch, update: Any, x: Tensor, cond: Any) -> Tensor:
        found.append((branch, update, x, cond))
        return update(x, cond)

    call(model, step, seam)
    return found


@pytest.mark.parametrize("mask", ["none", "bool", "bias"])
def test_scores_are_those_of_the_fused_kernel(mask: str):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    given: dict[str, Any] = {}
    if mask == "bool":
        given["attn_mask"] = torch.arange(7).lt(4).expand(2, 1, 1, 7)
    if mask == "bias":
        given["attn_mask"] = torch.randn(2, 1, 1, 7)
    expected = F.scaled_dot_product_attention(q, k, v, **given)
    with ScoreReuse() as attention:
        made = F.scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(made, expected)
    assert attention.scores is not None
    other = torch.randn_like(v)
    with ScoreReuse(attention.scores):
        reused = F.scaled_dot_product_attention(torch.randn_like(q), torch.randn_like(k), other, **given)
    torch.testing.assert_close(reused, F.scaled_dot_product_attention(q, k, other, **given))


# TeaCache


@MODELS_HERE
def test_a_threshold_never_reached_reuses_all_but_the_first_and_last_step(make: Any):
    model = make()
    made, run = walk(model, resolve(TeaCache(50, (1e-9, 0.0)), TIMES, model.branches))
    table = run.taken
    assert all(row == (*[0] * (STEPS - 1), STEPS - 1) for row in table.source.values())
    assert table.reused_share() == pytest.approx(0.8)
    # The whole model's update is one tensor.
    assert run.peak_bytes == 2 * 3 * 16 * 16 * 4
    plain, _ = walk(model, resolve(Policy("off"), TIMES, model.branches))
    assert torch.equal(made[0], plain[0])
    assert torch.equal(made[-1], plain[-1])
    assert not torch.equal(made[1], plain[1])


@MODELS_HERE
def test_a_threshold_always_reached_is_off_to_the_bit(make: Any):
    model = make()
    made, run = walk(model, resolve(TeaCache(0.1, (0.0, 1.0)), TIMES, model.branches))
    plain, _ = walk(model, resolve(Policy("off"), TIMES, model.branches))
    assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True))
    assert run.taken.reused_share() == 0


def test_teacache_adds_up_the_rescaled_changes():
    """With 0.04 a step and a threshold of 0.1, every third step is computed."""
    model = small_stdit3()
    _, run = walk(model, resolve(TeaCache(0.1, (0.0, 0.04)), TIMES, model.branches))
    assert run.taken.source[model.branches[0]] == (0, 0, 0, 3, 3, 3, 6, 6, 6, 9)


@MODELS_HERE
def test_teacaches_signal_is_what_the_first_attention_is_given(make: Any):
    model = make()
    block = next(m for m in model.modules() if type(m).__name__.endswith("Block"))
    attention = block.attn if hasattr(block, "attn") else block.attn1
    given: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    (_, _, x, cond), *_ = captured(model, 4)
    hook.remove()
    signal = modulated_input(x, cond.modulation, block.scale_shift_table)
    torch.testing.assert_close(signal.flatten(0, 1), given[0])


def test_both_lanes_of_guidance_follow_one_decision():
    model = small_stdit3()
    run = BroadcastRun(resolve(TeaCache(0.1, (0.0, 0.04)), TIMES, model.branches))
    run.begin(model)
    for run.step in range(STEPS):
        for run.lane in ("cond", "uncond"):
            call(model, run.step, run)
    assert run.taken.source[model.branches[0]] == (0, 0, 0, 3, 3, 3, 6, 6, 6, 9)
    assert run.kept_bytes == 2 * (2 * 3 * 16 * 16 * 4)


def test_teacache_numbers():
    assert polynomial((2.0, -1.0, 3.0), 2.0) == 9.0
    assert relative_change(torch.tensor([2.0, -2.0]), torch.tensor([1.0, -1.0])) == 1.0
    assert teacache("stdit3", 28, 0.2).name == "teacache0.2"
    assert cast(TeaCache, find_policy("teacache0.25", "stdit3", 28)).threshold == 0.25
    with pytest.raises(PabError, match="threshold is a number above 0"):
        find_policy("teacache0", "stdit3", 28)


# Files


def test_a_path_is_a_policy(tmp_path: Path):
    from pab_core.broadcast.schedule_file import save_schedule, schedule_of

    table = resolve(find_policy("pab246", "stdit3", 3), TIMES, small_stdit3().branches)
    path = save_schedule(schedule_of(table, "stdit3", 3, "mine"), tmp_path / "mine.json")
    for given in (path, str(path)):
        assert dict(resolve(find_policy(given, "stdit3", 3), TIMES, table.branches).source) == dict(table.source)
    with pytest.raises(PabError, match=r"'mine' is for a stdit3 model of depth 3.*this is a latte model of depth 28"):
        find_policy(path, "latte", 28)
    with pytest.raises(PabError, match="cannot be read"):
        find_policy(tmp_path / "none.json", "stdit3", 3)
    with pytest.raises(PabError, match=re.escape("no policy named 'mine'")):
        find_policy("mine", "stdit3", 3)


def test_a_file_with_a_predictor(tmp_path: Path):
    from pab_core.broadcast.schedule_file import save_schedule, schedule_of

    table = resolve(find_policy("pab246+linear", "stdit3", 3), TIMES, small_stdit3().branches)
    path = save_schedule(schedule_of(table, "stdit3", 3), tmp_path / "mine.json")
    assert resolve(find_policy(path, "stdit3", 3), TIMES, table.branches).predictor == "linear"
    other = resolve(find_policy(f"{path}+taylor", "stdit3", 3), TIMES, table.branches)
    assert (other.predictor, other.policy) == ("taylor", "pab246+taylor")
    with pytest.raises(PabError, match="is for a stdit3 model of depth 3"):
        find_policy(f"{path}+taylor", "latte", 28)


@pytest.mark.parametrize("name", ["pab246+linear+taylor", "here/mine.json+hold+linear"])
def test_two_predictors_are_one_too_many(name: str):
    with pytest.raises(PabError, match=r"names two predictors, (linear and taylor|hold and linear): leave one"):
        find_policy(name, "stdit3", 3)


def test_a_sum_of_branches_has_no_gate():
    assert find_policy("calibrated-fast", "stdit3", 5).name == "calibrated-fast"
    with pytest.raises(PabError, match=r"'calibrated-fast' keeps neighbouring branches as one sum.*another predictor"):
        find_policy("calibrated-fast+gate", "stdit3", 5)
