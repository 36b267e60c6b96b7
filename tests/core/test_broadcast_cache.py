"""Where updates wait for their reuse: the room that is foretold and the room that they take, and eight bits."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from pab_core.broadcast import BroadcastRun, ScheduleTable, find_policy, resolve
from pab_core.broadcast.cache import Fp8Store, PlainStore, Storage, make_store, predicted_cache_bytes, update_bytes
from pab_core.broadcast.teacache import TeaCache
from pab_core.errors import PabError
from pab_core.evaluate.live_bytes import LiveBytes
from pab_core.models.latte_layers import latte_branches
from pab_core.models.layers import Branch
from pab_core.models.stdit3 import stdit3_branches
from pab_core.sampling import RectifiedFlow

SHAPE = (2, 3, 10, 64)  # batch, frames, tokens, width


def table_of(policy: Any, branches: tuple[Branch, ...] = stdit3_branches(3), steps: int = 30) -> ScheduleTable:
    chosen = find_policy(policy, "stdit3", 3) if isinstance(policy, str) else policy
    return resolve(chosen, RectifiedFlow().timesteps(steps, 51, 480, 854).tolist(), branches)


def follow(table: ScheduleTable, store: Any, dtype: torch.dtype, lanes: int = 1) -> tuple[int, int]:
    """A run over updates of random numbers -> the most bytes that it says it held, and that were alive in fact."""
    run = BroadcastRun(table, store)
    x, cond = torch.randn(SHAPE, dtype=dtype), None
    if table.decide is not None:
        run._decision = Always()
    alive = 0
    with LiveBytes() as live:
        for run.step in range(table.steps):
            for lane in ("cond", "uncond")[:lanes]:
                run.lane = lane
                for branch in table.branches:
                    value = run(branch, lambda x, cond: torch.randn(SHAPE, dtype=dtype), x, cond)
                    del value
                    alive = max(alive, live.now)
    return run.peak_bytes, alive


class Always:
    """Reuses all that can be reused."""

    def reuse(self, step: int, steps: int, x: Tensor, cond: Any) -> bool:
        return 0 < step < steps - 1


@pytest.mark.parametrize("storage", ["plain", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("policy", ["pab246", "pab357", "pab579", "pab444", "tgate", "delta-dit", "off"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_what_is_foretold_is_what_it_takes(policy: str, dtype: torch.dtype, storage: Storage, lanes: int):
    table = table_of(policy)
    foretold = predicted_cache_bytes(table, update_bytes(SHAPE, dtype, storage), lanes)
    said, alive = follow(table, make_store(storage), dtype, lanes)
    if policy == "off":
        assert foretold == said == alive == 0
        return
    if policy == "delta-dit" and storage == "fp8":
        # Its one sum is made as computed, and then packed.
        foretold = max(foretold, update_bytes(SHAPE, dtype) + (lanes - 1) * foretold // lanes)
    assert foretold > 0
    assert abs(said - foretold) <= 0.05 * foretold
    assert abs(alive - foretold) <= 0.05 * foretold


def test_a_dynamic_run_holds_one_update():
    table = table_of(TeaCache(0.1, (0.0, 1.0)))
    foretold = predicted_cache_bytes(table, update_bytes(SHAPE, torch.float32))
    said, alive = follow(table, PlainStore(), torch.float32)
    assert foretold == said == alive


def test_latte_holds_less_than_all_it_reuses():
    """Updates that are never reused again are not kept: fewer than one for each branch of attention."""
    branches = latte_branches(4)
    table = table_of("pab246", branches)
    most = predicted_cache_bytes(table, 1)
    attention = sum(branch.kind != "mlp" for branch in branches)
    assert 0 < most <= attention + 2 * 1
    assert predicted_cache_bytes(table, 1, lanes=2) <= 2 * most
    assert predicted_cache_bytes(table, lambda branch: 10 if branch.kind == "cross" else 0) == 10 * 4


def test_eight_bits_keep_each_row_at_its_own_scale():
    torch.manual_seed(0)
    value = torch.randn(2, 5, 64) * torch.tensor([1e-4, 1.0, 1e4, 3.0, 0.0])[:, None]
    store = Fp8Store()
    store.keep("k", value)
    back = store.take("k")
    assert back.dtype == value.dtype
    rows = (back - value).norm(dim=-1) / value.norm(dim=-1).clamp(min=1e-30)
    assert rows.max() < 0.04
    assert torch.equal(back[:, 4], value[:, 4])
    assert store.held_bytes == update_bytes(value.shape, value.dtype, "fp8") == 10 * (64 + 4)
    assert not torch.isnan(back).any()
    store.drop("k")
    assert store.held_bytes == 0


def test_an_unknown_storage_is_refused():
    with pytest.raises(PabError, match=r"no storage named 'int4'.*plain, fp8"):
        make_store("int4")


class Spy(PlainStore):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.foretold: list[Hashable] = []
        self.taken: list[Hashable] = []

    def prefetch(self, keys: Iterable[Hashable]) -> None:
        self.foretold += keys

    def take(self, key: Hashable) -> Tensor:
        self.taken.append(key)
        return super().take(key)


@pytest.mark.parametrize("policy", ["pab246", "delta-dit", "tgate"])
def test_a_store_is_told_at_each_step_what_it_will_be_asked_for(policy: str):
    spy = Spy()
    follow(table_of(policy), spy, torch.float32)
    assert spy.taken == spy.foretold
    assert spy.taken


def test_another_store_changes_no_bit_if_it_keeps_what_it_is_given():
    def made(store: Any) -> list[Tensor]:
        torch.manual_seed(0)
        table = table_of("pab246")
        run, values = BroadcastRun(table, store), []

        def update(x: Tensor, cond: Any) -> Tensor:
            return torch.randn(2, 3)

        for run.step in range(table.steps):
            values += [run(branch, update, torch.zeros(2, 3), None) for branch in table.branches]
        return values

    assert all(torch.equal(a, b) for a, b in zip(made(None), made(Spy()), strict=True))
