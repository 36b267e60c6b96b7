"""Open-Sora's mask strategies: their string form, and where they place references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pab_core.conditioning import MaskStrategy, apply_given, parse_mask_strategy, place_references
from pab_core.errors import PabError
from pab_core.models.registry import model_spec


def latents(frames: int, value: float) -> Tensor:
    """Each frame tells its place: value, value + 0.01, ..."""
    return (value + torch.arange(frames) / 100).view(1, 1, -1, 1, 1).expand(1, 4, -1, 2, 3)


@pytest.mark.parametrize(
    ("text", "strategies"),
    [
        ("", []),
        (None, []),
        ("0", [MaskStrategy()]),
        ("0;0,1,0,-1,1", [MaskStrategy(), MaskStrategy(0, 1, 0, -1, 1)]),
        (" 1, 0, -5, 0, 5, 0.25 ", [MaskStrategy(1, 0, -5, 0, 5, 0.25)]),
        ("0,0,0,-8,8", [MaskStrategy(0, 0, 0, -8, 8)]),
    ],
)
def test_a_mask_strategy_is_read(text: str | None, strategies: list[MaskStrategy]):
    assert parse_mask_strategy(text, references=2, segments=2) == strategies


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0;", "'' is no mask strategy"),
        ("a", "'a' is no mask strategy: .*'loop,reference,"),
        ("0,0,0.5", "no mask strategy"),
        ("0,0,0,0,1,0,0", "no mask strategy"),
        ("0,0,0,0,1,1.5", "edit ratio"),
        ("0,0,0,0,0", "gives 0 frames"),
        ("0,2", "names reference 2, but there are 2"),
        ("2", "names clip 2, but there are 2"),
        ("-1", "names clip -1"),
    ],
)
def test_a_bad_mask_strategy_is_explained(text: str, words: str):
    with pytest.raises(PabError, match=words):
        parse_mask_strategy(text, references=2, segments=2)


@pytest.mark.parametrize(
    ("text", "reference_frames", "place", "taken"),
    [
        # The nearest multiple of 5, and never beyond the last whole chunk: -1 of 15 is 14, and stands at 10.
        ("0", 1, 0, (0, 1)),
        ("0,0,0,-1,1", 1, 10, (0, 1)),
        ("0,0,0,2,1", 1, 0, (0, 1)),
        ("0,0,0,3,1", 1, 5, (0, 1)),
        ("0,0,0,8,1", 1, 10, (0, 1)),
        ("0,0,0,-8,8", 8, 5, (0, 8)),
        # The same of the reference; 29 frames hold 5 whole chunks.
        ("0,0,-5,0,5", 15, 0, (10, 15)),
        ("0,0,-5,0,5", 29, 0, (20, 25)),
        ("0,0,3,0,5", 10, 0, (5, 10)),
        # Cut at the end of the reference, and at the end of the clip.
        ("0,0,0,0,15", 4, 0, (0, 4)),
        ("0,0,0,10,15", 15, 10, (0, 5)),
        ("0,0,5,5,20", 29, 5, (5, 15)),
    ],
)
def test_places_are_aligned_and_lengths_cut_as_the_authors_do(
    text: str, reference_frames: int, place: int, taken: tuple[int, int]
):
    reference = latents(reference_frames, 3.0)
    (given,) = place_references(parse_mask_strategy(text), [reference], 15)
    assert given.at == place
    assert torch.equal(given.latents, reference[:, :, slice(*taken)])


def test_without_alignment_places_are_exact():
    strategies = parse_mask_strategy("0,0,-2,-1,1,0.3")
    (given,) = place_references(strategies, [latents(9, 3.0)], 15, align=None)
    assert (given.at, given.edit) == (14, 0.3)
    assert torch.equal(given.latents, latents(9, 3.0)[:, :, 7:8])


def test_a_clip_of_a_chain_is_given_its_own():
    strategies = parse_mask_strategy("0;1,1,0,5,5;1,0,0,0,1,0.5")
    references = [latents(1, 1.0), latents(5, 2.0)]
    assert [given.at for given in place_references(strategies, references, 15)] == [0]
    second = place_references(strategies, references, 15, segment=1)
    assert [(given.at, given.latents.shape[2], given.edit) for given in second] == [(5, 5, 0.0), (0, 1, 0.5)]
    assert place_references(strategies, references, 15, segment=2) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,1", "names reference 1, but 1 are given"),
        ("0,0,0,15", "place 15 is outside of the clip, which has 15 latent frames: -15 to 14"),
        ("0,0,0,-16", "place -16 is outside of the clip"),
        ("0,0,1", "place 1 is outside of the reference, which has 1 latent frames"),
    ],
)
def test_a_place_that_is_not_there_is_explained(text: str, words: str):
    with pytest.raises(PabError, match=words):
        place_references(parse_mask_strategy(text), [latents(1, 0.0)], 15)


def test_one_frame_is_a_clip_too():
    assert model_spec("open-sora").latent_frames(1) == 1
    (given,) = place_references(parse_mask_strategy("0,0,0,-1,1,0.5"), [latents(1, 4.0)], 1)
    z, mask = apply_given(torch.zeros(1, 4, 1, 2, 3), [given])
    assert torch.equal(z, latents(1, 4.0))
    assert mask is not None
    assert mask.tolist() == [[0.5]]
