"""Sequence parallelism as in Megatron-LM (arXiv 2205.05198): for temporal attention all frames are gathered, each rank
attends with its own heads and its part of the weights, and the terms of the output's sum are summed and scattered.

An all-gather and a reduce-scatter of M each, where M is the size of x.
"""

from __future__ import annotations

import copy
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..models.latte_layers import Attention
from ..models.layers import Branch, SelfAttention
from .collectives import TEMPORAL, Collectives
from .layout import Layout, shares


class Megatron:
    """Holds this rank's part of the weights of every temporal attention, beside the model's own."""

    takes_any_attention = True

    def __init__(self, collectives: Collectives, model: Any):
        self.collectives = collectives
        rank, ranks = collectives.rank, collectives.size
        self.blocks: dict[Branch, Any] = {}
        for block in model.modules():
            branches = getattr(block, "branches", ())
            if block is model or not branches or branches[0].kind != "temporal":
                continue
            name = "attn" if hasattr(block, "attn") else "attn1"
            self.blocks[branches[0]] = _with_module(block, name, split_attention(getattr(block, name), rank, ranks))

    def attend(self, layout: Layout, block: Any, update: Any, x: Tensor) -> Tensor:
        whole = self.collectives.gather(x, 1, layout.frames, TEMPORAL)
        # The gate is a factor of every term of the sum.
        term = update(self.blocks[block.branches[0]], whole, layout.whole)
        return self.collectives.reduce_scatter(term, 1, layout.frames, TEMPORAL)


def split_attention(attention: SelfAttention | Attention, rank: int, ranks: int) -> nn.Module:
    """The attention of a rank's heads alone. The ranks' outputs add up to the whole's: the first has the last bias."""
    sizes = shares(attention.num_heads, ranks)
    end = list(accumulate(sizes))[rank]
    if isinstance(attention, SelfAttention):
        layers, last = {"qkv": attention.qkv}, "proj"
        width = attention.proj.in_features
    else:
        layers, last = {name: getattr(attention, name) for name in ("to_q", "to_k", "to_v")}, "to_out"
        width = attention.to_q.in_features
    channels = torch.arange(width).unflatten(0, (attention.num_heads, -1))[end - sizes[rank] : end].flatten()
    part: Any = attention
    for name, layer in layers.items():
        # Queries, keys and values may follow each other in one layer.
        rows = (torch.arange(layer.out_features).view(-1, width)[:, channels]).flatten()
        part = _with_module(part, name, split_linear(layer, rows=rows))
    projection: Any = getattr(attention, last)
    if isinstance(projection, nn.Sequential):
        split: nn.Module = nn.Sequential(split_linear(projection[0], columns=channels, bias=rank == 0))
    else:
        split = split_linear(projection, columns=channels, bias=rank == 0)
    part = _with_module(part, last, split)
    part.num_heads = sizes[rank]
    return part


def split_linear(
    linear: Any, *, rows: Tensor | None = None, columns: Tensor | None = None, bias: bool = True
) -> nn.Module:
    """A layer with some of the outputs (rows) or inputs (columns) of a linear layer, also of one in eight bits."""
    part = copy.copy(linear)
    part._parameters = dict(linear._parameters)
    if columns is not None:
        part.weight = _fixed(linear.weight[:, columns.to(linear.weight.device)])
        part.in_features = len(columns)
    if rows is not None:
        part.out_features = len(rows)
        for name, parameter in linear._parameters.items():
            if parameter is not None:  # weight, bias and scale have all a row for each output
                setattr(part, name, _fixed(parameter[rows.to(parameter.device)]))
    if not bias:
        part.bias = None
    if getattr(part, "products", False) and (part.in_features % 16 or part.out_features % 16):
        part.products = False  # the product in eight bits counts in sixteens
    return part


def _with_module(module: Any, name: str, part: nn.Module) -> Any:
    """The same module but for one inside it; all else is shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    setattr(twin, name, part)
    return twin


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=False)
