"""The state of one run: what it keeps, for whom, and how long."""

from __future__ import annotations

from typing import Any

import torch

from pab_core.broadcast import BroadcastRun, Policy, Window, resolve
from pab_core.models.layers import Branch


class Counter:
    """An update that gives another value at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor, cond: Any) -> torch.Tensor:
        self.calls += 1
        return torch.full((2, 3), float(self.calls))


def test_a_run_reuses_what_the_table_says_and_frees_it_at_the_last_reuse():
    branch = Branch("spatial", "spatial", 0)
    policy = Policy("p", spatial=3, window=Window(0.2, 0.8))
    table = resolve(policy, [1000.0 - 100 * i for i in range(10)], [branch])
    assert table.source[branch] == (0, 1, 1, 3, 3, 3, 6, 6, 8, 9)
    run, update, x = BroadcastRun(table), Counter(), torch.zeros(2, 3)
    kept, values = [], []
    for run.step in range(10):
        values.append(run(branch, update, x, None)[0, 0].item())
        kept.append(run.kept_bytes)
    assert values == [1, 2, 2, 3, 3, 3, 4, 4, 5, 6]
    # 24 bytes from the step that computes for others until the last of them.
    assert kept == [0, 24, 0, 24, 24, 0, 24, 0, 0, 0]
    assert update.calls == 6


def test_the_lanes_of_guidance_do_not_meet():
    branch = Branch("cross", "spatial", 0)
    table = resolve(Policy("p", cross=2), [1000.0, 500.0], [branch])
    run, x = BroadcastRun(table), torch.zeros(1)
    seen: dict[tuple[int, str], float] = {}
    for run.step in range(2):
        for run.lane, value in (("cond", 1.0), ("uncond", 2.0)):
            seen[run.step, run.lane] = run(branch, lambda x, cond, v=value: torch.full((1,), v), x, None).item()
    assert seen == {(0, "cond"): 1, (0, "uncond"): 2, (1, "cond"): 1, (1, "uncond"): 2}
    assert run.kept_bytes == 0


def test_two_runs_do_not_meet():
    branch = Branch("temporal", "temporal", 0)
    table = resolve(Policy("p", temporal=2), [1000.0, 500.0], [branch])
    runs, x = (BroadcastRun(table), BroadcastRun(table)), torch.zeros(1)
    for step in range(2):
        for number, run in enumerate(runs):
            run.step = step
            value = run(branch, lambda x, cond, v=float(number + 10 * step): torch.full((1,), v), x, None).item()
            assert value == number
