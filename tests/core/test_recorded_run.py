"""Recorded runs give what plain runs give. A record is played by the same code, told that it is the step at which it
was recorded: what it reads and writes lies where it lay, as in a CUDA graph, and what it decides was decided then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import odd_widths
import pytest
import torch
from odd_widths import denoise, distance

from pab_core.acceleration import recording
from pab_core.acceleration.choice import make_run
from pab_core.acceleration.recorded_run import MOST_VALUES, RecordedRun
from pab_core.acceleration.run import FusedRun
from pab_core.broadcast import BroadcastRun, ScheduleTable
from pab_core.broadcast.cache import Store, make_store
from pab_core.broadcast.schedule_file import ModelId, Rule, ScheduleFile
from pab_core.broadcast.teacache import TeaCache
from pab_core.pipeline import Pipeline


def tiny(family: str) -> Pipeline:
    return odd_widths.tiny(family, height=16)


WHOLE = ("spatial", "temporal", "cross", "mlp")


@dataclass
class Records:
    """What stands in for a GPU: `starts`, how often each record was started."""

    run: RecordedRun
    starts: list[int] = field(default_factory=list)

    def record(self, compute: Any, device: torch.device, pool: Any) -> Any:
        number, then = len(self.starts), self.run.step
        self.starts.append(0)

        def start() -> None:
            self.starts[number] += 1
            now, self.run.step = self.run.step, then
            compute()
            self.run.step = now

        return start


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """-> of a table and a store, a run that records."""

    def make(table: ScheduleTable, store: Store | None = None) -> tuple[RecordedRun, list[int]]:
        run = RecordedRun(table, store)
        records = Records(run)
        monkeypatch.setattr(recording, "record", records.record)
        monkeypatch.setattr(recording, "new_pool", lambda: None)
        return run, records.starts

    monkeypatch.setattr(RecordedRun, "_records", lambda self, x: True)
    monkeypatch.setattr(recording, "LEAST_STARTS", 2)
    return make


def in_one(pipe: Pipeline, *, merge: bool, source: tuple[int, ...], predictor: Any = "hold") -> ScheduleFile:
    """All kinds by one row, as one sum or each for itself."""
    model = ModelId(family=pipe.spec.family, depth=pipe.spec.depth)
    rule = Rule(kinds=WHOLE, source=source)
    return ScheduleFile(
        pab_schedule=1, model=model, rules=(rule,), run_steps=len(source), merge=merge, predictor=predictor
    )


def policy_of(name: str, pipe: Pipeline) -> Any:
    steps = pipe.schedule("off").steps
    rest = tuple(range(6, steps))
    return {
        "teacache": TeaCache(0.3, (1.0, 0.0)),
        "whole": in_one(pipe, merge=True, source=(0, 1, 2, 2, 4, 5, *rest), predictor="linear"),
    }.get(name, name)


POLICIES = ("off", "pab222", "pab222+linear", "teacache", "whole", "scores222", "tgate", "delta-dit")


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        *(("stdit3", policy) for policy in POLICIES),
        *(("latte", policy) for policy in ("off", "teacache", "whole")),
        *(("open-sora-plan", policy) for policy in ("off", "whole")),
    ],
)
def test_a_recorded_run_gives_the_plain_runs_results(family: str, policy: str, recorded: Any):
    pipe = tiny(family)
    table = pipe.schedule(policy_of(policy, pipe))
    plain, (run, starts) = BroadcastRun(table), recorded(table)
    assert distance(denoise(pipe, plain), denoise(pipe, run)) < 1e-5
    assert run.kept_bytes == plain.kept_bytes
    assert 0.9 * plain.peak_bytes <= run.peak_bytes <= plain.peak_bytes
    assert plain.taken.reused_share() == run.taken.reused_share()
    assert not run._recorder._inputs, "what a record held would lack where the clip is decoded"
    if policy == "off":  # positions are added after the first block of the other two
        assert starts == [table.steps - 1] * (1 if family == "stdit3" else 2)


@pytest.mark.parametrize("kept", ["fp8", "host"])
def test_the_sum_of_a_group_is_kept_wherever_it_is_kept(kept: str, recorded: Any):
    pipe = tiny("stdit3")
    table = pipe.schedule(policy_of("whole", pipe))
    fused, (run, starts) = FusedRun(table, make_store(kept)), recorded(table, make_store(kept))
    assert torch.equal(denoise(pipe, fused), denoise(pipe, run))
    assert starts == [4]
    assert run.peak_bytes == fused.peak_bytes > 0
    assert run.kept_bytes == fused.kept_bytes


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("full"), RuntimeError("operation not permitted\nwhen")])
def test_what_cannot_be_recorded_is_computed(
    error: Exception, recorded: Any, monkeypatch: pytest.MonkeyPatch, recwarn: Any
):
    tried = []

    def record(*args: Any) -> Any:
        tried.append(args)
        raise error

    pipe = tiny("stdit3")
    table = pipe.schedule("off")
    run, _ = recorded(table)
    monkeypatch.setattr(recording, "record", record)
    assert distance(denoise(pipe, BroadcastRun(table)), denoise(pipe, run)) < 1e-5
    assert len(tried) == 1
    said = [str(warning.message) for warning in recwarn if "recorded" in str(warning.message)]
    assert len(said) == (0 if isinstance(error, torch.cuda.OutOfMemoryError) else 1)
    assert all(one.startswith("This GPU's work cannot be recorded (operation not permitted):") for one in said)


def test_small_clips_on_gpus_are_recorded(monkeypatch: pytest.MonkeyPatch):
    """Of what the GPU is slower with nothing is: it takes memory, and gains nothing."""
    table = tiny("stdit3").schedule("off")
    run = make_run("fast", torch.device("cuda"), table, make_store())
    assert isinstance(run, RecordedRun)

    class OnGPU:
        is_cuda = True

        def __init__(self, values: int):
            self.numel = lambda: values

    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert not run._records(OnGPU(MOST_VALUES))  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    assert run._records(OnGPU(MOST_VALUES))  # pyright: ignore[reportArgumentType]
    assert not run._records(OnGPU(MOST_VALUES + 1))  # pyright: ignore[reportArgumentType]
    assert not run._records(torch.zeros(1))


def test_a_record_is_made_only_where_it_is_started_often(recorded: Any, monkeypatch: pytest.MonkeyPatch):
    pipe = tiny("stdit3")
    table = pipe.schedule(policy_of("whole", pipe))  # computes five of six steps
    for least, expected in ((5, []), (4, [4])):
        run, starts = recorded(table)
        monkeypatch.setattr(recording, "LEAST_STARTS", least)
        denoise(pipe, run)
        assert starts == expected
