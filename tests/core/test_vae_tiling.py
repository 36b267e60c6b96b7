"""Tiles: where they lie, how they are joined, and how the three autoencoders' tiled results differ from whole ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_vaes import KINDS, small_vae, waves
from torch import Tensor

from pab_core.autoencoders import CausalVAE, OpenSoraVAE, Tiling, VideoVAE
from pab_core.autoencoders import tiling as tiling_module
from pab_core.autoencoders.tiling import Tile, separate, split, tiled
from pab_core.errors import PabError

# ------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize(("side", "overlap"), [(4, 1), (6, 3), (5, 0), (8, 2)])
def test_even_tiles_cover_an_axis_with_as_few_of_one_size_as_overlap_enough(side: int, overlap: int):
    assert all(Tile(side, overlap, even=True).starts(size) == [0] for size in range(1, side + 1))
    for size in range(side + 1, 60):
        starts = Tile(side, overlap, even=True).starts(size)
        assert starts[0] == 0
        assert starts[-1] + side == size
        assert all(0 < after - first <= side - overlap for first, after in pairwise(starts))
        fewer = len(starts) - 1
        assert fewer * side - (fewer - 1) * overlap < size


def test_tiles_in_steps_lie_as_the_authors_have_them():
    assert Tile(64, 16, even=False).starts(64) == [0, 48]
    assert Tile(64, 16, even=False).starts(100) == [0, 48, 96]
    assert Tiling(512, even=False).tile(8) == (64, 16, False)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"frames": 0}, "needs pixels and frames"),
        ({"overlap": 0.6}, "three tiles would meet"),
        ({"pixels": 8}, "at least 16 pixels"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(sizes: dict[str, Any], words: str):
    with pytest.raises(PabError, match=words):
        Tiling(**sizes).tile(8)


def test_a_piece_of_the_causal_autoencoder_needs_two_latent_frames():
    vae = small_vae("open-sora-plan")
    with pytest.raises(PabError, match="at least 5 frames"):
        vae.decode(torch.zeros(1, 4, 3, 2, 2), 9, tiling=Tiling(frames=4))


# ------------------------------------------------------------------------------------------------ joining


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 4), (6, 9, 13), (7, 17, 10)])
def test_what_sees_only_itself_comes_out_as_from_the_whole(size: tuple[int, int, int], overlap: int, even: bool):
    """Both ways: three times as large, and a third as large with pixels left over at the edges."""
    x = torch.randn(2, 2, *size)
    tile, pieces = Tile(6, overlap, even), separate(split(size[0], 3), split(size[0], 3))
    large = tiled(lambda part, kept: F.interpolate(part, scale_factor=(1, 3, 3)), x, pieces, tile, (1, 3))
    expected = F.interpolate(x, scale_factor=(1, 3, 3))
    torch.testing.assert_close(large, expected)
    wide = F.pad(expected, (0, 2, 0, 1))
    torch.testing.assert_close(tiled(lambda part, kept: F.avg_pool3d(part, (1, 3, 3)), wide, pieces, tile, (3, 1)), x)


def test_pixels_that_fill_no_latent_one_go_to_the_last_tiles():
    seen: list[tuple[int, int]] = []

    def convert(part: Tensor, kept: int) -> Tensor:
        seen.append((part.shape[3], part.shape[4]))
        return F.avg_pool3d(part, (1, 3, 3))

    tiled(convert, torch.zeros(1, 1, 1, 20, 32), separate([1], [1]), Tile(6, 2, even=True), (3, 1))
    assert seen == [(20, 18), (20, 20)]


@torch.no_grad()
def test_a_seam_fades_from_one_tile_to_the_next():
    colours = iter([0.0, 1.0, 10.0, 11.0])  # left and right, above and below
    out = tiled(
        lambda part, kept: torch.full((1, 1, 1, 8, 8), next(colours)),
        torch.zeros(1, 1, 1, 6, 6),
        separate([1], [1]),
        Tile(4, 2, even=True),
        (1, 2),
    )
    ramp = torch.tensor([0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    torch.testing.assert_close(out[0, 0, 0], ramp + 10 * ramp[:, None])


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("kind", ["open-sora", "latte", "latte-temporal"])
@torch.no_grad()
def test_tiles_as_large_as_the_frames_change_nothing(kind: str):
    vae = small_vae(kind)
    z = waves(vae, 20, 32, 40)
    video = vae.decode(z, 20)
    whole = Tiling(pixels=80, frames=17)
    torch.testing.assert_close(vae.decode(z, 20, tiling=whole), video, rtol=0, atol=2e-5)
    torch.testing.assert_close(vae.encode(video, tiling=whole), vae.encode(video), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["open-sora", "latte"])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_how_many_frames_go_at_once_changes_nothing_where_frames_do_not_meet(kind: str, batch: int):
    vae = small_vae(kind)
    z = waves(vae, 5, 32, 40)
    z = torch.cat([z, -z])[:batch]
    video = vae.decode(z, 5)
    torch.testing.assert_close(vae.decode(z, 5, tiling=Tiling(80, frames=2)), video, rtol=0, atol=2e-5)
    torch.testing.assert_close(vae.encode(video, tiling=Tiling(80, frames=2)), vae.encode(video), rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_causal_autoencoder_works_on_a_clip_as_small_as_a_tile_whole():
    vae = small_vae("open-sora-plan")
    assert isinstance(vae, CausalVAE)
    z = waves(vae, 9, 32, 40)
    video = vae.decode(z, 9)
    for tiling in (Tiling(40, 9), Tiling(40, 9, even=False)):
        assert torch.equal(vae.decode(z, 9, tiling=tiling), video)
        assert torch.equal(vae.encode(video, tiling=tiling), vae.encode(video))
    assert not torch.allclose(vae.decode(z, 9, tiling=Tiling(40, 5)), video)
    assert [tuple(piece) for piece in vae.latent_pieces((6, 4, 4), Tiling(32, 9))] == [(0, 3, 9), (2, 5, 8), (4, 6, 4)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_draw_in_tiles_takes_the_same_noise(kind: str):
    vae = small_vae(kind)
    side = 8 * vae.spatial_factor
    video = 0.5 * torch.randn(1, 3, 5, side, side, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    tiling = Tiling(6 * vae.spatial_factor, 5)
    noises = []
    for tiles in (None, tiling):
        drawn = vae.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(5), tiling=tiles)
        again = vae.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(5), tiling=tiles)
        assert torch.equal(drawn, again)
        noises.append((drawn - vae.encode(video, tiling=tiles)).flatten())
    assert torch.corrcoef(torch.stack(noises))[0, 1] > 0.9


# ------------------------------------------------------------------------------------------------ seams


def calm(vae: VideoVAE) -> VideoVAE:
    """Nearer to a trained one: with random weights every block's update is as large as what it is added to, and then
    each tile's own statistics in the norms change the whole picture."""
    vae = copy.deepcopy(vae)
    blocks = {"resnets", "block", "mid", "res_blocks", "block_res_blocks"}
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            parts = set(name.split("."))
            if {"to_out", "proj_out"} & parts or ("conv2" in parts and blocks & parts):
                parameter.mul_(0.1)
    return vae


def worst_step(whole: Tensor, made: Tensor, tile: Tile, unit: int) -> float:
    """How abruptly the error of a tiled result changes where a tile begins or ends: the mean step over the worst such
    line of pixels, in units of the picture's own spread."""
    worst = 0.0
    for dim in (3, 4):
        size = whole.shape[dim] // unit
        starts = tile.starts(size)
        assert len(starts) > 1
        edges = [*starts[1:], *(start + tile.side for start in starts[:-1])]
        steps = (made - whole).diff(dim=dim).abs().mean(dim=[axis for axis in range(5) if axis != dim])
        worst = max(worst, *(steps[edge * unit - 1].item() for edge in edges))
    return worst / whole.std().item()


def no_blend(tile: Tensor, before: Tensor, dim: int) -> None:
    """The later tile covers the earlier one."""


def late_blend(tile: Tensor, before: Tensor, dim: int, blend: Callable[..., None] = tiling_module.blend) -> None:
    """The earlier tile's part lies four pixels off."""
    blend(tile, before.roll(4, dim), dim)


def one_way_blend(tile: Tensor, before: Tensor, dim: int, blend: Callable[..., None] = tiling_module.blend) -> None:
    """Only what lies above is faded over."""
    if dim == 3:
        blend(tile, before, dim)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_seams_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch, record_property):
    """The error's steps at the edges of tiles stay small, and the same measure tells a broken blend."""
    vae = calm(small_vae(kind))
    unit = vae.spatial_factor
    tiling, size = Tiling(12 * unit, 9), (5, 17 * unit, 18 * unit)
    tile, z = tiling.tile(unit), waves(vae, *size)
    whole, made = vae.decode(z, 5), vae.decode(z, 5, tiling=tiling)
    error = (made - whole).abs() / whole.std()
    step = worst_step(whole, made, tile, unit)
    record_property("step, mean and largest error", (step, error.mean().item(), error.max().item()))
    print(f"{kind}: step {step:.3f}, mean error {error.mean():.3f}, largest {error.max():.2f}")
    assert step < 0.25
    assert error.mean() < 0.25
    for broken in (no_blend, late_blend, one_way_blend):
        monkeypatch.setattr(tiling_module, "blend", broken)
        assert worst_step(whole, vae.decode(z, 5, tiling=tiling), tile, unit) > 0.5, broken


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_seams_of_encoding_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch):
    vae = calm(small_vae(kind))
    unit = vae.spatial_factor
    tiling, size = Tiling(12 * unit, 9), (5, 17 * unit, 18 * unit)
    tile, video = tiling.tile(unit), 0.5 * F.interpolate(waves(vae, *size)[:, :3], size=size, mode="trilinear")
    whole = vae.encode(video)
    assert worst_step(whole, vae.encode(video, tiling=tiling), tile, 1) < 0.3
    monkeypatch.setattr(tiling_module, "blend", no_blend)
    assert worst_step(whole, vae.encode(video, tiling=tiling), tile, 1) > 0.4


def test_progress_counts_tiles():
    vae = small_vae("open-sora")
    assert isinstance(vae, OpenSoraVAE)
    told: list[tuple[int, int]] = []
    z = waves(vae, 5, 64, 32)
    vae.decode(z, 5, lambda done, total: told.append((done, total)), Tiling(40, 4))
    assert told == [(done, 4) for done in range(1, 5)]
