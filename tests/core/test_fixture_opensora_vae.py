"""OpenSoraVAE against the authors' autoencoder, as the set's cases.json says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_checks import assert_near, case_name
from fixture_sets import load_set
from torch import Tensor

from pab_core.autoencoders import OpenSoraVAE

SET = load_set("opensora_vae")
ATOL = 5e-5


@pytest.fixture(scope="module")
def vae() -> OpenSoraVAE:
    model = OpenSoraVAE.from_config(SET.config)
    model.load_state_dict(SET.weights, strict=True)
    return model.eval()


def results(vae: OpenSoraVAE, case: dict[str, Any]) -> dict[str, Tensor]:
    inputs = SET.inputs(case)
    if case["kind"] == "decode":
        frames = case["num_frames"]
        return {
            "video": vae.decode(inputs["z"], frames),
            "spatial_latent": vae.decode_temporal(vae.denormalize(inputs["z"]), frames),
        }
    assert case["kind"] == "encode", f"unknown kind of case: {case['kind']}"
    video = inputs["x"]
    if "spatial_noise" not in inputs and "temporal_noise" not in inputs:
        return {"z": vae.encode(video), "spatial_latent": vae.encode_spatial(video)[0]}
    spatial_noise, temporal_noise = inputs["spatial_noise"], inputs["temporal_noise"]
    return {
        "z": vae.encode(video, sample_posterior=True, spatial_noise=spatial_noise, temporal_noise=temporal_noise),
        "spatial_latent": vae.sample_spatial(video, spatial_noise),
    }


def test_fixture_set_has_cases():
    assert SET.cases


@pytest.mark.parametrize("case", SET.cases, ids=case_name)
@torch.no_grad()
def test_fixture_case(vae: OpenSoraVAE, case: dict[str, Any], record_property):
    actual = results(vae, case)
    expected = SET.expected(case)
    assert expected
    for name, target in expected.items():
        assert_near(f"{case['name']}.{name}", actual[name], target, ATOL, record_property)


@pytest.mark.parametrize("case", [c for c in SET.cases if c["kind"] == "decode"], ids=case_name)
def test_fixture_latent_size(vae: OpenSoraVAE, case: dict[str, Any]):
    z = SET.inputs(case)["z"]
    height, width = SET.expected(case)["video"].shape[-2:]
    assert z.shape[1] == vae.latent_channels
    assert vae.latent_size(case["num_frames"], height, width) == tuple(z.shape[2:])


def test_fixture_config_builds_on_meta_with_the_same_keys():
    with torch.device("meta"):
        model = OpenSoraVAE.from_config(SET.config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in SET.weights.items()}
    assert all(value.is_meta for value in model.state_dict().values())
