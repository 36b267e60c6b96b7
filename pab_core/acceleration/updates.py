"""Updates of the models' branches as a GPU likes them, in the place of the models' own; the same sums in other kernels.

    temporal   one kernel from the linear layer's output to the attention's, nothing is moved (short_attention)
    mlp        GELU in the first product's own kernel

Each takes the block, its input x [B, T, S, D] and the conditioning, as the block's own method does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.latte import LatteBlock
from ..models.layers import FeedForward, Mlp, modulate
from ..models.open_sora_plan import OpenSoraPlanBlock
from ..models.stdit3 import STDiT3Block
from .short_attention import is_available, time_attention

BlockUpdate = Callable[[Any, Tensor, Any], Tensor]


def temporal_stdit3(block: STDiT3Block, x: Tensor, cond: Any) -> Tensor:
    shift, scale, gate = block._modulation(cond, slice(0, 3))
    attn = block.attn
    qkv = attn.qkv(modulate(block.norm1(x), shift, scale)).unflatten(-1, (3, attn.num_heads, -1))
    normed = isinstance(attn.q_norm, nn.RMSNorm)
    q_weight, k_weight = (attn.q_norm.weight, attn.k_norm.weight) if normed else (None, None)
    return gate * attn.proj(time_attention(qkv, q_weight, k_weight, cond.angles, 1e-6))


def temporal_latte(block: LatteBlock | OpenSoraPlanBlock, x: Tensor, cond: Any) -> Tensor:
    shift, scale, gate = block._modulation(cond, slice(0, 3))
    attn = block.attn1
    layers = (attn.to_q, attn.to_k, attn.to_v)
    # Joined at every call: a copy of 8 MB, where the three products apart would each read all of x.
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if attn.to_q.bias is None else torch.cat([layer.bias for layer in layers])
    qkv = F.linear(modulate(block.norm1(x), shift, scale), weight, bias).unflatten(-1, (3, attn.num_heads, -1))
    return gate * attn.to_out(time_attention(qkv, None, None, None, 0.0))


def mlp_stdit3(block: STDiT3Block, x: Tensor, cond: Any) -> Tensor:
    shift, scale, gate = block._modulation(cond, slice(3, 6))
    return gate * _mlp(block.mlp, modulate(block.norm2(x), shift, scale))


def mlp_latte(block: LatteBlock | OpenSoraPlanBlock, x: Tensor, cond: Any) -> Tensor:
    shift, scale, gate = block._modulation(cond, slice(3, 6))
    return gate * _feed_forward(block.ff, modulate(block.norm2(x), shift, scale))


def _mlp(mlp: Mlp, h: Tensor) -> Tensor:
    return mlp.fc2(_gelu_linear(mlp.fc1, h))


def _feed_forward(ff: FeedForward, h: Tensor) -> Tensor:
    return ff.net[2](_gelu_linear(ff.net[0].proj, h))  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


def _gelu_linear(linear: nn.Linear, h: Tensor) -> Tensor:
    """tanh-approximated GELU of a linear layer, which cuBLASLt's product applies on its way out."""
    if type(linear) is not nn.Linear or not h.is_cuda:
        return F.gelu(linear(h), approximate="tanh")
    out = torch.ops.aten._addmm_activation(linear.bias, h.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return out.unflatten(0, h.shape[:-1])


UPDATES: dict[tuple[type, str], BlockUpdate] = {
    (STDiT3Block, "temporal"): temporal_stdit3,
    (STDiT3Block, "mlp"): mlp_stdit3,
    (LatteBlock, "temporal"): temporal_latte,
    (LatteBlock, "mlp"): mlp_latte,
    (OpenSoraPlanBlock, "temporal"): temporal_latte,
    (OpenSoraPlanBlock, "mlp"): mlp_latte,
}


def fast_update(block: nn.Module, kind: str, x: Tensor) -> BlockUpdate | None:
    """The update to take for a branch of this kind, or None where the block's own is as good."""
    if kind == "temporal" and not is_available(x.device, x.shape[1]):
        return None
    if kind == "mlp" and not x.is_cuda:
        return None
    return UPDATES.get((type(block), kind))
