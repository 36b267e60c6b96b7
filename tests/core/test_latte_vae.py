"""LatteVAE beside diffusers' own modules, and what it promises beyond equal numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from safetensors.torch import save_file
from small_vaes import LATTE, small_vae

from pab_core.autoencoders import CausalVAE, LatteVAE, OpenSoraVAE, build_vae
from pab_core.errors import PabError
from pab_core.loading import load_weights

RELEASED: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
IMAGE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}
# Its norms always have 32 groups.
TEMPORAL: dict[str, Any] = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "latent_channels": 3,
    "layers_per_block": 2,
    "scaling_factor": 0.5,
}
CONFIGS = {"image": IMAGE, "temporal": TEMPORAL}


def pair(kind: str) -> tuple[LatteVAE, Any]:
    """Ours, and diffusers' with the same weights."""
    torch.manual_seed(0)
    config = CONFIGS[kind]
    kinds: dict[str, Any] = {"image": AutoencoderKL, "temporal": AutoencoderKLTemporalDecoder}
    theirs = kinds[kind].from_config(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("mix_factor"):
            torch.nn.init.normal_(parameter)  # all are alike at first
    ours = LatteVAE.from_config(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@torch.no_grad()
def test_images_are_decoded_one_by_one_as_diffusers_does():
    ours, theirs = pair("image")
    z = torch.randn(2, 3, 5, 4, 6)
    frames = [
        torch.stack([theirs.decode(z[b : b + 1, :, t] / 0.5).sample[0] for t in range(5)], dim=1) for b in range(2)
    ]
    torch.testing.assert_close(ours.decode(z, 5), torch.stack(frames))
    assert torch.equal(ours.decode(z[:1], 5), frames[0][None])


@torch.no_grad()
def test_the_temporal_decoder_takes_fourteen_frames_at_a_time():
    ours, theirs = pair("temporal")
    z = torch.randn(1, 3, 16, 4, 6)
    images = (z / 0.5)[0].transpose(0, 1)
    parts = [theirs.decode(part, num_frames=len(part)).sample for part in images.split(14)]
    expected = torch.cat(parts).transpose(0, 1)[None]
    assert torch.equal(ours.decode(z, 16), expected)
    torch.testing.assert_close(ours.decode(z.repeat(2, 1, 1, 1, 1), 16), expected.repeat(2, 1, 1, 1, 1))


@pytest.mark.parametrize(("kind", "sees_neighbours"), [("image", False), ("temporal", True)])
def test_only_the_temporal_decoder_looks_at_neighbouring_frames(kind: str, sees_neighbours: bool):
    vae, _ = pair(kind)
    z = torch.randn(1, 3, 15, 4, 4)
    other = z.clone()
    other[:, :, 3] += 1
    changed = (vae.decode(z, 15) != vae.decode(other, 15)).any(dim=1).flatten(2).any(dim=2)[0]
    assert changed[3]
    assert changed[4] == sees_neighbours
    assert not changed[14]


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_encoding_gives_the_scaled_mean_or_a_draw(kind: str):
    ours, theirs = pair(kind)
    video = torch.rand(2, 3, 3, 8, 12) * 2 - 1
    posteriors = [theirs.encode(video[b].transpose(0, 1)).latent_dist for b in range(2)]
    mean = torch.stack([posterior.mean.transpose(0, 1) for posterior in posteriors])
    std = torch.stack([posterior.std.transpose(0, 1) for posterior in posteriors])
    torch.testing.assert_close(ours.encode(video), 0.5 * mean)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    drawn = ours.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, 0.5 * (mean + std * noise))
    torch.testing.assert_close(ours.encode(video, sample_posterior=True, noise=noise), drawn)
    assert ours.latent_size(3, 8, 12) == tuple(mean.shape[2:])


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [("AutoencoderKL", AutoencoderKL, 83_653_863), ("AutoencoderKLTemporalDecoder", AutoencoderKLTemporalDecoder, 0)],
)
def test_the_released_configs_give_the_released_names(name: str, kind: Any, size: int):
    config = RELEASED | {"_class_name": name}
    with torch.device("meta"):
        vae = build_vae("latte", config)
        names = {key: value.shape for key, value in kind.from_config(config).state_dict().items()}
    assert isinstance(vae, LatteVAE)
    assert {key: value.shape for key, value in vae.state_dict().items()} == names
    assert "decoder.mid_block.attentions.0.to_q.weight" in names
    if size:
        assert sum(p.numel() for p in vae.parameters()) == size
    else:
        assert names["decoder.time_conv_out.weight"] == (3, 3, 3, 1, 1)
    assert (vae.latent_channels, vae.spatial_factor, vae.scale) == (4, 8, 0.18215)
    assert vae.latent_size(16, 512, 512) == (16, 64, 64)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_loads_from_a_folder_strictly(kind: str, tmp_path: Path):
    _, theirs = pair(kind)
    weights = theirs.state_dict()
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[kind]), encoding="utf-8")
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with torch.device("meta"):
        vae = build_vae("latte", CONFIGS[kind])
    load_weights(vae, tmp_path, torch.float32)
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    z = torch.randn(1, 3, 2, 4, 4)
    assert vae.eval().decode(z, 2).shape == (1, 3, 2, 8, 8)
    del weights["decoder.conv_in.weight"]
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with torch.device("meta"), pytest.raises(PabError, match=r"1 missing \(decoder.conv_in.weight\)"):
        load_weights(build_vae("latte", CONFIGS[kind]), tmp_path, torch.float32)


def test_former_names_of_attention_are_known():
    vae, _ = pair("image")
    former = vae.former_names()
    assert former["decoder.mid_block.attentions.0.proj_attn.bias"] == "decoder.mid_block.attentions.0.to_out.0.bias"
    assert former["encoder.mid_block.attentions.0.query.weight"] == "encoder.mid_block.attentions.0.to_q.weight"
    # Query, key, value and projection, each with weight and bias, in encoder and decoder.
    assert len(former) == 16
    assert set(former.values()) == {name for name in vae.state_dict() if ".attentions.0." in name} - {
        f"{side}.mid_block.attentions.0.group_norm.{what}"
        for side in ("encoder", "decoder")
        for what in ("weight", "bias")
    }


def test_progress_counts_pieces_and_its_exception_reaches_the_caller():
    vae, _ = pair("temporal")
    told: list[tuple[int, int]] = []
    vae.decode(torch.randn(1, 3, 30, 2, 2), 30, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vae.decode(torch.randn(1, 3, 2, 2, 2), 2, progress=stop)


def test_mistakes_are_explained():
    with pytest.raises(PabError, match="names the class CausalVAEModel, but Latte's is AutoencoderKL or"):
        LatteVAE.from_config(IMAGE | {"_class_name": "CausalVAEModel"})
    with pytest.raises(PabError, match=r"No config\.json says what the VAE is"):
        LatteVAE.from_config({})
    with pytest.raises(PabError, match="15 frames are 15 latent frames, but the latents have 16"):
        pair("image")[0].decode(torch.randn(1, 3, 16, 2, 2), 15)


def test_a_family_has_its_autoencoder():
    with torch.device("meta"):
        kinds = {
            family: type(build_vae(family, config))
            for family, config in {"stdit3": {}, "latte": IMAGE, "open-sora-plan": {}}.items()
        }
        assert kinds == {"stdit3": OpenSoraVAE, "latte": LatteVAE, "open-sora-plan": CausalVAE}
        with pytest.raises(PabError, match="family 'flux'; known are stdit3, latte, open-sora-plan"):
            build_vae("flux", {})


@pytest.mark.parametrize("former", [False, True])
def test_files_of_an_older_diffusers_load_too(tmp_path: Path, former: bool):
    vae = small_vae("latte")
    assert isinstance(vae, LatteVAE)
    names = {now: then for then, now in vae.former_names().items()}
    assert names
    weights = {names.get(key, key) if former else key: value for key, value in vae.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    with torch.device("meta"):
        loaded = build_vae("latte", LATTE)
    assert isinstance(loaded, LatteVAE)
    load_weights(loaded, tmp_path / "model.safetensors", torch.float32, tied=loaded.former_names())
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vae.state_dict().items())
