"""What the tests of all parity fixtures check in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pab_core.broadcast import ScheduleTable

Record = Callable[[str, object], None]  # pytest's record_property: errors stand in the report, too


def case_name(case: dict[str, Any]) -> str:
    return case["name"]


def assert_near(name: str, actual: Tensor, target: Tensor, atol: float, record: Record) -> None:
    """Same shape, and no element further off than `atol`; the worst error is told either way."""
    assert actual.shape == target.shape, name
    worst = (actual - target).abs().max().item()
    record(f"{name} worst error", worst)
    print(f"{name}: worst error {worst:.2e}")
    assert worst <= atol, f"{name}: worst error {worst:.2e}, allowed {atol:.0e}"


def assert_rows_near(
    name: str, rows: Sequence[Tensor], last: Tensor, expected: Tensor, atol: float, record: Record
) -> None:
    """The latents that a loop left on its way and at its end, against the recorded ones [rows, B, C, T, h, w]."""
    rows = [*rows, last] if len(rows) < len(expected) else rows
    assert torch.equal(rows[-1], last)
    assert_near(name, torch.stack(list(rows)), expected, atol, record)


def assert_decisions(table: ScheduleTable, calls: Sequence[dict[str, Any]]) -> None:
    """The table's reuse at each call of the model is the recorded one."""
    assert len(calls) == table.steps
    for step, call in enumerate(calls):
        found = {kind: table.reused_row(kind)[step] for kind in ("spatial", "temporal", "cross")}
        assert found == {kind: float(call[kind]) for kind in found}, f"step {step}"
        for stream in ("spatial", "temporal"):
            assert table.reused_blocks(step, "mlp", stream) == call[f"mlp_{stream}"], f"step {step}"
        assert int(table.timesteps[step]) == call["t"]
