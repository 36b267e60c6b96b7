"""What OpenSoraVAE promises beyond equal numbers: sizes, training use, cancelling, configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pab_core.autoencoders import OpenSoraVAE
from pab_core.errors import PabError


def small_config(**changes: Any) -> dict[str, Any]:
    """Two levels (4 pixels: 2x in space), time factor 2, chunks of 5 frames, 3 latent channels from 2 spatial ones."""
    config: dict[str, Any] = {
        "micro_frame_size": 5,
        "scale": [2.0, 3.0, 4.0],
        "shift": [0.1, 0.2, 0.3],
        "vae_2d": {
            "micro_batch_size": 2,
            "config": {
                "block_out_channels": [4, 8],
                "down_block_types": ["DownEncoderBlock2D"] * 2,
                "up_block_types": ["UpDecoderBlock2D"] * 2,
                "latent_channels": 2,
                "layers_per_block": 1,
                "norm_num_groups": 2,
            },
        },
        "vae_temporal": {
            "in_out_channels": 2,
            "latent_embed_dim": 3,
            "embed_dim": 3,
            "filters": 4,
            "num_res_blocks": 1,
            "channel_multipliers": [1, 2],
            "temporal_downsample": [True],
            "num_groups": 2,
        },
    }
    return config | changes


@pytest.fixture
def vae() -> OpenSoraVAE:
    torch.manual_seed(0)
    return OpenSoraVAE.from_config(small_config()).eval()


def test_the_config_decides_factors_channels_and_chunks(vae: OpenSoraVAE):
    assert (vae.spatial_factor, vae.latent_channels, vae.micro_frame_size) == (2, 3, 5)
    assert vae.chunk_frames(12) == [5, 5, 2]
    assert vae.latent_size(12, 8, 6) == (3 + 3 + 1, 4, 3)
    assert vae.encode(torch.rand(2, 3, 12, 8, 6)).shape == (2, 3, 7, 4, 3)
    assert vae.decode(torch.randn(2, 3, 7, 4, 3), 12).shape == (2, 3, 12, 8, 6)


def test_the_released_config_without_sizes_is_the_official_model():
    config = {
        "micro_frame_size": 17,
        "scale": [3.85, 2.32, 2.33, 3.06],
        "shift": [-0.1, 0.34, 0.27, 0.98],
        "vae_2d": {"type": "VideoAutoencoderKL", "from_pretrained": "some/where", "micro_batch_size": 4},
        "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None},
    }
    with torch.device("meta"):
        vae = OpenSoraVAE.from_config(config)
    # 83,653,863 is the size of SDXL's image autoencoder.
    assert sum(p.numel() for p in vae.spatial_vae.parameters()) == 83_653_863
    state = vae.state_dict()
    assert state["temporal_vae.encoder.conv_in.conv.weight"].shape == (128, 4, 3, 3, 3)
    assert state["temporal_vae.decoder.res_blocks.3.conv2.conv.weight"].shape == (512, 512, 3, 3, 3)
    assert state["temporal_vae.decoder.conv_blocks.2.conv.weight"].shape == (1024, 512, 3, 3, 3)
    assert state["scale"].shape == (1, 4, 1, 1, 1)
    assert vae.latent_size(51, 480, 854) == (15, 60, 106)


def test_chunks_do_not_meet(vae: OpenSoraVAE):
    video = torch.rand(1, 3, 10, 4, 4)
    both = vae.encode(video)
    torch.testing.assert_close(both, torch.cat([vae.encode(video[:, :, :5]), vae.encode(video[:, :, 5:])], dim=2))


def test_no_chunk_size_makes_the_clip_one_chunk():
    vae = OpenSoraVAE.from_config(small_config(micro_frame_size=None))
    assert vae.chunk_frames(12) == [12]
    assert vae.latent_size(12, 8, 8)[0] == 6


def test_micro_batches_change_no_result(vae: OpenSoraVAE):
    z = torch.randn(1, 3, 4, 3, 3)
    small = vae.decode(z, 7)
    vae.micro_batch_size = None
    torch.testing.assert_close(vae.decode(z, 7), small)


def test_scale_and_shift(vae: OpenSoraVAE):
    video = torch.rand(1, 3, 5, 4, 4)
    mean = vae.posterior(video)[0]
    expected = (mean - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1, 1)) / torch.tensor([2.0, 3, 4]).view(
        1, 3, 1, 1, 1
    )
    torch.testing.assert_close(vae.encode(video), expected)
    torch.testing.assert_close(vae.denormalize(vae.normalize(mean)), mean)
    plain = OpenSoraVAE.from_config(small_config(scale=2.0, shift=1.0))
    torch.testing.assert_close(plain.normalize(mean), (mean - 1) / 2)


def test_a_draw_follows_the_generator_and_differs_from_the_mean(vae: OpenSoraVAE):
    video = torch.rand(1, 3, 5, 4, 4)

    def draw(seed: int) -> torch.Tensor:
        return vae.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.allclose(draw(1), draw(2))
    assert not torch.allclose(draw(1), vae.encode(video))


def test_progress_counts_frames_and_its_exception_reaches_the_caller(vae: OpenSoraVAE):
    seen: list[tuple[int, int]] = []
    vae.decode(torch.randn(1, 3, 3, 2, 2), 5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]

    class CancelledError(Exception):
        pass

    calls: list[int] = []

    def cancel(done: int, total: int) -> None:
        calls.append(done)
        raise CancelledError

    with pytest.raises(CancelledError):
        vae.decode(torch.randn(1, 3, 3, 2, 2), 5, progress=cancel)
    assert calls == [2]


def test_training_reaches_every_weight_that_has_influence(vae: OpenSoraVAE):
    video = torch.rand(2, 3, 5, 4, 4)
    mean, logvar = vae.posterior(video)
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    out = vae.decode_raw(z, 5)
    assert out.shape == video.shape
    (out.square().mean() + logvar.mean()).backward()
    missing = [name for name, parameter in vae.named_parameters() if parameter.grad is None]
    assert missing == []


def test_training_pieces_compile_to_one_graph_under_autocast_and_channels_last(vae: OpenSoraVAE):
    vae.spatial_vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def reconstruct(video: torch.Tensor) -> torch.Tensor:
        mean, logvar = vae.posterior(video)
        return vae.decode_raw(mean + torch.exp(0.5 * logvar), 5)

    video = torch.rand(2, 3, 5, 4, 4)
    with torch.no_grad():
        eager = reconstruct(video)
        compiled = torch.compile(reconstruct, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(video), eager)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = reconstruct(video)
    assert (half.float() - eager).abs().max() < 0.1 * eager.abs().max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": [1.0, 2.0]}, "3 numbers"),
        ({"vae_temporal": {"in_out_channels": 5}}, "in_out_channels is 5"),
        ({"vae_temporal": {"in_out_channels": 2, "temporal_downsample": [True]}}, "temporal_downsample"),
        ({"vae_temporal": {"activation_fn": "gelu"}}, "gelu"),
    ],
)
def test_a_config_that_does_not_fit_is_explained(change: dict[str, Any], words: str):
    with pytest.raises(PabError, match=words), torch.device("meta"):
        OpenSoraVAE.from_config(small_config(**change))


def test_a_latent_of_another_length_is_explained(vae: OpenSoraVAE):
    with pytest.raises(PabError, match="12 frames are 7 latent frames, but the latent has 6"):
        vae.decode(torch.randn(1, 3, 6, 2, 2), 12)
    with pytest.raises(PabError, match="at least 1 frame"):
        vae.latent_size(0, 8, 8)
