"""Writes a whole pipeline folder with a tiny random model, on disk like a released checkpoint: a second, 200 kB."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pab_core.autoencoders import OpenSoraVAE
from pab_core.models.stdit3 import STDiT3, STDiT3Config

TRANSFORMER: dict[str, Any] = {
    "model_type": "STDiT3",
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 16,
    "model_max_length": 40,
    "class_dropout_prob": 0.1,
    "in_channels": 4,
    "patch_size": [1, 2, 2],
    "pred_sigma": True,
    "qk_norm": True,
    "input_sq_size": 512,
}
VAE: dict[str, Any] = {
    "model_type": "VideoAutoencoderPipeline",
    "micro_frame_size": 17,
    "scale": [3.85, 2.32, 2.33, 3.06],
    "shift": [-0.1, 0.34, 0.27, 0.98],
    "vae_2d": {
        "micro_batch_size": 4,
        "config": {
            "act_fn": "silu",
            "block_out_channels": [4, 4, 4, 4],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "sample_size": 32,
        },
    },
    "vae_temporal": {
        "in_out_channels": 4,
        "latent_embed_dim": 4,
        "embed_dim": 4,
        "filters": 4,
        "num_res_blocks": 1,
        "channel_multipliers": [1, 1, 1, 1],
        "temporal_downsample": [False, True, True],
        "num_groups": 2,
    },
    "preview_matrix": [[0.1, 0.0, 0.2], [0.0, 0.3, 0.0], [0.2, 0.0, 0.1], [0.0, 0.1, 0.3], [0.0, 0.1, -0.1]],
}
TEXT: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 200,
    "tie_word_embeddings": False,
}
SCHEDULER = {"num_timesteps": 1000, "use_timestep_transform": True, "transform_scale": 1.0}
# What the clips of this model are like; the rest is as with Open-Sora.
ABOUT: dict[str, Any] = {
    "base": "open-sora",
    "trained": False,
    "num_frames": 17,
    "height": 32,
    "width": 48,
    "fps": 8,
    "steps": 10,
    "guidance": 3.0,
    "cleaning": "plain",
    "prompt_scores": False,
}
CORPUS = [
    f"a {size} {colour} {shape} {motion} over a {floor} floor"
    for size in ("small", "large", "huge")
    for colour in ("red", "blue", "green", "yellow")
    for shape in ("ball", "cube", "cone")
    for motion in ("rolls left", "slides right", "bounces", "spins around")
    for floor in ("green", "grey", "wooden", "checkered")
]


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Makes `folder` with transformer/, vae/, text_encoder/, tokenizer/ and scheduler/; the same for the same seed."""
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = STDiT3(STDiT3Config.from_dict(TRANSFORMER))
        randomise(transformer)
        write_module(folder / "transformer", TRANSFORMER, transformer, "diffusion_pytorch_model.safetensors")
        write_module(folder / "vae", VAE, OpenSoraVAE.from_config(VAE), "model.safetensors")
        write_module(folder / "text_encoder", TEXT, T5EncoderModel(T5Config.from_dict(TEXT)), "model.safetensors")
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "pab.json", ABOUT)
    return folder


def randomise(transformer: STDiT3) -> None:
    """Weights larger than at the start of a training, so that every branch moves the result."""
    for name, parameter in transformer.named_parameters():
        if name != "rope.freqs":
            nn.init.normal_(parameter, std=0.1)


def write_module(folder: Path, config: dict[str, Any], module: nn.Module, name: str) -> None:
    """A config.json and one safetensors file; of tensors that share memory only the first name is written, as usual."""
    write_json(folder / "config.json", config)
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in module.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            weights[key] = value.contiguous()
    save_file(weights, folder / name, metadata={"format": "pt"})


def write_tokenizer(folder: Path) -> None:
    """A sentencepiece model in the place where T5's lies, with T5's special tokens."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="unigram",
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",  # the usual one would add a table of 200 kB
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 0,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
