"""Writes a checkpoint of the demo model's own architecture with random weights, by the training script's own export."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tiny_checkpoint import randomise, write_json

from pab_core.autoencoders import OpenSoraVAE
from pab_core.demo.architecture import LATENT_CHANNELS, VAE
from pab_core.demo.train import WEIGHTS, export
from pab_core.demo.train_dit import TextToLatents


def write_demo_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Makes `folder` with all that a trained demo model has, so that tests need none; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, vae = TextToLatents(), OpenSoraVAE.from_config(VAE)
        randomise(model.transformer)
        # One for each channel, as the training fits them.
        vae.scale = torch.full((1, LATENT_CHANNELS, 1, 1, 1), 1.5)
        vae.shift = torch.full((1, LATENT_CHANNELS, 1, 1, 1), 0.25)
        preview = torch.rand(LATENT_CHANNELS + 1, 3) - 0.5
    shutil.copytree(WEIGHTS / "tokenizer", folder / "tokenizer")
    export(folder, vae, model, preview)
    write_json(folder / "pab.json", {"base": "demo", "trained": False})
    return folder
