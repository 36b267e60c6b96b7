"""Ranks of 2, 3 and 4 make what one rank makes, and tell each other only what the paper says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from parallel_cases import FRAMES, SIZE, Case, Decode
from parallel_ranks import run_cases

from pab_core.broadcast import ScheduleTable, find_policy, resolve, steps_of
from pab_core.checkpoints import SAMPLERS
from pab_core.models.registry import ARCHITECTURES

FAMILIES = ("stdit3", "latte", "open-sora-plan")
SEQUENCE = ("dsp", "ulysses", "megatron")
PAPER = {"stdit3": "pab246", "latte": "pab236", "open-sora-plan": "pab246"}
# A schedule as calibration writes them: windows of each kind's own, and blocks of their own.
CALIBRATED: dict[str, Any] = {
    "pab_schedule": 1,
    "name": "calibrated-like",
    "rules": [
        {"kinds": ["spatial"], "windows": [{"start": 0.2, "stop": 0.9, "range": 2}]},
        {"kinds": ["temporal"], "windows": [{"start": 0.1, "stop": 0.8, "range": 3, "count_from": "window"}]},
        {"kinds": ["cross", "mlp"], "blocks": [1], "windows": [{"start": 0.3, "stop": 0.9, "range": 4}]},
    ],
}
STEPS = {"stdit3": 6, "latte": 6, "open-sora-plan": 4}  # the last calls its model 13 times in them


def cases(folder: Path) -> list[Case]:
    found = []
    for number, family in enumerate(FAMILIES):
        schedule = folder / f"{family}.json"
        schedule.write_text(json.dumps(CALIBRATED | {"model": {"family": family, "depth": 2}}))
        policies = ["off", PAPER[family], str(schedule)]
        for method in SEQUENCE:
            found += [Case(family, method, ranks, policy, STEPS[family]) for ranks in (2, 3, 4) for policy in policies]
        found += [Case(family, "cfg", 2, policy, STEPS[family]) for policy in policies]
        # A method each of the families, in turns.
        found += [
            Case(family, f"cfg+{SEQUENCE[(number + i) % 3]}", 4, policy, STEPS[family])
            for i, policy in enumerate(policies)
        ]
    found += [Case("stdit3", method, 3, PAPER["stdit3"], 10, given=True, masked=True) for method in SEQUENCE]
    found += [Case(family, "cfg+dsp", 4, "off", 4, masked=True, given=family == "stdit3") for family in FAMILIES]
    # Two latent frames, or as many as ranks; heads, tokens and frames at the edge of what the ranks can use.
    found += [Case("latte", method, 2, "off", 4, size=tuple({"num_frames": 2}.items())) for method in SEQUENCE]
    found += [Case("latte", "dsp", 4, "off", 4, size=tuple({"num_frames": 4, "height": 32, "width": 32}.items()))]
    found += [Case("stdit3", "dsp", 4, "off", 4, size=tuple({"num_frames": 51, "height": 40, "width": 72}.items()))]
    # No guidance: one half of the batch, on all ranks.
    found += [Case("stdit3", "cfg+dsp", 4, guidance=1.0, steps=4), Case("latte", "cfg", 2, guidance=1.0, steps=4)]
    # The other ways of reuse, and of keeping.
    for policy, depth in (("tgate", 2), ("delta-dit", 2), ("scores246", 2), ("teacache30", 5)):
        found += [Case("stdit3", method, 3, policy, 12, depth) for method in SEQUENCE]
    found += [
        Case("stdit3", "cfg+dsp", 4, policy, 12, depth) for policy, depth in (("delta-dit", 2), ("teacache30", 5))
    ]
    found += [
        Case("stdit3", method, 3, PAPER["stdit3"], 10, given=True, masked=True, fused=True) for method in SEQUENCE
    ]
    found += [Case("stdit3", "dsp", 2, PAPER["stdit3"], 10, kept=kept) for kept in ("fp8", "host")]
    found += [Case("stdit3", "megatron", 2, "off", 4, storage="fp8"), Case("latte", "megatron", 3, storage="fp8")]
    found += [Case("stdit3", method, 2, PAPER["stdit3"], 10, dtype="bfloat16") for method in SEQUENCE]
    found += [Case(family, "cfg+dsp", 4, "off", 4, offloaded=True) for family in FAMILIES]
    # The first rank has a frame that is given, and changes less than the others: it must look at all.
    found += [
        Case("stdit3", "dsp", 4, "teacache30", 12, 5, given=True),
        Case("stdit3", "dsp", 3, "teacache60", 16, 5, given=True),
    ]
    found += [Case("stdit3", method, 3, PAPER["stdit3"], 10, interrupted=True) for method in SEQUENCE]
    found += [Case("stdit3", "dsp", 2, f"{PAPER['stdit3']}+{name}", 12) for name in ("gate", "linear")]
    return found


def decodes() -> list[Decode]:
    """Frames in chunks, one by one and in batches; tiles; pieces in time; more ranks than there are of any of them."""
    found = [Decode("stdit3", ranks, 20) for ranks in (2, 3, 4)]
    found += [Decode("stdit3", 3, 20, pixels=32), Decode("stdit3", 4, 1), Decode("stdit3", 4, 3)]
    found += [Decode("latte", ranks, 5) for ranks in (2, 3, 4)]
    found += [Decode("latte", 2, 30, temporal=True), Decode("latte", 3, 5, temporal=True, pixels=32, frames=2)]
    found += [Decode("open-sora-plan", ranks, 17, pixels=32, frames=5) for ranks in (2, 3, 4)]
    found += [Decode("open-sora-plan", 2, 17), Decode("open-sora-plan", 3, 15, pixels=32, frames=9)]
    return found


def too_short() -> list[Case]:
    """Clips of fewer latent frames than there are ranks."""
    return [Case("latte", method, 4, size=(("num_frames", 3),)) for method in SEQUENCE]


Results = list[dict[str, Any]]  # of a case's ranks
Outcome = list[tuple[Case, Results]]
Found = tuple[Outcome, list[tuple[Decode, Results]], list[Results]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What four processes found, started once for all that is asked here."""
    folder = tmp_path_factory.mktemp("ranks")
    runs, videos, short = cases(folder), decodes(), too_short()
    results = iter(run_cases([*runs, *videos, *short], folder))
    return [(case, next(results)) for case in runs], [(case, next(results)) for case in videos], list(results)


@pytest.fixture
def outcome(found: Found) -> Outcome:
    return found[0]


def test_ranks_make_what_one_makes(outcome: Outcome):
    wrong = {}
    for case, results in outcome:
        assert len(results) == case.ranks
        # Eight bits of mantissa: one rounds 0.4 %, and the ranks sum in another order.
        bound = 2e-2 if case.dtype == "bfloat16" else 1e-5
        error = max(result["error"] for result in results)
        assert results[0]["moved"] > 0.1, case.name
        if not error <= bound:
            wrong[case.name] = error
    assert not wrong


def of_temporal(result: dict[str, Any], field: str) -> int:
    return sum(row[field] for name, row in result["traffic"].items() if name.endswith("temporal attention"))


def table_of(case: Case) -> ScheduleTable:
    policy = find_policy(case.policy, case.family, case.depth)
    size = SIZE | {"num_frames": FRAMES[case.family]} | dict(case.size)
    timesteps = SAMPLERS[case.family].timesteps(steps_of(policy, case.steps), **size)
    return resolve(policy, timesteps.tolist(), ARCHITECTURES[case.family].branches(case.depth))


def model_calls(case: Case) -> int:
    return table_of(case).steps


def computed(case: Case) -> int:
    """How often the run computes temporal attention, by its schedule."""
    table = table_of(case)
    return sum(
        not table.reuses(branch, step)
        for branch in table.branches
        if branch.kind == "temporal"
        for step in range(table.steps)
    )


def test_reused_temporal_attention_exchanges_nothing(outcome: Outcome):
    """Two collectives (Ulysses: four) for each temporal attention that is computed, none for one that is reused."""
    seen = set()
    for case, results in outcome:
        # Scores are reused inside the attention, which is run all the same; TeaCache decides in the run.
        if case.method == "cfg" or case.policy.startswith(("scores", "teacache")):
            continue
        per = 4 if "ulysses" in case.method else 2
        for result in results:
            assert of_temporal(result, "calls") == per * computed(case), case.name
        seen.add(case.policy)
    assert {"off", "pab246", "pab236", "tgate", "delta-dit"} <= seen


def test_dynamic_reuse_exchanges_nothing_either(outcome: Outcome):
    found = [(case, results) for case, results in outcome if case.policy.startswith("teacache")]
    assert found
    for case, results in found:
        calls = {of_temporal(result, "calls") for result in results}
        per = 4 if "ulysses" in case.method else 2
        assert len(calls) == 1, "the ranks decided alike"
        assert 0 < calls.pop() < per * case.depth * case.steps, case.name


def test_the_only_other_exchanges_are_one_prediction_a_call_and_dynamic_decisions(outcome: Outcome):
    for case, results in outcome:
        for result in results:
            traffic = result["traffic"]
            others = {name: row["calls"] for name, row in traffic.items() if not name.endswith("temporal attention")}
            calls = others.pop("all-gather, prediction", 0)
            each = ("+" in case.method or case.method != "cfg") + ("cfg" in case.method and case.guidance != 1)
            assert calls == each * model_calls(case), case.name
            assert set(others) <= ({"all-reduce, agreement"} if case.policy.startswith("teacache") else set()), (
                case.name
            )


def test_volumes_are_those_of_the_paper(outcome: Outcome):
    """Of a rank on average: 2 M for Megatron's, 4 M / N for Ulysses, 2 M / N for DSP; M is the size of x."""
    for case, results in outcome:
        if case.method not in SEQUENCE or case.policy.startswith(("scores", "teacache")) or case.size or case.masked:
            continue
        m = 2 * 5 * 9 * 40 * (2 if case.dtype == "bfloat16" else 4)
        volume = sum(of_temporal(result, "volume") for result in results) / case.ranks
        factor = {"megatron": 2, "ulysses": 4 / case.ranks, "dsp": 2 / case.ranks}[case.method]
        assert volume == pytest.approx(factor * m * computed(case)), case.name
        # 5 frames on 2, 3 and 4 ranks are padded to 6, 6 and 8, 9 tokens and 5 heads to no more in proportion
        # but for DSP's tokens on 4.
        padded = max(of_temporal(result, "padded") for result in results)
        assert padded == pytest.approx(volume * {2: 6 / 5, 3: 6 / 5, 4: 8 / 5}[case.ranks]), case.name


def test_a_decode_is_shared_out_and_everybody_has_all_frames(found: Found):
    for case, results in found[1]:
        assert len(results) == case.ranks
        for result in results:
            assert result["error"] <= 1e-5, case
            assert result["frames"] == case.num_frames, case
        parts = [result["decoded"] for result in results]
        whole = results[0]["whole"]
        if case.family == "open-sora-plan" and not case.pixels:
            assert parts == [whole] * case.ranks, "a single piece: everybody decodes it"
        else:
            # Chunks and pieces may straddle two ranks; nobody does what one alone would do.
            assert case.num_frames == 1 or max(parts) < whole, case


def test_a_clip_too_short_is_refused_on_every_rank_before_anything_is_exchanged(found: Found):
    assert len(found[2]) == 3
    for results in found[2]:
        assert len(results) == 4
        for result in results:
            assert "can use 3 ranks at most, not 4: the clip has 3 latent frames" in result["refused"]
            assert result["exchanged"] == 0
