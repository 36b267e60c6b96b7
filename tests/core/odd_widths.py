"""Small random models whose widths are no powers of two, which kernels read in two pieces, and one run of each."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families import LATTE, PLAN, random_pipe
from torch import Tensor

from pab_core.broadcast import BroadcastRun
from pab_core.pipeline import Pipeline
from pab_core.text import TextEmbedding

CONFIGS: dict[str, dict[str, Any]] = {
    "stdit3": {
        "hidden_size": 24,
        "depth": 2,
        "num_heads": 2,
        "caption_channels": 16,
        "model_max_length": 12,
        "qk_norm": True,
    },
    "latte": LATTE | {"attention_head_dim": 12},
    "open-sora-plan": PLAN | {"attention_head_dim": 12},
}
SIZE: dict[str, Any] = {"height": 32, "width": 32, "steps": 6}
FRAMES = {"stdit3": 17, "latte": 3, "open-sora-plan": 9}


def tiny(family: str, **size: int) -> Pipeline:
    settings: dict[str, Any] = SIZE | size
    return random_pipe(family, CONFIGS[family], num_frames=FRAMES[family], **settings)


def denoise(pipe: Pipeline, run: BroadcastRun, given: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens, negative = torch.randn(2, 1, 5, 16, generator=generator)
    text = TextEmbedding(tokens, torch.ones(1, 5, dtype=torch.bool), negative=negative)
    latents = pipe.prepare_latents(1)
    mask = torch.ones(1, latents.shape[2])
    mask[:, 0] = 0
    return pipe.denoise(latents, text, run.table, cond_mask=mask if given else None, seed=2, run=run)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())
