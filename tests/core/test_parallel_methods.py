"""Which ranks a method can use, what is refused, and how a clip is shared out; no processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_families import random_pipe

from pab_core.errors import PabError
from pab_core.models.layers import SelfAttention
from pab_core.models.registry import model_spec
from pab_core.models.stdit3 import Conditioning, STDiT3Config
from pab_core.parallel import METHODS, Sizes, attach, check_sizes, most_ranks, split_decode
from pab_core.parallel.decoding import deal
from pab_core.parallel.layout import Layout, cut_conditioning, shares
from pab_core.parallel.megatron import split_attention

OPEN_SORA = model_spec("open-sora")


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("none", 1),
        ("dsp", 15),
        ("ulysses", 15),
        ("megatron", 15),
        ("cfg", 2),
        ("cfg+dsp", 30),
        ("cfg+ulysses", 30),
        ("cfg+megatron", 30),
    ],
)
def test_ranks_that_open_sora_can_use(method: str, most: int):
    assert most_ranks(method, Sizes.of_clip(OPEN_SORA)) == most
    check_sizes(method, most, Sizes.of_clip(OPEN_SORA))
    if method != "none":
        with pytest.raises(PabError, match=f"{method.replace('+', '.')} can use {most} ranks at most, not {most + 2}"):
            check_sizes(method, most + 2, Sizes.of_clip(OPEN_SORA))


def test_what_bounds_the_ranks():
    plan = model_spec("open-sora-plan-221")  # 56 latent frames, 1024 tokens each, 16 heads
    assert most_ranks("dsp", Sizes.of_clip(plan)) == 56
    assert most_ranks("ulysses", Sizes.of_clip(plan)) == most_ranks("megatron", Sizes.of_clip(plan)) == 16
    assert most_ranks("dsp", Sizes.of_clip(OPEN_SORA, num_frames=1)) == 1
    small = STDiT3Config(num_heads=3, hidden_size=24)
    assert most_ranks("ulysses", Sizes.of_clip(OPEN_SORA, small)) == 3
    assert most_ranks("dsp", Sizes.of_clip(OPEN_SORA, height=32, width=32)) == 4  # tokens
    # Without guidance there are no halves.
    unguided = Sizes.of_clip(OPEN_SORA, guidance=1.0)
    assert most_ranks("cfg", unguided) == most_ranks("cfg+dsp", unguided) == 1


@pytest.mark.parametrize("ranks", [0, -1, 1.5, "2", True, None])
def test_ranks_that_are_no_number(ranks: object):
    with pytest.raises(PabError, match="whole number, 1 or more"):
        check_sizes("dsp", ranks, Sizes.of_clip(OPEN_SORA))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", ["dps", "", "cfg+", "dsp+cfg", "none+dsp", None])
def test_no_such_method(method: str):
    with pytest.raises(PabError, match="There is no parallel method named"):
        most_ranks(method, Sizes.of_clip(OPEN_SORA))


def test_halves_need_an_even_number():
    with pytest.raises(PabError, match="3 cannot be halved: take 2 ranks"):
        check_sizes("cfg", 3, Sizes.of_clip(OPEN_SORA))
    with pytest.raises(PabError, match="5 cannot be halved: take an even number"):
        check_sizes("cfg+dsp", 5, Sizes.of_clip(OPEN_SORA))


def test_messages_say_why():
    with pytest.raises(PabError, match="the clip has 15 latent frames and 1590 tokens each"):
        check_sizes("dsp", 16, Sizes.of_clip(OPEN_SORA))
    with pytest.raises(PabError, match="the guidance is off"):
        check_sizes("cfg", 2, Sizes.of_clip(OPEN_SORA, guidance=1.0))


@pytest.mark.parametrize(("count", "ranks"), [(15, 4), (15, 8), (5, 5), (7, 2), (1590, 7)])
def test_shares_are_even_and_nothing_is_lost(count: int, ranks: int):
    found = shares(count, ranks)
    assert (sum(found), len(found)) == (count, ranks)
    assert 1 <= min(found) <= max(found) <= min(found) + 1


def test_a_layout_cuts_and_puts_back():
    x = torch.randn(2, 5, 3, 4)
    angles = torch.randn(5, 2)
    rows, one = torch.randn(2, 5, 6, 4), torch.randn(2, 1, 6, 4)
    text = torch.randn(2, 3, 4)
    parts = [Layout.of(x, Conditioning(rows, text, None, angles), rank, 3) for rank in range(3)]
    assert [part.frames for part in parts] == [[2, 2, 1]] * 3
    assert torch.equal(torch.cat([part.take(x) for part in parts], dim=1), x)
    assert torch.equal(sum((part.put(part.take(x)) for part in parts), torch.zeros(())), x)
    for part in parts:
        assert torch.equal(part.take(part.take(x)), part.take(x)), "what is cut stays as it is"
    assert torch.equal(torch.cat([part.own.modulation for part in parts], dim=1), rows)
    assert torch.equal(torch.cat([part.own.angles for part in parts]), angles)
    assert cut_conditioning(Conditioning(one, text, None, angles), slice(1, 3)).modulation is one


def test_parts_of_an_attention_add_up_to_it():
    torch.manual_seed(0)
    attention = SelfAttention(40, 5, qk_norm=True)
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    x, angles = torch.randn(3, 6, 40), torch.randn(6, 4)
    parts = [split_attention(attention, rank, 3) for rank in range(3)]
    assert [part.num_heads for part in parts] == [2, 2, 1]
    total = sum((part(x, angles) for part in parts), torch.zeros(()))
    assert torch.allclose(total, attention(x, angles), atol=1e-6)
    assert attention.num_heads == 5
    assert all(torch.equal(before[name], value) for name, value in attention.state_dict().items())


def test_runs_of_frames_are_dealt_in_their_order():
    assert deal([1] * 51, 2) == [0] * 26 + [1] * 25 or deal([1] * 51, 2) == [0] * 25 + [1] * 26
    assert deal([29, 28, 8], 2) == [0, 1, 1]
    assert deal([14, 2], 4) == [1, 3]
    for lengths, ranks in (([5] * 7, 3), ([1, 9, 1, 9], 4), ([3], 2)):
        owners = deal(lengths, ranks)
        assert owners == sorted(owners)
        assert set(owners) <= set(range(ranks))


@pytest.fixture
def alone(tmp_path: Path):
    """A group of one rank."""
    store = dist.FileStore(str(tmp_path / "meeting"), 1)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_rank_needs_nothing(alone: None):
    pipe = random_pipe("stdit3", {"hidden_size": 16, "num_heads": 2, "depth": 1, "caption_channels": 8})
    for method in METHODS:
        if method.startswith("cfg"):
            with pytest.raises(PabError, match="1 cannot be halved"):
                attach(pipe, method)
        else:
            assert attach(pipe, method) is pipe
    assert split_decode(pipe) is pipe
    with pytest.raises(PabError, match="Did you mean"):
        attach(pipe, "dspp")
