"""CausalVAE of Open-Sora-Plan against the authors' autoencoder, as the set's cases.json says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_checks import assert_near, case_name
from fixture_sets import load_set
from torch import Tensor

from pab_core.autoencoders.open_sora_plan import LATENT_SCALE, CausalVAE
from pab_core.autoencoders.tiling import Tiling

SET = load_set("opensora_plan_vae")
ATOL = 5e-5


def case_tiling(vae: CausalVAE, case: dict[str, Any]) -> Tiling | None:
    """The case's tiling attributes, under our names: the authors read those in latents to decode, others to encode."""
    if "tiling" not in case:
        return None
    given = case["tiling"]
    pixels, frames = given["tile_sample_min_size"], given["tile_sample_min_size_t"]
    if case["kind"] == "decode":
        pixels = vae.spatial_factor * given["tile_latent_min_size"]
        frames = vae.time_factor * (given["tile_latent_min_size_t"] - 1) + 1
    return Tiling(pixels, frames, given["tile_overlap_factor"], even=False)


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    with torch.device("meta"):
        model = CausalVAE.from_config(SET.config)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in SET.weights.items()
    }
    model.load_state_dict(SET.weights, strict=True, assign=True)
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    return model.eval()


def results(vae: CausalVAE, case: dict[str, Any]) -> dict[str, Tensor]:
    inputs, tiling = SET.inputs(case), case_tiling(vae, case)
    if case["kind"] == "decode":
        return {"video": vae.decode(inputs["latents"], tiling=tiling).transpose(1, 2)}
    assert case["kind"] == "encode", f"unknown kind of case: {case['kind']}"
    video, noise = inputs["x"], inputs.get("noise")
    made = {"moments": vae.encode_moments(video, tiling=tiling), "z_mean": vae.encode(video, tiling=tiling)}
    if noise is not None:
        made["z_sample"] = vae.encode(video, sample_posterior=True, noise=noise, tiling=tiling)
    return made


def test_fixture_set_has_cases():
    assert SET.cases


@pytest.mark.parametrize("case", SET.cases, ids=case_name)
@torch.no_grad()
def test_fixture_case(vae: CausalVAE, case: dict[str, Any], record_property):
    actual = results(vae, case)
    expected = SET.expected(case)
    assert expected
    for name, target in expected.items():
        assert_near(f"{case['name']}.{name}", actual[name], target, ATOL, record_property)


@pytest.mark.parametrize("case", [c for c in SET.cases if c["kind"] == "decode"], ids=case_name)
def test_fixture_latent_size(vae: CausalVAE, case: dict[str, Any]):
    z = SET.inputs(case)["latents"]
    _, frames, _, height, width = SET.expected(case)["video"].shape
    assert z.shape[1] == vae.latent_channels
    assert vae.latent_size(frames, height, width) == tuple(z.shape[2:])


def test_fixture_a_draw_without_noise_follows_the_generator(vae: CausalVAE):
    case = next(case for case in SET.cases if case["kind"] == "encode")
    video, tiling = SET.inputs(case)["x"], case_tiling(vae, case)
    drawn = vae.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(3), tiling=tiling)
    mean, logvar = vae.encode_moments(video, tiling=tiling).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, (mean + (0.5 * logvar).exp() * noise) * LATENT_SCALE)


@torch.no_grad()
def test_fixture_frames_beyond_the_last_whole_latent_one_are_in_their_piece(vae: CausalVAE):
    """A clip of 16 frames in pieces of 9 is 0..8 and 8..15, as the authors cut it: the last frames are in its norms."""
    frames, side = 2 * vae.time_factor + 1, 2 * vae.spatial_factor
    video = torch.randn(1, 3, 4 * vae.time_factor, side, side, generator=torch.Generator().manual_seed(4))
    first, last = vae.encode_moments(video[:, :, :frames]), vae.encode_moments(video[:, :, frames - 1 :])
    moments = vae.encode_moments(video, tiling=Tiling(2 * side, frames, even=False))
    torch.testing.assert_close(moments, torch.cat([first, last[:, :, 1:]], dim=2))


@torch.no_grad()
def test_fixture_a_tile_ends_where_the_authors_end_it(vae: CausalVAE):
    """Of 38 pixels, a tile of 32 takes 32, not what is left at the edge."""
    tile, step = 4 * vae.spatial_factor, 2 * vae.spatial_factor
    video = torch.randn(1, 3, 1, step, tile + 6, generator=torch.Generator().manual_seed(5))
    tiles = [vae.encode_moments(video[..., start : start + tile]) for start in (0, step)]
    moments = vae.encode_moments(video, tiling=Tiling(tile, 1 + vae.time_factor, 0.5, even=False))
    torch.testing.assert_close(moments[..., :2], tiles[0][..., :2])
    torch.testing.assert_close(moments[..., 2], tiles[0][..., 2])  # the seam starts with all of the tile before
    torch.testing.assert_close(moments[..., 3], (tiles[0][..., 3] + tiles[1][..., 1]) / 2)
