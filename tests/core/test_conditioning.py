"""Given frames: where they go, what the mask says, what the tasks give, and that the recorded masked loops use them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_checks import assert_near, case_name
from fixture_sets import load_set
from tiny_checkpoint import VAE
from torch import Tensor

from pab_core.autoencoders import OpenSoraVAE
from pab_core.conditioning import (
    GivenFrames,
    apply_given,
    check_takes_frames,
    continue_video,
    edit_video,
    edited_steps,
    first_and_last,
    image_to_video,
    last_frame,
    looping,
    overlap_frames,
)
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.models.stdit3 import STDiT3, STDiT3Config
from pab_core.sampling import RectifiedFlow

SET = load_set("opensora")


def partly_given(case: dict[str, Any]) -> bool:
    """Whether a masked case has frames to make and frames that are given: `apply_given` takes no other."""
    mask = SET.inputs(case).get("cond_mask")
    return mask is not None and bool(mask.any()) and bool((mask < 1).any())


MASKED = [case for case in SET.cases if partly_given(case) and not case["pab"]]


@pytest.fixture(scope="module")
def vae() -> OpenSoraVAE:
    torch.manual_seed(0)
    return OpenSoraVAE.from_config(VAE).eval()


def clip(frames: int, seed: int = 0) -> Tensor:
    """Video [1, 3, frames, 16, 24] in [-1, 1]."""
    return torch.rand(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(frames: int = 15) -> Tensor:
    """For a clip like those of `clip`: [1, 4, frames, 2, 3]."""
    return torch.randn(1, 4, frames, 2, 3, generator=torch.Generator().manual_seed(9))


def latents(frames: int, value: float) -> Tensor:
    """Each frame tells its place: value, value + 0.01, ..."""
    return (value + torch.arange(frames) / 100).view(1, 1, -1, 1, 1).expand(1, 4, -1, 2, 3)


def apply(given: list[GivenFrames], frames: int = 15) -> tuple[Tensor, list[float]]:
    """z, and the mask's only row."""
    z, mask = apply_given(noise(frames), given)
    assert mask is not None
    assert mask.shape == (1, frames)
    return z, [round(value, 6) for value in mask[0].tolist()]


# Placing


def test_nothing_given_is_plain_noise():
    z, mask = apply_given(noise(), [])
    assert torch.equal(z, noise())
    assert mask is None


@pytest.mark.parametrize(("at", "places"), [(0, [0, 1]), (4, [4, 5]), (-2, [13, 14]), (14, [14]), (-15, [0, 1])])
def test_frames_stand_where_they_belong_and_the_rest_is_noise(at: int, places: list[int]):
    start = noise()
    z, mask = apply_given(start, [GivenFrames(latents(2, 7.0), at, 0.25)])
    assert mask is not None
    assert torch.equal(start, noise()), "the noise itself is not written to"
    for frame in range(15):
        if frame in places:
            assert torch.equal(z[:, :, frame], latents(2, 7.0)[:, :, places.index(frame)])
            assert mask[0, frame] == 0.25
        else:
            assert torch.equal(z[:, :, frame], noise()[:, :, frame])
            assert mask[0, frame] == 1


def test_later_ones_cover_earlier_ones_and_a_batch_is_given_the_same():
    given = [GivenFrames(latents(3, 1.0), 0), GivenFrames(latents(1, 2.0), 1, 0.5)]
    z, mask = apply_given(noise(5).repeat(2, 1, 1, 1, 1), given)
    assert mask is not None
    assert mask.tolist() == [[0, 0.5, 0, 1, 1]] * 2
    assert [round(value, 2) for value in z[1, 0, :3, 0, 0].tolist()] == [1.0, 2.0, 1.02]
    assert torch.equal(z[0], z[1])


def test_what_may_change_altogether_starts_from_noise():
    z, mask = apply_given(noise(), [GivenFrames(latents(15, 1.0), 0, 1.0)])
    assert torch.equal(z, noise())
    assert mask is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (GivenFrames(latents(1, 0.0), 15), "latent frame 15 of a clip that has 15: the places are -15 to 14"),
        (GivenFrames(latents(1, 0.0), -16), "latent frame -16"),
        (GivenFrames(torch.zeros(1, 4, 1, 2, 4)), r"are \[4, 2, 4\] as latents, but the clip's are \[4, 2, 3\]"),
        (GivenFrames(torch.zeros(1, 3, 1, 2, 3)), r"are \[3, 2, 3\] as latents"),
        (GivenFrames(latents(20, 0.0)), "All 15 latent frames .* are given, so nothing is left to make"),
    ],
)
def test_frames_that_do_not_fit_are_explained(given: GivenFrames, words: str):
    with pytest.raises(PabError, match=words):
        apply_given(noise(), [given])


@pytest.mark.parametrize("edit", [-0.1, 1.5, float("nan"), True, "0.5"])
def test_an_edit_ratio_is_a_share(edit: Any):
    with pytest.raises(PabError, match=r"edit ratio must be a number from 0 .* to 1"):
        GivenFrames(latents(1, 0.0), 0, edit)


def test_only_open_sora_takes_frames():
    for spec in MODELS.values():
        if spec.family == "stdit3":
            check_takes_frames(spec)
        else:
            with pytest.raises(PabError, match=f"{spec.title} cannot start from given pictures"):
                check_takes_frames(spec)


# The authors' masked loops


@pytest.mark.parametrize("case", MASKED, ids=case_name)
@torch.no_grad()
def test_fixture_masked_loop_from_given_frames(case: dict[str, Any], record_property):
    inputs, expected = SET.inputs(case), SET.expected(case)
    z, cond_mask = inputs["z"], inputs["cond_mask"]
    given = [
        GivenFrames(z[:, :, frame : frame + 1], frame, edit)
        for frame, edit in enumerate(cond_mask[0].tolist())
        if edit < 1
    ]
    # Other noise where frames are given: they must come from `given`.
    start = torch.where(cond_mask[:, None, :, None, None] < 1, -z, z)
    placed, mask = apply_given(start, given)
    assert torch.equal(placed, z)
    assert mask is not None
    assert torch.equal(mask, cond_mask)

    with torch.device("meta"):
        model = STDiT3(STDiT3Config.from_dict(SET.config))
    model.load_state_dict(SET.weights, strict=True, assign=True)
    y = torch.cat([inputs["y"], model.y_embedder.y_embedding[None, None]])
    size = {key: inputs[key] for key in ("fps", "height", "width")}

    def velocity(z: Tensor, t: Tensor, step: int, x_mask: Tensor | None) -> Tensor:
        assert x_mask is not None
        args = (z.repeat(2, 1, 1, 1, 1), t.repeat(2), y, inputs.get("mask"))
        cond, uncond = model.eval()(*args, x_mask=x_mask.repeat(2, 1), **size)[:, : z.shape[1]].chunk(2)
        return uncond + case["cfg_scale"] * (cond - uncond)

    last = RectifiedFlow().sample(
        velocity, placed, expected["timesteps"], cond_mask=mask, step_noise=lambda step: inputs["step_noise"][step]
    )
    assert_near(case["name"], last, expected["latents"][-1], 2e-3, record_property)
    kept = cond_mask[0] == 0
    assert torch.equal(last[:, :, kept], z[:, :, kept]), "frames given for good come out as they went in"


def test_an_edit_ratio_below_the_last_timestep_changes_nothing():
    timesteps = RectifiedFlow().timesteps(30, 51, 480, 854).tolist()
    assert round(timesteps[-1]) == 143
    assert [edited_steps(edit, timesteps) for edit in (0, 0.14, 0.15, 0.5, 1)] == [0, 0, 1, 5, 30]
    calls: list[list[bool]] = []

    def velocity(z: Tensor, t: Tensor, step: int, x_mask: Tensor | None) -> Tensor:
        assert x_mask is not None
        calls.append(x_mask[0].tolist())
        return torch.ones_like(z)

    z, mask = apply_given(noise(2), [GivenFrames(latents(1, 1.0), 0, 0.5)])
    RectifiedFlow().sample(velocity, z, torch.tensor(timesteps), cond_mask=mask)
    assert [sum(row[i] for row in calls) for i in (0, 1)] == [5, 30]


# Tasks, with a real VAE of random weights


def test_image_to_video(vae: OpenSoraVAE):
    picture = clip(1)
    z, mask = apply(image_to_video(vae.encode, picture))
    assert mask == [0] + [1] * 14
    assert torch.equal(z[:, :, :1], vae.encode(picture))


def test_first_and_last(vae: OpenSoraVAE):
    first, last = clip(1, seed=1), clip(1, seed=2)
    z, mask = apply(first_and_last(vae.encode, first, last))
    assert mask == [0] + [1] * 13 + [0]
    assert torch.equal(z[:, :, :1], vae.encode(first))
    # It is what the VAE makes of a clip's end that stands still, and not a picture alone.
    still = torch.cat([clip(34), last.expand(-1, -1, 17, -1, -1)], dim=2)
    torch.testing.assert_close(z[:, :, 14:], vae.encode(still)[:, :, 14:])
    assert not torch.allclose(z[:, :, 14:], vae.encode(last), atol=1e-2)


def test_looping_begins_and_ends_with_one_picture(vae: OpenSoraVAE):
    z, mask = apply(looping(vae.encode, clip(1)))
    assert mask == [0] + [1] * 13 + [0]
    assert torch.equal(z[:, :, 0], vae.encode(clip(1))[:, :, 0])
    assert torch.equal(z[:, :, 14:], last_frame(vae.encode, clip(1)).latents)


@pytest.mark.parametrize("overlap", [5, 10])
def test_a_video_goes_on_from_its_end(vae: OpenSoraVAE, overlap: int):
    video = clip(51)
    z, mask = apply(continue_video(vae.encode, video, overlap, edit=0.2))
    assert mask == [0.2] * overlap + [1] * (15 - overlap)
    torch.testing.assert_close(z[:, :, :overlap], vae.encode(video)[:, :, -overlap:])
    # The end of the video, wherever its own chunks of 17 would lie.
    (odd,) = continue_video(vae.encode, clip(40))
    assert torch.equal(odd.latents, vae.encode(clip(40)[:, :, 23:]))


def test_a_video_too_short_to_go_on_is_explained(vae: OpenSoraVAE):
    with pytest.raises(PabError, match="from its last 17 frames, but this one has only 16"):
        continue_video(vae.encode, clip(16))


def test_editing_takes_whole_chunks(vae: OpenSoraVAE):
    z, mask = apply(edit_video(vae.encode, clip(40), 0.4))
    assert mask == [0.4] * 10 + [1] * 5
    assert torch.equal(z[:, :, :10], vae.encode(clip(40)[:, :, :34]))
    # A longer video than the clip is cut, a picture may be edited as a clip of one frame.
    z, mask = apply(edit_video(vae.encode, clip(68), 0.4))
    assert mask == [0.4] * 15
    torch.testing.assert_close(z, vae.encode(clip(68)[:, :, :51]))
    assert apply(edit_video(vae.encode, clip(1), 0.6), frames=1)[1] == [0.6]
    with pytest.raises(PabError, match="17 frames or more, but this one has 16"):
        edit_video(vae.encode, clip(16), 0.4)


@pytest.mark.parametrize(
    ("overlap", "words"),
    [(4, "5 latent frames or more, not 4"), (0, "not 0"), (7, "a multiple of 5. Near are 5 and 10"), (5.0, "not 5.0")],
)
def test_an_overlap_is_whole_chunks(overlap: Any, words: str):
    with pytest.raises(PabError, match=words):
        overlap_frames(overlap)
