"""Fast decoders give what plain ones give. Their kernels are run by Triton's interpreter on the CPU, in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixture_checks import assert_near, case_name
from fixture_sets import load_set
from small_vaes import small_vae, waves
from torch import Tensor, nn

from pab_core.acceleration import decoders, feature_maps
from pab_core.acceleration.choice import use_speed_in_decoding
from pab_core.acceleration.decoders import PHASES, stretched
from pab_core.acceleration.decoding import use_fast_decoders
from pab_core.acceleration.feature_maps import added, attended, measured, normed, phase_weight, spread
from pab_core.autoencoders import Tiling, VideoVAE, build_vae, decode_bytes
from pab_core.autoencoders.causal import double_time
from pab_core.evaluate.live_bytes import peak_live_bytes
from pab_core.offload import Lent
from pab_core.parallel.decoding import decode_frames

# Of each kind all parts, with few groups and layers: the interpreter takes its time for each program.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "latte": (
        "latte",
        {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [16, 32],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
    ),
    "latte-temporal": (
        "latte",
        {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "block_out_channels": [32],
            "down_block_types": ["DownEncoderBlock2D"],
            "layers_per_block": 2,
        },
    ),
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger tiles, so that there are fewer, and fewer of them a chunk, so that small maps have several."""
    monkeypatch.setattr(feature_maps, "TILE", 2**13)
    monkeypatch.setattr(feature_maps, "LEAST_STEPS", 2)
    torch.manual_seed(0)


@pytest.fixture
def cudnn_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of clips keep the order of their input, as on a GPU; the CPU's don't."""
    conv3d = F.conv3d

    def ordered(x: Tensor, *args: Any) -> Tensor:
        return conv3d(x, *args).contiguous(memory_format=torch.channels_last_3d)

    monkeypatch.setattr(F, "conv3d", ordered)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


def random_map(*size: int) -> Tensor:
    """[N, C, ...] with channels last in memory, far from zero."""
    return (torch.randn(size[0], *size[2:], size[1]) + 30).movedim(-1, 1)


def random_norm(groups: int, channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def by_torch(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """In double: torch's own in float32 loses more than ours, that far from zero."""
    return copy.deepcopy(norm).double()(x.double())


def fast_copy(vae: VideoVAE) -> VideoVAE:
    vae = copy.deepcopy(vae)
    assert use_fast_decoders(vae) > 0
    return vae


# ------------------------------------------------------------------------------------------------ operations


@pytest.mark.parametrize("size", [(2, 64, 9, 31), (1, 32, 3, 20, 15), (2, 64, 1, 1), (1, 512, 5, 7)], ids=str)
@pytest.mark.parametrize("silu", [True, False])
def test_norm_of_a_map_and_of_one_that_lacks_a_bias(size: tuple[int, ...], silu: bool):
    x, bias, norm = random_map(*size), torch.randn(size[1]), random_norm(4, size[1])
    whole = x + bias.view(-1, *[1] * (len(size) - 2))
    for part, lacking in ((x, None), (whole, bias)):
        target = by_torch(norm, part)
        target = F.silu(target) if silu else target
        assert distance(target, normed(measured(x), norm, lacking, silu=silu)) < 1e-5
    target = F.silu(by_torch(norm, x))
    own = normed(measured(x), norm, own=True)
    assert own.data_ptr() == x.data_ptr()
    assert distance(target, own) < 1e-5


def test_a_channel_far_from_zero_loses_nothing_in_its_statistics():
    x = torch.randn(1, 40, 50, 16).movedim(-1, 1)
    x[:, :, :2] += 5  # the rows that others are compared with are not like them
    far, norm = x + 1000, random_norm(4, 16)
    # No better than what is left of the numbers themselves at that distance from zero.
    assert distance(by_torch(norm, far), normed(measured(far), norm, silu=False)) < 2e-4


def test_room_in_front_of_each_clip():
    x, norm = random_map(2, 16, 3, 4, 5), random_norm(4, 16)
    roomy = normed(measured(x), norm, before=2)
    assert roomy.shape == (2, 16, 5, 4, 5)
    assert distance(F.silu(by_torch(norm, x)), roomy[:, :, 2:]) < 1e-5


@pytest.mark.parametrize("factor", [None, 0.3])
def test_a_sum_and_what_it_leaves_for_the_norm(factor: float | None):
    x, h, bias, norm = random_map(2, 32, 11, 13), random_map(2, 32, 11, 13), torch.randn(32), random_norm(8, 32)
    target = x + (1 if factor is None else factor) * (h + bias.view(-1, 1, 1))
    place = h.data_ptr()
    ours = added(x, h, bias, None if factor is None else torch.tensor([factor]))
    assert distance(target, ours.x) < 1e-6
    assert ours.x.data_ptr() == place
    assert distance(by_torch(norm, target), normed(ours, norm, silu=False)) < 1e-5


@pytest.mark.parametrize("frames", [1, 3])
def test_a_convolution_before_the_enlargement_instead_of_after_it(frames: int):
    x, conv = random_map(2 * frames, 16, 5, 6), nn.Conv2d(16, 8, 3, padding=1).requires_grad_(False)
    target = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    phases, norm = F.conv2d(x, phase_weight(conv.weight), padding=1), random_norm(4, 8)
    ours = spread(phases, (10, 12) if frames == 1 else (frames, 10, 12), conv.bias)
    if frames > 1:
        target = target.unflatten(0, (2, frames)).transpose(1, 2)
    assert distance(target, ours.x) < 1e-6
    assert distance(by_torch(norm, target), normed(ours, norm, silu=False)) < 1e-5


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_time_is_stretched_as_by_the_model(frames: int):
    x = random_map(2, 8, frames, 3, 4)
    assert distance(double_time(x), stretched(x)) < 1e-6


@pytest.mark.parametrize("most", [2**26, 40])
def test_attention_of_a_wide_head(most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_maps, "MOST_HEAD", 16)
    monkeypatch.setattr(feature_maps, "MOST_SCORES", most)
    q, k, v = 2 * torch.randn(3, 2, 13, 32)
    assert distance(F.scaled_dot_product_attention(q, k, v), attended(q, k, v)) < 1e-6


# ------------------------------------------------------------------------------------------------ decoders

SETS = {"open-sora": load_set("opensora_vae"), "open-sora-plan": load_set("opensora_plan_vae")}
CASES = [(kind, case) for kind, cases in SETS.items() for case in cases.cases if case["name"] in ("decode1", "decode5")]
KINDS = ("open-sora", "latte", "latte-temporal", "open-sora-plan")


def vae_of(kind: str) -> VideoVAE:
    if kind in SETS:
        return copy.deepcopy(small_vae(kind))
    torch.manual_seed(0)
    vae = build_vae(*SMALL[kind]).eval()
    for name, parameter in vae.named_parameters():
        if name.endswith("mix_factor"):
            nn.init.constant_(parameter, 0.7)
    return vae


@pytest.mark.parametrize(
    ("kind", "case"), CASES, ids=lambda value: value if isinstance(value, str) else case_name(value)
)
def test_fixture_cases_of_the_authors(kind: str, case: dict[str, Any], record_property):
    vae = fast_copy(small_vae(kind))
    given = SETS[kind].inputs(case)
    video = vae.decode(next(iter(given.values())), case.get("num_frames"))  # pyright: ignore[reportArgumentType]
    video = video.transpose(1, 2) if kind == "open-sora-plan" else video
    assert_near(case["name"], video, SETS[kind].expected(case)["video"], 5e-5, record_property)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
@pytest.mark.usefixtures("cudnn_order")
def test_fast_decoders_give_the_plain_ones_results_in_no_more_memory(kind: str, monkeypatch: pytest.MonkeyPatch):
    """And nothing falls out of the order in memory, which would cost a copy, and on a GPU slower convolutions."""
    plain = vae_of(kind)
    fast = fast_copy(plain)
    size = (5, 32, 40) if kind in SETS else (3, 12, 20)
    z = waves(plain, *size)
    fell: list[tuple[int, ...]] = []
    plain_rows, plain_convolved = feature_maps.rows_of, feature_maps.convolved

    def rows_of(x: Tensor) -> Tensor:
        rows = plain_rows(x)
        if rows.data_ptr() != x.data_ptr():
            fell.append(tuple(x.shape))
        return rows

    def convolved(conv: Any, x: Tensor, *args: Any, **settings: Any) -> Tensor:
        assert x.movedim(1, -1).is_contiguous(), x.shape
        assert conv.weight.movedim(1, -1).is_contiguous(), conv
        return plain_convolved(conv, x, *args, **settings)

    for module in (decoders, feature_maps):
        monkeypatch.setattr(module, "rows_of", rows_of)
        monkeypatch.setattr(module, "convolved", convolved)
    made: list[Tensor] = []
    peak = peak_live_bytes(lambda: made.append(fast.decode(z, size[0])))
    assert not fell
    assert distance(plain.decode(z, size[0]), made[0]) < 1e-5
    assert peak <= decode_bytes(fast, *size, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_names_weights_and_encoding_stay_what_they_were(kind: str):
    plain = vae_of(kind)
    fast = fast_copy(plain)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fast.parameters(), strict=True))
    video = torch.randn(1, 3, 5, 16, 24)
    assert torch.equal(plain.encode(video), fast.encode(video))


def test_tiles_of_a_clip():
    plain = vae_of("latte")
    z, tiling = waves(plain, 2, 12, 20), Tiling(12, 1, 0.25)
    assert distance(plain.decode(z, 2, tiling=tiling), fast_copy(plain).decode(z, 2, tiling=tiling)) < 1e-5


def test_pictures_come_out_as_files_want_them():
    vae = fast_copy(vae_of("latte"))
    part: Any = vae.decoder
    with torch.no_grad():
        assert part(waves(vae, 2, 8, 12)[0].transpose(0, 1)).permute(0, 2, 3, 1).is_contiguous()


def test_gradients_flow_through_the_plain_decoders():
    plain = vae_of("latte")
    fast = fast_copy(plain)
    z = waves(plain, 1, 8, 12)[0].transpose(0, 1)
    made = fast.decoder(z)  # pyright: ignore[reportCallIssue]
    assert made.requires_grad
    assert distance(made.detach(), plain.decoder(z).detach()) < 1e-6  # pyright: ignore[reportCallIssue]


def test_without_the_interpreter_a_cpu_decodes_as_ever(monkeypatch: pytest.MonkeyPatch):
    plain = vae_of("latte")
    fast = fast_copy(plain)
    monkeypatch.setattr(feature_maps.kernels, "RUN_ON_CPU", False)
    monkeypatch.setattr(feature_maps.kernels, "moments", None)
    z = waves(plain, 1, 8, 12)
    assert distance(plain.decode(z, 1), fast.decode(z, 1)) < 1e-6


def test_on_loan_from_the_host():
    plain = vae_of("latte")
    fast = fast_copy(plain)
    assert use_fast_decoders(fast) == 1  # again, as for a pipeline that was on the device before
    z = waves(plain, 1, 8, 12)
    lent = Lent(fast, torch.device("cpu"))
    with lent:
        assert distance(plain.decode(z, 1), fast.decode(z, 1)) < 1e-5


def test_some_of_the_frames():
    plain = vae_of("open-sora")
    z = waves(plain, 5, 16, 24)
    with torch.no_grad():
        some = decode_frames(fast_copy(plain), z, 5, slice(2, 4))
    assert distance(plain.decode(z, 5)[:, :, 2:4], some) < 1e-5


def test_a_copy_has_weights_of_its_own():
    first = fast_copy(vae_of("latte"))
    second = copy.deepcopy(first)
    z = waves(first, 1, 8, 12)
    before = second.decode(z, 1)
    for parameter in first.parameters():
        parameter.data.zero_()
    assert torch.equal(second.decode(z, 1), before)


def test_decoders_of_other_parts_stay_as_they_are():
    vae = copy.deepcopy(small_vae("demo"))  # some of its norms have 48 channels
    plain = vae.decode(waves(vae, 3, 16, 16), 3)
    assert use_fast_decoders(vae) == 0
    assert torch.equal(vae.decode(waves(vae, 3, 16, 16), 3), plain)
    assert PHASES not in "".join(name for name, _ in vae.named_buffers())


def test_only_speeds_of_a_gpu_are_decoded_so():
    vae: Any = vae_of("latte")
    use_speed_in_decoding("exact", torch.device("cuda"), vae)
    use_speed_in_decoding("fast", torch.device("cpu"), vae)
    assert "forward" not in vars(vae.decoder)
    use_speed_in_decoding("fp8", torch.device("cuda"), None)
    use_speed_in_decoding("fp8", torch.device("cuda"), vae)
    assert "forward" in vars(vae.decoder)
