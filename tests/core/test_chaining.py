"""Chains of clips: which lengths there are, what each clip is given, what stays of it, and prompts for each."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoint import VAE
from torch import Tensor

from pab_core.autoencoders import OpenSoraVAE
from pab_core.chaining import given_for, join, plan_chain, split_prompt
from pab_core.conditioning import apply_given
from pab_core.errors import PabError


@pytest.fixture(scope="module")
def vae() -> OpenSoraVAE:
    torch.manual_seed(0)
    return OpenSoraVAE.from_config(VAE).eval()


def clip(frames: int, seed: int) -> Tensor:
    """Video [1, 3, frames, 16, 24] in [-1, 1]."""
    return torch.rand(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("frames", "segment", "overlap", "loop", "before", "after"),
    [
        (51, 51, 5, False, [0], [0]),
        (85, 51, 5, False, [0, 17], [0, 0]),
        (153, 51, 5, False, [0, 17, 17, 17], [0, 0, 0, 0]),
        (68, 51, 10, False, [0, 34], [0, 0]),
        (748, 408, 20, False, [0, 68], [0, 0]),
        (68, 51, 5, True, [0, 17], [0, 17]),
        (102, 51, 5, True, [0, 17, 17], [0, 0, 17]),
    ],
)
def test_a_plan_keeps_as_many_frames_as_asked_for(
    frames: int, segment: int, overlap: int, loop: bool, before: list[int], after: list[int]
):
    plan = plan_chain(frames, segment, overlap, loop=loop)
    assert [one.before for one in plan] == before
    assert [one.after for one in plan] == after
    assert [one.index for one in plan] == list(range(len(before)))
    assert sum(one.kept_frames for one in plan) == frames
    clips = [torch.arange(segment) + 1000 * one.index for one in plan]
    assert len(join(plan, clips)) == frames
    assert all(one.num_frames == segment for one in plan)


@pytest.mark.parametrize(
    ("frames", "segment", "overlap", "loop", "words"),
    [
        (100, 51, 5, False, "A video of 100 frames .* clips of 51 that overlap by 17. Near are 85 and 119 frames"),
        (34, 51, 5, False, "Near are 51 and 85 frames"),
        (0, 51, 5, False, "Near are 51 and 85 frames"),
        (51, 51, 5, True, "A loop of 51 frames .* Near are 68 and 102 frames"),
        (100, 51, 5, True, "Near are 68 and 102 frames"),
        (51, 17, 5, False, "17 frames are too short to be chained: 17 frames at the start are repeated"),
        (51, 34, 5, True, "34 frames are too short .* at both ends"),
        (85, 51, 6, False, "multiple of 5"),
    ],
)
def test_another_length_is_explained(frames: int, segment: int, overlap: int, loop: bool, words: str):
    with pytest.raises(PabError, match=words):
        plan_chain(frames, segment, overlap, loop=loop)


@pytest.mark.parametrize("loop", [False, True])
def test_the_lengths_named_as_near_are_possible(loop: bool):
    for frames in range(40, 200):
        try:
            plan = plan_chain(frames, 51, loop=loop)
        except PabError as error:
            low, high = (int(word) for word in str(error).split("Near are ")[1].split() if word.isdecimal())
            assert [sum(one.kept_frames for one in plan_chain(near, 51, loop=loop)) for near in (low, high)] == [
                low,
                high,
            ]
            assert low < frames < high or low == (68 if loop else 51)
        else:
            assert sum(one.kept_frames for one in plan) == frames


def test_frames_that_stay_are_each_clips_new_ones():
    plan = plan_chain(119, 51)
    joined = join(plan, [torch.arange(51) + 1000 * one.index for one in plan])
    assert joined.tolist() == [*range(51), *range(1017, 1051), *range(2017, 2051)]
    # The clip that closes a loop ends with the first 17 frames, which are there already.
    plan = plan_chain(68, 51, loop=True)
    assert join(plan, [torch.arange(51), torch.arange(51) + 1000]).tolist() == [*range(51), *range(1017, 1034)]


def test_the_first_clip_is_given_nothing(vae: OpenSoraVAE):
    assert given_for(plan_chain(85, 51)[0], vae.encode, None) == []


@pytest.mark.parametrize("overlap", [5, 10])
def test_a_clip_begins_with_the_end_of_the_one_before(vae: OpenSoraVAE, overlap: int):
    new = 51 - overlap // 5 * 17
    segment = plan_chain(51 + new, 51, overlap)[1]
    previous = clip(51, seed=1)
    (given,) = given_for(segment, vae.encode, previous, edit=0.1)
    assert (given.at, given.edit) == (0, 0.1)
    # As the authors have it: the last latent frames of the whole clip, encoded anew.
    torch.testing.assert_close(given.latents, vae.encode(previous)[:, :, -overlap:])


def test_the_closing_clip_leads_back_to_the_start(vae: OpenSoraVAE):
    first, previous = clip(51, seed=1), clip(51, seed=2)
    segment = plan_chain(102, 51, loop=True)[-1]
    z, mask = apply_given(torch.zeros(1, 4, 15, 2, 3), given_for(segment, vae.encode, previous, first))
    assert mask is not None
    assert mask.tolist() == [[0] * 5 + [1] * 5 + [0] * 5]
    torch.testing.assert_close(z[:, :, :5], vae.encode(previous)[:, :, -5:])
    torch.testing.assert_close(z[:, :, 10:], vae.encode(first)[:, :, :5])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a calm sea", ["a calm sea"] * 4),
        ("a cat | a dog", ["a cat | a dog"] * 4),
        ("|0| a calm sea", ["a calm sea"] * 4),
        ("|0| calm |1| storm", ["calm", "storm", "storm", "storm"]),
        (" | 0 | calm |2|storm |3| night ", ["calm", "calm", "storm", "night"]),
    ],
)
def test_a_prompt_for_each_clip(prompt: str, texts: list[str]):
    assert split_prompt(prompt, 4) == texts


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("|1| a storm", r"must begin with \|0\| and rise, but are 1"),
        ("|0| a |2| b |1| c", "but are 0, 2, 1"),
        ("|0| a |0| b", "but are 0, 0"),
        ("|0| a |4| b", "a text for clip 4, but the video has 4, numbered from 0"),
        ("|0| a | b | c", "not of the form"),
        ("|0| a |1", "not of the form"),
        ("|0| a |1|  ", "no text for clip 1"),
    ],
)
def test_a_prompt_with_wrong_marks_is_explained(prompt: str, words: str):
    with pytest.raises(PabError, match=words):
        split_prompt(prompt, 4)
