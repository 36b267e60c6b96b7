"""Policies, windows, presets, the schedule table, its picture and the state of a run; no model is needed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pab_core.broadcast import (
    MlpRule,
    Policy,
    ScheduleTable,
    Window,
    customise,
    find_policy,
    preset_names,
    resolve,
)
from pab_core.broadcast.presets import FAMILIES, family_mlp_rules
from pab_core.checkpoints import known_model
from pab_core.errors import PabError
from pab_core.models.latte_layers import latte_branches
from pab_core.models.layers import Branch, Kind
from pab_core.models.registry import MODELS
from pab_core.models.stdit3 import stdit3_branches
from pab_core.sampling import RectifiedFlow
from pab_core.settings import schedule_for

DATA = Path(__file__).resolve().parent.parent / "data" / "fixtures" / "opensora"
AUTHORS_TIMES: list[dict[str, Any]] = json.loads((DATA / "timesteps_30.json").read_text(encoding="utf-8"))
AUTHORS_RANGES = {"pab246": (2, 4, 6), "pab357": (3, 5, 7), "pab579": (5, 7, 9)}
LATTE_RANGES = {"pab236": (2, 3, 6), "pab347": (3, 4, 7), "pab469": (4, 6, 9)}


def authors_config(
    ranges: tuple[int, int, int], window: tuple[int, int], keys: tuple[int, ...], skip: int, blocks: int
) -> dict[str, Any]:
    """The authors' configuration in their own form."""
    config: dict[str, Any] = {"mlp_broadcast": True}
    for kind, n in zip(("spatial", "temporal", "cross"), ranges, strict=True):
        config |= {f"{kind}_broadcast": True, f"{kind}_range": n, f"{kind}_threshold": list(window)}
    rules = {str(key): {"block": list(range(blocks)), "skip_count": skip} for key in keys}
    return config | {"mlp_spatial_broadcast_config": rules, "mlp_temporal_broadcast_config": rules}


def customised(policy: Any, family: str, depth: int, **changes: Any) -> Policy:
    made = customise(policy, family, depth, **changes)
    assert isinstance(made, Policy)
    return made


def decisions(table: ScheduleTable) -> dict[Branch, tuple[int, ...]]:
    return dict(table.source)


# Ranges and windows


@pytest.mark.parametrize("kind", ["spatial", "temporal", "cross"])
@pytest.mark.parametrize(
    ("value", "words"), [(0, "below 1"), (-3, "below 1"), (2.5, "whole"), ("2", "whole"), (True, "whole")]
)
def test_a_range_is_a_whole_number_from_1(kind: str, value: Any, words: str):
    with pytest.raises(PabError, match=f"The {kind} broadcast range.*{words}"):
        Policy(**{kind: value})
    with pytest.raises(PabError, match=f"The {kind} broadcast range.*{words}"):
        customised("pab246", "stdit3", 5, **{kind: value})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.85:0.3", "reversed or empty"),
        ("0.5:0.5", "reversed or empty"),
        ("-0.1:0.5", "outside the run"),
        ("0.3:1.2", "outside the run"),
        ("nan:1", "not made of two numbers"),
        ("0:inf", "not made of two numbers"),
        ("0.3", "not a broadcast window"),
        ("0.3:0.5:0.8", "not a broadcast window"),
        ("a:b", "not a broadcast window"),
        ("", "not a broadcast window"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(text: str, words: str):
    with pytest.raises(PabError, match=words):
        Window.parse(text)


@pytest.mark.parametrize("start", ["0", None, True])
def test_a_window_is_made_of_numbers(start: Any):
    with pytest.raises(PabError, match="not made of two numbers"):
        Window(start, 1.0)


def test_window_units():
    steps = 30
    fraction = Window.parse(" 0.1 : 0.7")
    assert [i for i in range(steps) if (i, steps, 0.0) in fraction] == list(range(3, 21))
    assert [i for i in range(steps) if (i, steps, 0.0) in Window(5, 8, "step")] == [5, 6, 7]
    times = [451.9, 450.9, 450.0, 929.9, 930.0]
    assert [t for t in times if (0, steps, t) in Window(450, 930, "timestep")] == [451.9, 929.9]


@pytest.mark.parametrize("steps", range(1, 60))
def test_a_fraction_means_the_same_step_whatever_the_rounding(steps: int):
    for first in range(steps):
        window = Window(first / steps, 1.0)
        assert [i for i in range(steps) if (i, steps, 0.0) in window] == list(range(first, steps))


@pytest.mark.parametrize("rule", [{"skip": -1}, {"skip": 1.5}, {"skip": True}, {"at": 1.5}, {"at": -0.1}])
def test_an_mlp_rule_that_makes_no_sense_is_refused(rule: dict[str, Any]):
    with pytest.raises(PabError, match="An MLP rule"):
        MlpRule(**({"at": 0.5, "skip": 2} | rule))


# Presets


def test_preset_names():
    assert preset_names("stdit3") == ("off", "pab246", "pab357", "pab579")
    assert preset_names("latte") == ("off", "pab236", "pab347", "pab469")
    for family in FAMILIES:
        for name in preset_names(family):
            assert find_policy(name, family, 28).name == name
    assert customised("off", "stdit3", 5).is_off
    assert customised("pab111", "stdit3", 5).is_off


@pytest.mark.parametrize(("name", "near"), [("pab24", "pab246"), ("pab2466", "pab246"), ("OFF", None), ("", None)])
def test_an_unknown_policy_is_refused_with_near_names(name: str, near: str | None):
    with pytest.raises(PabError, match=f"There is no policy named '{name}'") as caught:
        find_policy(name, "stdit3", 5)
    assert "off, pab246, pab357, pab579" in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == (near is not None)
    assert near is None or f"Did you mean {near}?" in str(caught.value)


@pytest.mark.parametrize("name", AUTHORS_RANGES)
@pytest.mark.parametrize("times", ["int_bf16", "t_fp32"])
def test_the_presets_are_the_authors_schedule_at_480p_51_frames_30_steps(name: str, times: str):
    entries = [e for e in AUTHORS_TIMES if e["resolution"] == "480p" and e["num_frames"] == 51]
    assert entries
    branches = stdit3_branches(28)
    for entry in entries:
        # The authors' literal keys are met by timesteps rounded to bfloat16 only, which is what they run.
        config = authors_config(AUTHORS_RANGES[name], (450, 930), (864, 788, 676), 2, 5)
        theirs = resolve(Policy.from_authors(config), entry["int_bf16"], branches)
        ours = resolve(find_policy(name, "stdit3", 28), entry[times], branches)
        assert decisions(ours) == decisions(theirs)
        reused = [i for i in range(30) if ours.reused_blocks(i, "mlp", "spatial")]
        assert reused == [14, 15, 18, 19, 22, 23]
        assert ours.reused_blocks(14, "mlp", "temporal") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", LATTE_RANGES)
def test_the_latte_presets_are_the_authors_schedule_at_50_steps(name: str):
    timesteps = [float(t) for t in range(980, -1, -20)]
    branches = latte_branches(28)
    config = authors_config(LATTE_RANGES[name], (100, 800), (720, 640, 560, 480, 400), 2, 5)
    theirs = resolve(Policy.from_authors(config), timesteps, branches)
    assert decisions(resolve(find_policy(name, "latte", 28), timesteps, branches)) == decisions(theirs)
    assert decisions(schedule_for(MODELS["latte"], name)) == decisions(theirs)


def test_pab236_of_latte_takes_the_decisions_recorded_from_the_authors_code():
    trace = json.loads((DATA.parent / "latte" / "pab_trace.json").read_text(encoding="utf-8"))["loop50_pab236"]
    table = schedule_for(MODELS["latte"], "pab236")
    assert [int(t) for t in table.timesteps] == [call["t"] for call in trace]
    for kind in ("spatial", "temporal", "cross"):
        assert table.reused_row(kind) == [float(call[kind]) for call in trace]
    for stream in ("spatial", "temporal"):
        found = [table.reused_blocks(i, "mlp", stream) for i in range(table.steps)]
        assert found == [call[f"mlp_{stream}"] for call in trace]


@pytest.mark.parametrize("name", AUTHORS_RANGES)
def test_the_open_sora_plan_presets_are_the_authors_schedule_at_150_steps(name: str):
    spec, _ = known_model("open-sora-plan")
    ours = schedule_for(spec, name)
    assert ours.steps == 159
    config = authors_config(AUTHORS_RANGES[name], (100, 850), tuple(range(738, 425, -24)), 2, 7)
    theirs = resolve(Policy.from_authors(config, steps=150), ours.timesteps, latte_branches(28))
    assert decisions(ours) == decisions(theirs)


@pytest.mark.parametrize("name", ["pab246", "pab579"])
def test_the_open_sora_plan_presets_reuse_what_the_authors_code_reused(name: str):
    trace = json.loads((DATA.parent / "opensora_plan" / "pab_trace.json").read_text(encoding="utf-8"))
    table = schedule_for(MODELS["open-sora-plan"], name)
    calls = trace[f"loop150_{name}"]
    assert len(calls) == table.steps
    for step, call in enumerate(calls):
        assert {kind: table.reused_row(kind)[step] for kind in ("spatial", "temporal", "cross")} == {
            kind: float(call[kind]) for kind in ("spatial", "temporal", "cross")
        }
        for stream in ("spatial", "temporal"):
            assert table.reused_blocks(step, "mlp", stream) == call[f"mlp_{stream}"]


@pytest.mark.parametrize("steps", [4, 8, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 250])
def test_the_open_sora_plan_presets_reuse_mlps_at_every_step_count(steps: int):
    table = schedule_for(MODELS["open-sora-plan"], "pab246", steps=steps)
    assert table.reused_share("mlp") >= 0.1 * 7 / 28


def test_pab246_by_hand():
    """The authors' rule: reuse where the step is no multiple of the range and lies inside the window."""
    spec, flow = known_model("open-sora")
    table = schedule_for(spec, "pab246", flow)
    ranges: dict[Kind, int] = {"spatial": 2, "temporal": 4, "cross": 6}
    for kind, n in ranges.items():
        assert table.reused_row(kind) == [float(i % n != 0 and 9 <= i <= 25) for i in range(30)]
    assert sum(table.reused_row("temporal")) == 13  # so that 17 of 30 steps communicate, as in the paper's table


def test_thresholds_of_the_authors_with_nothing_between_them_reuse_nothing():
    config = {"spatial_broadcast": True, "spatial_threshold": [600, 600], "spatial_range": 2}
    config |= {"mlp_broadcast": True, "mlp_spatial_broadcast_config": {"700": {"block": [0], "skip_count": 1}}}
    table = resolve(Policy.from_authors(config), (800, 700, 600, 500), latte_branches(2))
    assert table.reused_row("spatial") == [0, 0, 0, 0]
    assert [table.reused_blocks(i, "mlp", "spatial") for i in range(4)] == [[], [], [0], []]


def test_timesteps_are_the_authors_at_every_published_size():
    for entry in AUTHORS_TIMES:
        ours = RectifiedFlow().timesteps(entry["steps"], entry["num_frames"], entry["height"], entry["width"])
        assert (ours - torch.tensor(entry["t_fp32"])).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["pab246", "pab357", "pab579"])
@pytest.mark.parametrize("steps", [8, 10, 15, 20, 25, 30, 40, 50, 100])
def test_windows_and_mlp_rules_work_at_every_size_and_step_count(name: str, steps: int):
    for model, frames, height, width in [("demo", 17, 64, 64), ("demo", 34, 128, 192), ("open-sora", 408, 720, 1280)]:
        spec = MODELS[model]
        table = schedule_for(spec, name, None, steps, frames, height, width)
        for kind in ("spatial", "temporal", "cross", "mlp"):
            assert table.reused_share(kind) > 0
        used = [i for i, share in enumerate(table.reused_row("cross")) if share]
        assert 0.3 * steps - 1e-6 <= used[0]
        assert used[-1] < 26 / 30 * steps


# A user's changes on top


def test_changes_on_top_of_a_policy():
    changed = customised("pab246", "stdit3", 28, spatial=3, mlp=False, window=Window(0.2, 0.9))
    assert (changed.spatial, changed.temporal, changed.cross) == (3, 4, 6)
    assert changed.window == Window(0.2, 0.9)
    assert not changed.mlp_spatial + changed.mlp_temporal
    assert changed.name == "pab246 spatial=3 mlp=off window=0.2:0.9"


def test_changes_that_change_nothing_keep_the_name():
    base = find_policy("pab246", "stdit3", 28)
    assert customised(base, "stdit3", 28, spatial=2, temporal=4, cross=6, mlp=True) == base
    assert customised("off", "stdit3", 28, spatial=1, temporal=1, cross=1, mlp=False) == Policy("off")


def test_ranges_on_top_of_off_take_the_familys_window():
    family = FAMILIES["stdit3"]
    changed = customised("off", "stdit3", 28, spatial=2, temporal=4, cross=6, mlp=True)
    assert dataclasses.replace(changed, name="pab246") == find_policy("pab246", "stdit3", 28)
    assert customised("off", "stdit3", 28, cross=3).window == family.window
    assert customised("off", "stdit3", 28, cross=3, window=Window(0.1, 0.2)).window == Window(0.1, 0.2)
    assert customised(Policy("mine", window=Window(0.4, 0.5)), "stdit3", 28, cross=3).window == Window(0.4, 0.5)


def test_mlp_on_top_takes_the_familys_rules_only_where_there_are_none():
    assert customised("off", "stdit3", 28, mlp=True).mlp_spatial == family_mlp_rules("stdit3", 28)
    own = Policy("mine", spatial=2, mlp_spatial=(MlpRule(0.5, 1),))
    assert customised(own, "stdit3", 28, mlp=True) == own


def test_a_window_on_top_holds_for_all_kinds():
    mixed = Policy("mixed", 2, 2, 2, windows=(("cross", Window(0.0, 0.1)),))
    changed = customised(mixed, "stdit3", 5, window=Window(0.4, 0.6))
    assert {changed.window_of(kind) for kind in ("spatial", "temporal", "cross")} == {Window(0.4, 0.6)}


# The table


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    spatial, temporal, cross = (draw(st.integers(1, 9)) for _ in range(3))
    start, stop = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    window = Window(start, stop) if start < stop else Window()
    rule = st.builds(
        MlpRule,
        at=st.floats(0, 1),
        skip=st.integers(0, 4),
        blocks=st.one_of(st.none(), st.lists(st.integers(0, 2), max_size=3).map(tuple)),
    )
    rules = st.lists(rule, max_size=3).map(tuple)
    return Policy("any", spatial, temporal, cross, window, mlp_spatial=draw(rules), mlp_temporal=draw(rules))


@settings(max_examples=60, deadline=None)
@given(policies(), st.integers(1, 40))
def test_every_reuse_has_a_step_before_it_that_computed(policy: Policy, steps: int):
    timesteps = RectifiedFlow().timesteps(steps, 34, 128, 192).tolist()
    table = resolve(policy, timesteps, stdit3_branches(3))
    for branch, sources in table.source.items():
        assert sources[0] == 0
        for step, source in enumerate(sources):
            assert source <= step
            assert sources[source] == source
            if branch.kind == "mlp":
                continue
            n = policy.range_of(branch.kind)
            inside = (step, steps, timesteps[step]) in policy.window_of(branch.kind)
            assert table.reuses(branch, step) == (step > 0 and step % n != 0 and inside)
    shares = [table.reused_share(kind) for kind in table.kinds]
    assert all(0 <= share < 1 for share in shares)


def test_reused_blocks_of_a_whole_kind_and_stream():
    table = resolve(
        Policy(mlp_spatial=(MlpRule(3, 2, (1,), "step"),)), [9.0 - i for i in range(10)], stdit3_branches(3)
    )
    assert [table.reused_blocks(i, "mlp", "spatial") for i in range(3, 7)] == [[], [1], [1], []]
    assert table.reused_blocks(4, "mlp", "temporal") == []
    assert table.reused_row("mlp")[4] == pytest.approx(1 / 6)
    assert table.reused_share() == pytest.approx(2 / (18 * 10))


def test_fractions_that_few_steps_crowd_together_leave_steps_to_reuse():
    rules = tuple(MlpRule(at / 40, 2, (0,)) for at in range(8, 20, 4))
    by_steps = {40: [9, 10, 13, 14, 17, 18], 20: [5, 7, 9, 10], 10: [3, 5, 6], 5: [2, 3]}
    for steps, reused in by_steps.items():
        table = resolve(Policy(mlp_spatial=rules), [float(steps - i) for i in range(steps)], stdit3_branches(1))
        assert [i for i in range(steps) if table.reused_blocks(i, "mlp", "spatial")] == reused


def test_a_period_starts_the_count_anew():
    timesteps = [20.0 - i for i in range(20)]
    branches = stdit3_branches(1)
    plain, periodic = (resolve(Policy(temporal=4, period=p), timesteps, branches) for p in (None, 10))
    computed = [
        [i for i, reused in enumerate(table.reused_row("temporal")) if not reused] for table in (plain, periodic)
    ]
    assert computed == [[0, 4, 8, 12, 16], [0, 4, 8, 10, 14, 18]]


@pytest.mark.parametrize("period", [0, -1, True])
def test_a_period_is_a_number_of_calls(period: Any):
    with pytest.raises(PabError, match="in periods of 1 or more calls"):
        Policy(temporal=4, period=period)


def test_an_mlp_rule_beyond_the_end_does_nothing():
    for rule in (MlpRule(99, 2, None, "step"), MlpRule(1.0, 2), MlpRule(123, 2, None, "timestep")):
        table = resolve(Policy(mlp_spatial=(rule,)), [1000.0, 500.0], stdit3_branches(1))
        assert table.reused_share() == 0


def test_a_table_cannot_be_changed():
    table = schedule_for(MODELS["demo"], "pab246")
    branch = table.branches[0]
    with pytest.raises(TypeError):
        table.source[branch] = (0,)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.policy = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_json_form():
    table = schedule_for(MODELS["open-sora"], "pab246")
    told = json.loads(json.dumps(table.to_json()))
    assert list(told) == ["policy", "timesteps", "spatial", "temporal", "cross", "mlp_spatial", "mlp_temporal"]
    assert told["policy"] == "pab246"
    assert told["timesteps"] == list(table.timesteps)
    assert told["timesteps"][0] == 1000
    for kind, n in (("spatial", 2), ("temporal", 4), ("cross", 6)):
        assert told[kind] == [int(9 <= i < 26 and i % n != 0) for i in range(30)]
    blocks = {str(i): [0, 1, 2, 3, 4] for i in (14, 15, 18, 19, 22, 23)}
    assert told["mlp_spatial"] == told["mlp_temporal"] == blocks
    off = schedule_for(MODELS["demo"], "off").to_json()
    assert sum(off["spatial"] + off["temporal"] + off["cross"]) == 0
    assert off["mlp_spatial"] == off["mlp_temporal"] == {}
