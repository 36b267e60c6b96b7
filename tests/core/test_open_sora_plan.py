"""Open-Sora-Plan beyond its fixtures: configs of other versions, clip lengths, masks, the autoencoder's progress."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pab_core.autoencoders.open_sora_plan import CausalVAE, CausalVAEConfig
from pab_core.autoencoders.tiling import Tiling
from pab_core.errors import PabError
from pab_core.models.open_sora_plan import OpenSoraPlanConfig, OpenSoraPlanT2V
from pab_core.models.registry import MODELS

TINY = OpenSoraPlanConfig(2, 8, 2, sample_size=(4, 4), video_length=3, caption_channels=6)
TINY_VAE = CausalVAEConfig(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1)


@pytest.mark.parametrize(
    "entry",
    [{"use_rope": True}, {"compress_kv_factor": 2}, {"norm_type": "layer_norm"}, {"activation_fn": "geglu"}],
)
def test_a_transformer_of_another_version_is_refused(entry: dict[str, Any]):
    with pytest.raises(PabError, match=f"no transformer of Open-Sora-Plan v1.1.0.*{next(iter(entry))}"):
        OpenSoraPlanConfig.from_dict(entry)


def test_a_config_may_leave_entries_out_or_null():
    config = OpenSoraPlanConfig.from_dict({"sample_size": 64, "num_layers": None, "attention_mode": "math"})
    assert config == OpenSoraPlanConfig()


def test_temporal_positions_are_scaled_to_the_trained_length():
    with torch.device("meta"):
        scales = [
            OpenSoraPlanT2V(OpenSoraPlanConfig(1, 8, 1, video_length=length, interpolation_scale_1d=scale)).time_scale
            for length, scale in ((5, None), (17, None), (56, None), (56, 2.0))
        ]
    assert scales == [1, 1, 3, 2.0]


def test_latents_that_are_all_padding_stay_finite():
    torch.manual_seed(0)
    model = OpenSoraPlanT2V(TINY).eval()
    x, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 5, 6)
    mask = torch.ones(1, 3, 4, 4)
    mask[:, 2] = 0
    with torch.no_grad():
        out = model(x, torch.tensor([500]), text, torch.zeros(1, 5), attention_mask=mask)
    assert out.shape == (1, 8, 3, 4, 4)
    assert out.isfinite().all()


def test_clip_lengths():
    spec = MODELS["open-sora-plan"]
    with torch.device("meta"):
        vae = CausalVAE(TINY_VAE)
    for frames, latent_frames in ((1, 1), (5, 2), (65, 17), (221, 56)):
        spec.check_size(frames, 512, 512)
        assert spec.latent_frames(frames) == latent_frames
        assert vae.latent_size(frames, 512, 512) == (latent_frames, 64, 64)
    with pytest.raises(PabError, match=r"1 frame or 1 more than a multiple of 4\. Near are 61 and 65"):
        spec.check_size(64, 512, 512)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"encoder_attention": "AttnBlock3D"}, "names a part 'AttnBlock3D'"),
        ({"q_conv": "Conv1d"}, "names a part 'Conv1d'"),
        ({"hidden_size_mult": [1, 2]}, "4 entries in encoder_resnet_blocks, but 2 levels"),
    ],
)
def test_an_autoencoder_of_another_version_is_refused(entry: dict[str, Any], words: str):
    with torch.device("meta"), pytest.raises(PabError, match=words):
        CausalVAE.from_config(entry)


@torch.no_grad()
def test_decoding_in_tiles_tells_its_progress_and_can_be_stopped():
    vae, tiling = CausalVAE(TINY_VAE).eval(), Tiling(pixels=16, frames=9, overlap=0.5)
    z = torch.randn(1, 4, 4, 2, 3)
    told: list[tuple[int, int]] = []
    video = vae.decode(z, num_frames=13, progress=lambda done, total: told.append((done, total)), tiling=tiling)
    assert video.shape == (1, 3, 13, 16, 24)
    assert told == [(i, 4) for i in range(1, 5)]
    with pytest.raises(PabError, match="decode to 13 frames, but 14"):
        vae.decode(z, num_frames=14)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vae.decode(z, progress=stop, tiling=tiling)
