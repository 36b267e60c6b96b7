"""What a reused step is given: extrapolation, fresh gates, residuals of whole blocks; and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_policies import TIMES, call, small_latte, small_stdit3
from tiny_families import write_tiny_plan
from torch import Tensor

from pab_core.broadcast import BroadcastRun, Policy, ScheduleTable, find_policy, resolve
from pab_core.broadcast.cache import make_store, predicted_cache_bytes, update_bytes
from pab_core.broadcast.extrapolation import Extrapolation, difference_factors
from pab_core.broadcast.predictors import HISTORY
from pab_core.broadcast.schedule_file import load_schedule, save_schedule, schedule_of
from pab_core.errors import PabError
from pab_core.evaluate.calibrate import Candidate, make_units
from pab_core.evaluate.generation import Clip, make_latents
from pab_core.evaluate.memory import Case, measure_memory
from pab_core.models.layers import Branch
from pab_core.models.stdit3 import stdit3_branches
from pab_core.pipeline import Pipeline

CLIPS = [Clip("a red ball rolls left", 1)]
PREDICTED = [name for name in HISTORY if name != "hold"]


def row_table(row: tuple[int, ...], predictor: str) -> ScheduleTable:
    return ScheduleTable("t", tuple(100.0 - 10 * i for i in range(len(row))), {B: row}, predictor=predictor)


B = Branch("spatial", "spatial", 0)


# Which updates


def test_the_updates_that_a_reuse_needs():
    row = (0, 1, 1, 3, 3, 3, 6)
    assert [row_table(row, "hold").sources(B, i) for i in range(7)] == [(0,), (1,), (1,), (3,), (3,), (3,), (6,)]
    assert [row_table(row, "linear").sources(B, i) for i in (1, 2, 4)] == [(1,), (1, 0), (3, 1)]
    assert [row_table(row, "taylor").sources(B, i) for i in (2, 5)] == [(1, 0), (3, 1, 0)]


def test_an_update_is_kept_until_its_last_use():
    row = (0, 1, 1, 3, 3, 3, 6)
    assert dict(row_table(row, "hold").last_use) == {(B, 1): 2, (B, 3): 5}
    assert dict(row_table(row, "linear").last_use) == {(B, 0): 2, (B, 1): 5, (B, 3): 5}
    assert row_table(row, "linear").freed(B, 5) == (3, 1)
    assert row_table(row, "linear").freed(B, 4) == ()
    assert row_table(row, "linear").freed(B, 3) == ()
    assert predicted_cache_bytes(row_table(row, "hold"), 10) == 10
    assert predicted_cache_bytes(row_table(row, "linear"), 10) == 20
    assert predicted_cache_bytes(row_table(row, "taylor"), 10) == 30


# Extrapolation


@pytest.mark.parametrize("nodes", [(6.0,), (6.0, 7.5), (6.0, 7.5, 11.0)])
def test_a_polynomial_of_its_degree_is_met(nodes: tuple[float, ...]):
    def value(t: float) -> Tensor:
        return torch.tensor([2.0, 3.0 * t, t * t][: len(nodes)]).sum()

    kept = [(i, value(node)) for i, node in enumerate(nodes)]
    times = [*nodes, 2.0]
    made = Extrapolation(times).predict("both", B, len(nodes), kept, None)
    assert made.item() == pytest.approx(value(2.0).item(), rel=1e-5)
    assert len(difference_factors(2.0, nodes)) == len(nodes) - 1


def test_timesteps_that_are_visited_twice_do_no_harm():
    assert difference_factors(2.0, (5.0, 5.0, 7.0)) == ()
    assert difference_factors(2.0, (5.0, 6.0, 5.0)) == (3.0,)
    assert difference_factors(2.0, (5.0, 6.0, 6.0)) == difference_factors(2.0, (5.0, 6.0))


def test_a_run_extrapolates_along_the_timesteps():
    table = row_table((0, 1, 1, 1, 4), "linear")
    run, given = BroadcastRun(table), [torch.full((1, 1, 1, 2), float(v)) for v in (1, 3, 0, 0, 5)]
    made = []
    for step in range(5):
        run.step = step
        made.append(run(B, lambda x, cond, step=step: given[step], torch.zeros(1, 1, 1, 2), None)[0, 0, 0, 0].item())
    assert made == [1, 3, 5, 7, 5]
    assert run.kept_bytes == 0


@pytest.mark.parametrize("storage", ["plain", "fp8", "host"])
@pytest.mark.parametrize("predictor", ["linear", "taylor"])
def test_every_store_serves_it(pipe: Pipeline, storage: str, predictor: str):
    table = pipe.schedule(f"pab246+{predictor}")
    run = BroadcastRun(table, make_store(storage))
    made, _ = make_latents(pipe, CLIPS, table, run=run)
    plain, _ = make_latents(pipe, CLIPS, table)
    assert run.kept_bytes == 0
    torch.testing.assert_close(made, plain, rtol=0.1, atol=0.1 * float(plain.abs().max()))
    if storage != "fp8":
        assert torch.equal(made, plain)


# Gates


@pytest.mark.parametrize("make", [small_stdit3, small_latte])
def test_a_reused_update_has_the_present_gate(make: type):
    """Reused as it is but for its gate: the branch's own computation under the present gate and the earlier input."""
    model = make()
    branch = next(b for b in model.branches if b.kind == "mlp")
    source = {b: (0, 0) if b == branch else (0, 1) for b in model.branches}
    table = ScheduleTable("t", (900.0, 800.0), source, predictor="gate")
    run = BroadcastRun(table)
    run.begin(model)
    seen: dict[int, tuple] = {}
    used: list[Tensor] = []

    def seam(b, update, x, cond):
        value = run(b, update, x, cond)
        if b == branch:
            seen[run.step] = (update, x, cond)
            used.append(value)
        return value

    with torch.no_grad():
        for step in (0, 1):
            run.step = step
            call(model, step, seam)
        update, x, then = seen[0]
        now = seen[1][2]
        # The gate is the last row of the MLP's three; all else of the conditioning stays as it was.
        mixed = then.modulation.clone()
        mixed[..., 5, :] = now.modulation[..., 5, :]
        expected = update(x, type(then)(**{**then.__dict__, "modulation": mixed}))
    torch.testing.assert_close(used[1], expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(used[1], used[0], rtol=1e-3)


def test_cross_attention_has_no_gate(pipe: Pipeline):
    held, gated = pipe.schedule("pab1-1-6+hold"), pipe.schedule("pab1-1-6+gate")
    only = {b: row if b.kind == "cross" else tuple(range(held.steps)) for b, row in held.source.items()}
    tables = [ScheduleTable("t", held.timesteps, only, predictor=p) for p in (held.predictor, gated.predictor)]
    first, second = (make_latents(pipe, CLIPS, table)[0] for table in tables)
    assert torch.equal(first, second)


# Whole runs


@pytest.mark.parametrize("predictor", PREDICTED)
def test_memory_is_as_predicted(pipe: Pipeline, predictor: str):
    table = pipe.schedule(f"pab246+{predictor}")
    run = BroadcastRun(table)
    latents, _ = make_latents(pipe, CLIPS, table, run=run)
    tokens = latents.shape[2] * latents.shape[3] * latents.shape[4] // 4
    size = update_bytes((2, tokens, pipe.transformer.config.hidden_size), torch.float32)
    assert run.peak_bytes == pytest.approx(predicted_cache_bytes(table, size), rel=0.05)
    assert predicted_cache_bytes(table, size) >= predicted_cache_bytes(pipe.schedule("pab246"), size)


@pytest.mark.parametrize("predictor", PREDICTED)
def test_a_predictor_changes_a_run_and_off_stays_off(pipe: Pipeline, predictor: str):
    off, held, predicted = (
        make_latents(pipe, CLIPS, pipe.schedule(name))[0] for name in ("off", "pab246", f"pab246+{predictor}")
    )
    assert torch.isfinite(predicted).all()
    assert not torch.equal(held, predicted)
    nothing = Policy("nothing", predictor=predictor)
    assert torch.equal(make_latents(pipe, CLIPS, pipe.schedule(nothing))[0], off)


@pytest.mark.parametrize("predictor", PREDICTED)
def test_pndm_that_visits_timesteps_twice(tmp_path: Path, predictor: str):
    pipe = Pipeline.load(write_tiny_plan(tmp_path / "plan"), device="cpu")
    latents, _ = make_latents(pipe, CLIPS, pipe.schedule(f"pab246+{predictor}"))
    assert torch.isfinite(latents).all()


def test_the_residual_of_whole_blocks_is_the_sum_of_what_they_add(pipe: Pipeline):
    """Searched by block, everything of a part of the depth is reused at once; kept as one tensor or as many, it is the
    same but for rounding."""
    off = pipe.schedule("off")
    units = make_units(off.branches, 2, "block")
    assert [{b.block for b in unit} for unit in units] == [{0}, {1}]
    assert make_units(off.branches, 2, "model") == (off.branches,)
    for predictor in ("hold", "linear"):
        each = Candidate(units, off.steps).with_reused([(0, 3), (0, 4), (1, 5)]).table(off, "t", predictor)
        file = schedule_of(each, "stdit3", 2).model_copy(update={"merge": True})
        together = resolve(file, off.timesteps, off.branches)
        assert [len(group) for group in together.groups] == [6, 6]
        assert predicted_cache_bytes(together, 1) * 6 == predicted_cache_bytes(each, 1)
        first, second = (make_latents(pipe, CLIPS, table)[0] for table in (each, together))
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


# Names and files


def test_a_predictor_is_named_after_a_policy(tmp_path: Path):
    policy = find_policy("pab246+linear", "stdit3", 28)
    assert policy.name == "pab246+linear"
    table = resolve(policy, TIMES, stdit3_branches(28))
    assert table.predictor == "linear"
    assert table.to_json()["predictor"] == "linear"
    plain = resolve(find_policy("pab246", "stdit3", 28), TIMES, stdit3_branches(28))
    assert dict(plain.source) == dict(table.source)
    assert "predictor" not in plain.to_json()

    path = save_schedule(schedule_of(table, "stdit3", 28), tmp_path / "c++.json")
    assert load_schedule(path).predictor == "linear"
    assert resolve(find_policy(str(path), "stdit3", 28), TIMES, stdit3_branches(28)).predictor == "linear"
    again = find_policy(f"{path}+taylor", "stdit3", 28)
    assert resolve(again, TIMES, stdit3_branches(28)).predictor == "taylor"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pab246+magic", "no predictor named 'magic'"),
        ("off+linear", "keeps no single updates"),
        ("teacache+linear", "keeps no single updates"),
        ("delta-dit+gate", "keeps no single updates"),
        ("scores246+linear", "Reused scores cannot be predicted"),
        ("pab24+linear", "no policy named 'pab24'"),
    ],
)
def test_what_cannot_be_predicted(name: str, message: str):
    with pytest.raises(PabError, match=message):
        find_policy(name, "stdit3", 28)


def test_merged_branches_have_no_gate(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(
        '{"pab_schedule": 1, "name": "a", "model": {"family": "stdit3", "depth": 2}, "rules": [], "merge": true, '
        '"predictor": "gate"}',
        encoding="utf-8",
    )
    with pytest.raises(PabError, match="have no gate of their own"):
        load_schedule(path)


@pytest.mark.parametrize("predictor", PREDICTED)
def test_the_peak_of_a_run_is_said_before_it(pipe: Pipeline, predictor: str):
    report = measure_memory(pipe, [Case(f"pab246+{predictor}")], num_frames=34, height=64, width=96)
    (row,) = report.rows
    assert row.said.total == pytest.approx(row.measured, rel=0.01)
