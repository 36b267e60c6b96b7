"""Method "auto": the cost model, and what becomes of it when the clock disagrees."""

from __future__ import annotations

import dataclasses

import pytest

from pab_core.errors import PabError
from pab_core.parallel.pool.choice import Costs, Plan, Shape, check, choose, estimate

# Open-Sora 1.2, 51 frames of 480p, bf16, on GPUs with NVLink.
CLIP = Shape(frames=15, tokens=1590, heads=16, guided=True, hidden_size=1152, depth=28, bytes=2)
FAST = Costs(alone=0.7, latency=2e-5, bandwidth=1e11)
SLOW = Costs(alone=0.7, latency=1e-3, bandwidth=3e8)


@pytest.mark.parametrize(("method", "gigabytes"), [("dsp", 23.08), ("ulysses", 46.16), ("megatron", 184.63)])
def test_bytes_are_those_of_the_paper(method: str, gigabytes: float):
    """Its table for 8 GPUs and 30 steps counts what a rank sends to itself as well, and frames as if they divided."""
    shape = dataclasses.replace(CLIP, frames=16)
    costs = Costs(alone=0.0, latency=0.0, bandwidth=1e9)
    seconds = 30 * estimate(method, 8, shape, costs)
    assert seconds * 8 / 7 * 15 / 16 == pytest.approx(gigabytes, abs=0.01)


def test_an_uneven_share_costs_what_the_largest_does():
    free = Costs(alone=1.0, latency=0.0, bandwidth=1e30)
    assert estimate("dsp", 2, CLIP, free) == pytest.approx(8 / 15)
    assert estimate("dsp", 8, CLIP, free) == pytest.approx(2 / 15)
    assert estimate("cfg", 2, CLIP, free) == pytest.approx(1 / 2)
    assert estimate("cfg+dsp", 4, CLIP, free) == pytest.approx(8 / 30)


def test_two_fast_devices_split_the_guidance_and_more_also_the_frames():
    assert choose(2, CLIP, FAST) == Plan("cfg", 2)
    assert choose(8, CLIP, FAST) == Plan("cfg+dsp", 8)
    assert choose(2, dataclasses.replace(CLIP, guided=False), FAST) == Plan("dsp", 2)
    # 16 ranks in two halves would each have at most two of 15 frames, as 8 would.
    assert choose(16, CLIP, FAST).method == "cfg+dsp"


def test_a_slow_link_leaves_what_sends_little_or_nothing():
    assert choose(2, CLIP, SLOW) == Plan("cfg", 2)
    alone = choose(2, dataclasses.replace(CLIP, guided=False), SLOW)
    assert alone == Plan("none", 1)
    told = check(alone, 2, dataclasses.replace(CLIP, guided=False), SLOW, None)
    assert "2 devices would be no faster than one" in told.why
    assert "0.3 GB/s" in told.why


def test_more_devices_than_can_share_a_clip_are_left_out_and_told():
    picture = dataclasses.replace(CLIP, frames=1)
    plan = choose(8, picture, FAST)
    assert plan == Plan("cfg", 2)
    assert "made by 2 of the 8 devices" in check(plan, 8, picture, FAST, 0.4).why
    still = dataclasses.replace(picture, guided=False)
    assert "nothing to divide" in check(choose(8, still, FAST), 8, still, FAST, None).why


def test_the_clock_has_the_last_word():
    plan = choose(2, CLIP, FAST)
    assert check(plan, 2, CLIP, FAST, 0.36) == plan
    slower = check(plan, 2, CLIP, FAST, 0.72)
    assert (slower.method, slower.ranks) == ("none", 1)
    assert "2 devices are no faster than one for this clip (a step takes 0.72 s on them by cfg" in slower.why
    # What does not fit on one device is not compared with it.
    huge = dataclasses.replace(FAST, alone=None)
    assert check(choose(2, CLIP, huge), 2, CLIP, huge, 5.0).ranks == 2


@pytest.mark.parametrize("guided", [True, False])
def test_what_does_not_fit_on_one_device_is_shared_out_however_slow_the_link(guided: bool):
    clip = dataclasses.replace(CLIP, guided=guided)
    slow = dataclasses.replace(SLOW, alone=None, bandwidth=1e7)
    assert choose(2, clip, slow).ranks == 2
    assert choose(2, dataclasses.replace(CLIP, guided=False, frames=1), slow) == Plan("none", 1), "nothing to divide"


def test_ranks_without_work_are_refused():
    with pytest.raises(PabError, match="can use 15 ranks at most, not 16"):
        estimate("dsp", 16, CLIP, FAST)
    with pytest.raises(PabError, match="cannot be halved"):
        estimate("cfg+dsp", 3, CLIP, FAST)
