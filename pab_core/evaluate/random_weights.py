"""A model of released size with random weights, for times where the trained ones are not at hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..checkpoints import SAMPLERS, default_dtype
from ..models.registry import ARCHITECTURES, TransformerConfig, model_spec
from ..pipeline import Pipeline
from ..text import TextEmbedding

_SPREAD = 0.02  # standard deviation of every weight


def random_pipe(model: str, device: torch.device, config: TransformerConfig | None = None) -> Pipeline:
    """The transformer of a model by name, in the size of its family's released one or of `config`, made on the device;
    without VAE and text encoder.

    PabError where there is no such model.
    """
    spec = model_spec(model)
    architecture = ARCHITECTURES[spec.family]
    config = architecture.read_config({}) if config is None else config
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with device:
            module = architecture.build(config).to(default_dtype(spec, device)).eval().requires_grad_(False)
        for name, parameter in module.named_parameters():
            if name != "rope.freqs":
                parameter.normal_(std=_SPREAD)
    return Pipeline(replace(spec, depth=config.depth, trained=False), module, None, None, SAMPLERS[spec.family])


def random_text(pipe: Pipeline, tokens: int) -> TextEmbedding:
    """An embedding of so many tokens, always the same, also in the place of a negative one."""
    channels = pipe.transformer.config.caption_channels
    states = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(0))
    states = states.to(next(pipe.transformer.parameters()).dtype)
    return TextEmbedding(states, torch.ones(1, tokens, dtype=torch.bool), negative=states)
