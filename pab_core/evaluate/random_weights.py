"""A model of released size with random weights, for times where the trained ones are not at hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..acceleration.choice import choose_speed, transformer_dtype
from ..acceleration.fp8_products import use_fp8_products
from ..checkpoints import SAMPLERS, default_dtype
from ..models.fp8 import Fp8Linear, Quantiser, large_linears, replace_linears
from ..models.registry import ARCHITECTURES, TransformerConfig, model_spec
from ..pipeline import Pipeline
from ..text import TextEmbedding

_SPREAD = 0.02  # standard deviation of every weight


def random_pipe(
    model: str, device: torch.device, config: TransformerConfig | None = None, speed: str = "exact"
) -> Pipeline:
    """The transformer of a model by name, in the size of its family's released one or of `config`, made on the device;
    without VAE and text encoder. `speed`: see acceleration.choice.

    PabError where there is no such model.
    """
    spec = model_spec(model)
    architecture = ARCHITECTURES[spec.family]
    config = architecture.read_config({}) if config is None else config
    chosen, note = choose_speed(speed, device, default_dtype(spec, device), trying=True)
    dtype = transformer_dtype(chosen, device, default_dtype(spec, device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with device:
            module = (
                architecture.build(config).to(transformer_dtype(chosen, device, dtype)).eval().requires_grad_(False)
            )
        for name, parameter in module.named_parameters():
            if name != "rope.freqs":
                parameter.normal_(std=_SPREAD)
    if chosen == "fp8":
        quantise_linears(module, device)
        use_fp8_products(module)
    spec = replace(spec, depth=config.depth, trained=False)
    notes = (note,) if note else ()
    return Pipeline(spec, module, None, None, SAMPLERS[spec.family], speed=chosen, notes=notes)


@torch.no_grad()
def quantise_linears(module: nn.Module, device: torch.device) -> None:
    """Brings the large linear layers of a model in memory into eight bits."""
    linears, quantiser = large_linears(module), Quantiser(device)
    replace_linears(module, linears)
    for name, linear in linears.items():
        layer = module.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        quantiser.quantise(linear.weight, layer.weight, layer.scale)
        if layer.bias is not None:
            layer.bias.copy_(linear.bias)


def random_text(pipe: Pipeline, tokens: int) -> TextEmbedding:
    """An embedding of so many tokens, always the same, also in the place of a negative one."""
    channels = pipe.transformer.config.caption_channels
    states = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(0))
    states = states.to(next(pipe.transformer.parameters()).dtype)
    return TextEmbedding(states, torch.ones(1, tokens, dtype=torch.bool), negative=states)
