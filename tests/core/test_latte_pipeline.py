"""Latte from prompt to frames beside diffusers' own LattePipeline, on one and the same checkpoint folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture_sets import load_set
from safetensors.torch import save_file
from tiny_checkpoint import TEXT, write_json, write_module, write_tokenizer

from pab_core.autoencoders import build_vae
from pab_core.errors import PabError
from pab_core.noise_sampling import NoiseSampler
from pab_core.pipeline import Pipeline

# diffusers meets what NumPy 2 will drop one day
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PROMPT = "A red ball (bounces) over a green floor @someone"
SET = load_set("latte")
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
}
ABOUT = {"base": "latte", "trained": False, "num_frames": 6, "height": 64, "width": 48, "steps": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Latte-1 is laid out, with the fixture's transformer."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("latte") / "small-latte"
    write_json(folder / "transformer" / "config.json", SET.config)
    save_file(SET.weights, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = TEXT | {"d_model": SET.config["caption_channels"]}
        write_module(folder / "text_encoder", text, T5EncoderModel(T5Config.from_dict(text)), "model.safetensors")
        write_module(folder / "vae", VAE, build_vae("latte", VAE), "diffusion_pytorch_model.safetensors")
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "pab.json", ABOUT)
    return folder


@pytest.fixture(scope="module")
def latte(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


def test_its_family_is_found_and_its_sampler_read(latte: Pipeline):
    assert (latte.spec.family, latte.spec.depth, latte.spec.max_tokens) == ("latte", 6, 120)
    assert isinstance(latte.sampler, NoiseSampler)
    assert latte.sampler.scheduler == "DDIMScheduler"


@pytest.mark.parametrize("negative", ["", "a blue cube"])
@torch.no_grad()
def test_the_whole_run_equals_diffusers(latte: Pipeline, folder: Path, negative: str):
    diffusers: Any = importlib.import_module("diffusers")
    transformers: Any = importlib.import_module("transformers")
    theirs = diffusers.LattePipeline(
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        transformer=diffusers.LatteTransformer3DModel.from_pretrained(folder / "transformer"),
        scheduler=diffusers.DDIMScheduler.from_config(SCHEDULER),
    )
    theirs.set_progress_bar_config(disable=True)
    noise = latte.prepare_latents(3)
    expected = theirs(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=6,
        guidance_scale=7.5,
        video_length=6,
        height=64,
        width=48,
        latents=noise,
        output_type="latent",
        clean_caption=True,
        mask_feature=True,
    ).frames
    made = latte.denoise(noise, latte.encode_prompt(PROMPT, negative), latte.schedule("off"))
    assert (made - expected).abs().max() < 1e-4 * expected.abs().max()
    frames = latte.generate(PROMPT, negative=negative, seed=3).frames
    # Theirs decodes 14 frames at a time; frames of an image autoencoder know nothing of each other.
    video = theirs.decode_latents(expected, 6, decode_chunk_size=14)
    pixels = ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255)
    assert (frames.float() - pixels).abs().max() <= 1


def test_broadcast_and_other_samplers(latte: Pipeline):
    off = latte.generate(PROMPT, seed=1, steps=20)
    on = latte.generate(PROMPT, seed=1, steps=20, policy="pab236")
    assert on.table.reused_share("cross") > 0.3
    assert not torch.equal(off.frames, on.frames)
    assert on.metadata["sampler"] == "DDIMScheduler"
    other = latte.sampler.named("dpm++2m") if isinstance(latte.sampler, NoiseSampler) else None
    assert other is not None
    moved = Pipeline(latte.spec, latte.transformer, latte.vae, latte.text_encoder, other)
    assert not torch.equal(moved.generate(PROMPT, seed=1, steps=20).frames, off.frames)


def test_a_schedule_for_another_number_of_steps_is_refused(latte: Pipeline):
    table = latte.schedule("off", steps=4)
    with pytest.raises(PabError, match="4 calls of the model, and the sampler makes 6 in 6 steps"):
        latte.denoise(latte.prepare_latents(1), latte.encode_prompt(PROMPT), table)


def test_it_starts_from_text_alone(latte: Pipeline):
    with pytest.raises(PabError, match="cannot start from given pictures"):
        latte.generate(PROMPT, total_frames=12)


def test_its_transformer_alone_with_the_other_parts_given(folder: Path, latte: Pipeline):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(PabError, match="comes without a vae"):
        Pipeline.load(file, device="cpu")
