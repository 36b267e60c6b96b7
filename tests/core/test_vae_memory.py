"""What a decode is said to need beside the bytes of tensors that really live at once, and the choice of tiles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from diffusers.models.upsampling import Upsample2D
from small_vaes import KINDS, small_vae, waves

from pab_core.autoencoders import (
    Tiling,
    VideoVAE,
    budget,
    build_vae,
    causal,
    choose_tiling,
    decode_bytes,
    memory,
    temporal,
)
from pab_core.autoencoders.budget import USABLE
from pab_core.autoencoders.memory import Size
from pab_core.autoencoders.open_sora_plan import CausalVAE
from pab_core.errors import PabError
from pab_core.evaluate.live_bytes import LiveBytes, peak_live_bytes

MIB = 2**20
SD: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "open-sora": ("stdit3", {}),
    "latte": ("latte", SD | {"_class_name": "AutoencoderKL", "up_block_types": ["UpDecoderBlock2D"] * 4}),
    "latte-temporal": ("latte", SD | {"_class_name": "AutoencoderKLTemporalDecoder"}),
    "open-sora-plan": ("open-sora-plan", {}),
}


def released(kind: str) -> VideoVAE:
    """The autoencoder in its released size, without weights."""
    with torch.device("meta"):
        return build_vae(*RELEASED[kind])


# ------------------------------------------------------------------------------------------------ the measure


def test_live_bytes_counts_storages_from_birth_to_death():
    weight = torch.randn(1000)
    with LiveBytes() as live:
        first = weight * 2
        assert live.now == 4000
        view = first.view(10, 100)[2:]
        same = first.relu_()
        assert live.now == 4000
        both = torch.cat([first, first])
        assert live.now == 12000
        del first, same
        assert live.now == 12000  # the view still holds it
        del view
        assert live.now == 8000
        del both
    assert (live.now, live.peak) == (0, 12000)
    assert peak_live_bytes(lambda: (weight + 1).sum()) == 4004


# ------------------------------------------------------------------------------------------------ the prediction

TILINGS = (None, Tiling(1000, 5), Tiling(48, 5), Tiling(40, 9, 0.5), Tiling(32, 17, 0.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [((17, 32, 56), torch.float32), ((5, 64, 48), torch.bfloat16), ((1, 64, 64), torch.float32)],
    ids=str,
)
@torch.no_grad()
def test_the_prediction_meets_what_lives_at_once(
    kind: str, size: tuple[int, int, int], dtype: torch.dtype, record_property
):
    vae = copy.deepcopy(small_vae(kind)).to(dtype)  # rounded for good: the other tests share the original
    z = waves(vae, *size).to(dtype)
    # Open-Sora-Plan's shares a frame between pieces, and its authors start tiles at fixed steps.
    own = Tiling(40, 9, even=False) if kind == "open-sora-plan" else Tiling(48, 2)
    for tiling in (*TILINGS, own):
        measured = peak_live_bytes(lambda tiling=tiling: vae.decode(z, size[0], tiling=tiling))
        said = decode_bytes(vae, *size, dtype, tiling)
        record_property(str(tiling), said / measured)
        print(f"{kind} {size} {tiling}: {measured} bytes, said {said / measured:.3f} of it")
        assert said == pytest.approx(measured, rel=0.05), tiling


BLOCKS: dict[str, tuple[Callable[[], Any], Callable[[Any, Size], tuple[int, Size]]]] = {
    "resnet": (lambda: ResnetBlock2D(in_channels=32, temb_channels=None), memory.resnet),  # pyright: ignore
    "resnet, wider": (
        lambda: ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=None),  # pyright: ignore
        memory.resnet,
    ),
    "attention": (lambda: UNetMidBlock2D(32, None, attention_head_dim=32).attentions[0], memory.attention),  # pyright: ignore
    "upsample": (lambda: Upsample2D(32, use_conv=True), memory.upsample),
    "chunk conv": (lambda: temporal.CausalConv3d(32, 64, 3), memory.causal_conv),
    "chunk resnet": (lambda: temporal.ResidualBlock(32, 32, temporal.TemporalConfig()), memory.causal_resnet),
    "chunk resnet, wider": (lambda: temporal.ResidualBlock(32, 64, temporal.TemporalConfig()), memory.causal_resnet),
    "causal conv": (lambda: causal.CausalConv3d(32, 64, 3), memory.causal_conv),
    "causal resnet": (lambda: causal.ResidualBlock(32, 32), memory.causal_resnet),
    "causal resnet, narrower": (lambda: causal.ResidualBlock(64, 32), memory.causal_resnet),
    "frame attention": (lambda: causal.FrameAttention(32), memory.frame_attention),
    "space upsample": (lambda: causal.SpaceUpsample(32), memory.upsample),
    "time stretch": (lambda: causal.TimeStretch(32), memory.time_stretch),
    "time upsample": (lambda: causal.TimeUpsample(32), memory.time_upsample),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_is_known_to_the_byte_of_its_feature_maps(name: str):
    make, said = BLOCKS[name]
    block = make().eval()
    channels = 64 if "narrower" in name else 32
    size = Size(channels, 6, 8, 10)
    images = type(block).__module__.startswith("diffusers")
    x = torch.zeros(6, channels, 8, 10) if images else torch.zeros(1, channels, 6, 8, 10)
    given = (x, None) if isinstance(block, ResnetBlock2D) else (x,)
    measured = size.elements + peak_live_bytes(lambda: block(*given)) / 4
    peak, out = said(block, size)
    with torch.no_grad():
        assert out.elements == block(*given).numel()
    assert peak == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("kind", RELEASED)
@torch.no_grad()
def test_the_prediction_holds_in_the_released_size(kind: str):
    vae = build_vae(*RELEASED[kind]).eval()
    measured = peak_live_bytes(lambda: vae.decode(torch.zeros(1, 4, *vae.latent_size(1, 40, 48)), 1))
    assert decode_bytes(released(kind), 1, 40, 48, torch.float32) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"decoder_temporal_upsample": ["", "", "TimeUpsample2x", "TimeUpsample2x"]},
        {"decoder_resnet_blocks": ["ResnetBlock2D"] * 4, "decoder_conv_in": "Conv2d", "decoder_conv_out": "Conv2d"},
        {"resolution": 32, "attn_resolutions": [4, 8]},
    ],
    ids=lambda change: next(iter(change)),
)
@torch.no_grad()
def test_the_prediction_knows_all_parts_of_the_causal_autoencoder(change: dict[str, Any]):
    config = {"hidden_size": 32, "hidden_size_mult": [1, 1, 1, 1], "num_res_blocks": 1} | change
    vae = CausalVAE.from_config(config).eval()
    measured = peak_live_bytes(lambda: vae.decode(torch.zeros(1, 4, 2, 5, 6), 5))
    assert decode_bytes(vae, 5, 40, 48, torch.float32) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_encoding_needs_no_more_than_decoding(kind: str):
    vae = small_vae(kind)
    video = torch.zeros(1, 3, 9, 48, 64)
    for tiling in TILINGS:
        measured = peak_live_bytes(lambda tiling=tiling: vae.encode(video, tiling=tiling))
        assert measured <= decode_bytes(vae, 9, 48, 64, torch.float32, tiling), tiling


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(("kind", "frames"), [("open-sora", 51), ("latte-temporal", 16), ("open-sora-plan", 65)])
def test_tiles_shrink_with_the_free_memory_and_fit_in_it(kind: str, frames: int):
    vae = released(kind)
    size = (frames, 512, 512)
    needed = decode_bytes(vae, *size, torch.bfloat16, vae.authors_tiling)
    assert choose_tiling(vae, *size, torch.bfloat16, int(needed / USABLE) + 1) == vae.authors_tiling
    before = needed
    seen = set()
    for free in (needed // 1, needed // 2, needed // 4, needed // 8):
        tiling = choose_tiling(vae, *size, torch.bfloat16, free)
        assert tiling is not None
        bound = decode_bytes(vae, *size, torch.bfloat16, tiling)
        assert bound <= USABLE * free
        assert bound <= before
        before = bound
        # No waste: the next larger tiles of the same length would not fit.
        larger = Tiling(tiling.pixels + 128, tiling.frames)
        assert tiling.pixels == 512 or decode_bytes(vae, *size, torch.bfloat16, larger) > USABLE * free
        seen.add(tiling)
    assert len(seen) > 2


def test_whole_frames_are_kept_as_long_as_fewer_at_once_help():
    tiling = choose_tiling(released("open-sora"), 51, 720, 1280, torch.bfloat16, 4 * 1024 * MIB)
    assert tiling == Tiling(1280, 2)
    assert choose_tiling(released("latte"), 16, 512, 512, torch.bfloat16, 1024 * MIB) is None


def test_plain_decoders_on_a_gpu_leave_room_for_the_copies_of_cudnn(monkeypatch: pytest.MonkeyPatch):
    vae = released("open-sora")
    needed = int(decode_bytes(vae, 51, 512, 512, torch.bfloat16, None) / USABLE) + 1
    assert choose_tiling(vae, 51, 512, 512, torch.bfloat16, needed) is None
    monkeypatch.setattr(budget, "_copies", lambda vae: True)
    tiling = choose_tiling(vae, 51, 512, 512, torch.bfloat16, needed)
    assert tiling is not None
    assert decode_bytes(vae, 51, 512, 512, torch.bfloat16, tiling) * 4 / 3 <= USABLE * needed
    assert choose_tiling(vae, 51, 512, 512, torch.bfloat16, needed * 4 // 3 + 1) is None


@torch.no_grad()
def test_a_decode_with_the_chosen_tiles_stays_within_the_free_memory():
    vae = small_vae("latte-temporal")
    z = torch.zeros(1, 4, *vae.latent_size(16, 96, 112))
    free = 24 * MIB
    assert peak_live_bytes(lambda: vae.decode(z, 16)) > 4 * free
    tiling = choose_tiling(vae, 16, 96, 112, torch.float32, free)
    assert peak_live_bytes(lambda: vae.decode(z, 16, tiling=tiling)) <= free


@pytest.mark.parametrize("kind", RELEASED)
def test_too_little_memory_for_the_smallest_tiles_is_told_with_what_would_do(kind: str):
    vae = released(kind)
    with pytest.raises(PabError, match=r"^Decoding 17 frames of 512 x 480 pixels needs .* in tiles of 128") as caught:
        choose_tiling(vae, 17, 480, 512, torch.bfloat16, 20 * MIB)
    assert "but 20 MiB are free" in str(caught.value)
    needed = int(str(caught.value).split(" needs ")[1].split(" MiB")[0].replace(",", ""))
    assert choose_tiling(vae, 17, 480, 512, torch.bfloat16, needed * MIB) is not None
    with pytest.raises(PabError):
        choose_tiling(vae, 17, 480, 512, torch.bfloat16, (needed - 1) * MIB)
