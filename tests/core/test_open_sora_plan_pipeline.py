"""Open-Sora-Plan from prompt to frames, with the weights of both fixture sets, beside its loop written out."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture_sets import load_set
from safetensors.torch import save_file
from tiny_checkpoint import TEXT, write_json, write_module, write_tokenizer

from pab_core.errors import PabError
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"
SET, VAE_SET = load_set("opensora_plan"), load_set("opensora_plan_vae")
ABOUT = {"base": "open-sora-plan", "trained": False, "num_frames": 17, "height": 64, "width": 64, "steps": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its transformer where the released repository has it."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("plan") / "small-plan"
    for part, fixture in (("65x512x512", SET), ("vae", VAE_SET)):
        write_json(folder / part / "config.json", fixture.config)
        save_file(fixture.weights, folder / part / "diffusion_pytorch_model.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = TEXT | {"d_model": SET.config["caption_channels"]}
        write_module(folder / "text_encoder", text, T5EncoderModel(T5Config.from_dict(text)), "model.safetensors")
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "pab.json", ABOUT)
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


def test_what_is_found(plan: Pipeline):
    assert (plan.spec.family, plan.spec.depth, plan.spec.max_tokens) == ("open-sora-plan", 8, 300)
    assert plan.schedule("off", steps=6).steps == 6 + 9


@torch.no_grad()
def test_the_run_is_the_authors_loop(plan: Pipeline):
    """PNDM by diffusers, guidance against the empty prompt, the learned variance left out, then the VAE in tiles."""
    diffusers: Any = importlib.import_module("diffusers")
    text = plan.encode_prompt(PROMPT)
    assert text.negative is not None
    states = torch.cat([text.negative, text.tokens])[:, None]
    scheduler = diffusers.PNDMScheduler()
    scheduler.set_timesteps(6)
    z = plan.prepare_latents(5)
    for t in scheduler.timesteps:
        out = plan.transformer(torch.cat([z, z]), t.expand(2), states)[:, :4]
        uncond, cond = out.chunk(2)
        z = scheduler.step(uncond + 7.5 * (cond - uncond), t, z, return_dict=False)[0]
    latents = plan.denoise(plan.prepare_latents(5), text, plan.schedule("off"))
    assert (latents - z).abs().max() < 1e-4 * z.abs().max()
    frames = plan.generate(PROMPT, seed=5).frames
    assert frames.shape == (17, 64, 64, 3)
    assert torch.equal(frames, plan.decode(latents))


def test_broadcast_reuses_and_off_is_exact(plan: Pipeline):
    off, ones, on = (plan.generate(PROMPT, seed=1, steps=20, policy=name) for name in ("off", "pab111", "pab246"))
    assert torch.equal(off.frames, ones.frames)
    assert on.table.reused_share("cross") > 0.3
    assert not torch.equal(off.frames, on.frames)


def test_the_model_of_221_frames_is_told_by_its_config(folder: Path, tmp_path: Path):
    longer = Path(shutil.copytree(folder, tmp_path / "longer"))
    (longer / "pab.json").unlink()
    write_json(longer / "65x512x512" / "config.json", SET.config | {"video_length": 56})
    assert Pipeline.load(longer, device="cpu").spec.num_frames == 221
    write_json(longer / "pab.json", {"base": "latte"})
    with pytest.raises(PabError, match="its transformer is of the family 'open-sora-plan'"):
        Pipeline.load(longer, device="cpu")
