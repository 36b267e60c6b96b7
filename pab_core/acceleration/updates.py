"""The branches of the models' blocks in fused operations: the same sums as the models' own, in fewer and other kernels.

Each takes the block, its input x [B, T, S, D] and the conditioning, and gives the gate and what it multiplies, both of
which the residual sum takes: update = gate * h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.fp8 import Fp8Linear
from ..models.latte import LatteBlock
from ..models.layers import Attention, SelfAttention
from ..models.open_sora_plan import OpenSoraPlanBlock
from ..models.stdit3 import STDiT3Block
from .fp8_products import fp8_product
from .fused import MOST_FRAMES, Rows, attend_in_time, norm_heads, norm_modulate, rows_in_fp8

Gated = tuple[Tensor | None, Tensor]  # gate [B, 1 or T, 1, D] or None, h [B, T, S, D]
BlockUpdate = Callable[[Any, Tensor, Any], Gated]


def product(layer: nn.Module, h: Tensor | Rows) -> Tensor:
    """A linear layer of h [..., in], which is turned into eight bits first where the layer wants that."""
    if not _in_fp8(layer):
        return layer(h)
    assert isinstance(layer, Fp8Linear)
    rows = h if isinstance(h, Rows) else rows_in_fp8(h)
    return fp8_product(layer, rows.values, rows.scales)


def _in_fp8(layer: nn.Module) -> bool:
    return isinstance(layer, Fp8Linear) and layer.products


# --------------------------------------------------------------------------------------------------- Open-Sora


def attention_stdit3(block: STDiT3Block, x: Tensor, cond: Any) -> Gated:
    shift, scale, gate = block._modulation(cond, slice(0, 3))
    attn = block.attn
    h = norm_modulate(x, shift, scale, block.norm1.eps, fp8=_in_fp8(attn.qkv))
    qkv = product(attn.qkv, h).unflatten(-1, (3, attn.num_heads, -1))  # [B, T, S, 3, heads, d]
    del h  # large, as is all that is let go as soon as it has been used
    if block.stream == "temporal":
        h = _in_time(attn, qkv, cond.angles)
        del qkv
        return gate, product(attn.proj, h)
    if isinstance(attn.q_norm, nn.RMSNorm):
        norm_heads(qkv, attn.q_norm.weight, attn.k_norm.weight, 1e-6)  # pyright: ignore[reportArgumentType]
    q, k, v = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)  # each [B T, heads, S, d]
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    del qkv, q, k, v
    return gate, product(attn.proj, h).view(x.shape)


def _in_time(attn: SelfAttention, qkv: Tensor, angles: Tensor | None) -> Tensor:
    normed = isinstance(attn.q_norm, nn.RMSNorm)
    weights: list[Any] = [attn.q_norm.weight, attn.k_norm.weight] if normed else [None, None]
    q, k, v = qkv.unbind(3)
    return attend_in_time(q, k, v, weights[0], weights[1], angles)


def cross_stdit3(block: STDiT3Block, x: Tensor, cond: Any) -> Gated:
    attn = block.cross_attn
    q = product(attn.q_linear, x.flatten(1, 2)).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    k, v = product(attn.kv_linear, cond.text).unflatten(-1, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=cond.text_mask).transpose(1, 2).flatten(2)
    del q
    return None, product(attn.proj, h).view(x.shape)


def mlp_stdit3(block: STDiT3Block, x: Tensor, cond: Any) -> Gated:
    shift, scale, gate = block._modulation(cond, slice(3, 6))
    h = norm_modulate(x, shift, scale, block.norm2.eps, fp8=_in_fp8(block.mlp.fc1))
    return gate, _mlp(block.mlp.fc1, block.mlp.fc2, h)


# ------------------------------------------------------------------------------------ Latte and Open-Sora-Plan


def attention_latte(block: LatteBlock | OpenSoraPlanBlock, x: Tensor, cond: Any) -> Gated:
    shift, scale, gate = block._modulation(cond, slice(0, 3))
    attn = block.attn1
    h = norm_modulate(x, shift, scale, block.norm1.eps, fp8=_in_fp8(attn.to_q))
    q, k, v = (product(layer, h).unflatten(-1, (attn.num_heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    del h
    if block.stream == "temporal":
        return gate, product(attn.to_out[0], attend_in_time(q, k, v))
    q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))  # each [B T, heads, S, d]
    bias = getattr(cond, "token_bias", None)  # [B, T, S]; Latte has none
    bias = None if bias is None else bias.flatten(0, 1)[:, None, None]
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    return gate, product(attn.to_out[0], h).view(x.shape)


def cross_latte(block: LatteBlock | OpenSoraPlanBlock, x: Tensor, cond: Any) -> Gated:
    attn: Attention = block.attn2
    states = ((attn.to_q, x.flatten(1, 2)), (attn.to_k, cond.text), (attn.to_v, cond.text))
    q, k, v = (product(layer, h).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for layer, h in states)
    bias = cond.text_bias
    if bias is not None and bias.ndim == 2:  # Open-Sora-Plan's is [B, L]
        bias = bias[:, None, None]
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    return None, product(attn.to_out[0], h).view(x.shape)


def mlp_latte(block: LatteBlock | OpenSoraPlanBlock, x: Tensor, cond: Any) -> Gated:
    shift, scale, gate = block._modulation(cond, slice(3, 6))
    first: Any = block.ff.net[0]
    h = norm_modulate(x, shift, scale, block.norm2.eps, fp8=_in_fp8(first.proj))
    return gate, _mlp(first.proj, block.ff.net[2], h)


def _mlp(first: nn.Module, second: nn.Module, h: Tensor | Rows) -> Tensor:
    if _in_fp8(first):
        return product(second, rows_in_fp8(product(first, h), gelu=True))
    assert isinstance(h, Tensor)
    return second(_gelu_linear(first, h))


def _gelu_linear(linear: nn.Module, h: Tensor) -> Tensor:
    """tanh-approximated GELU of a linear layer, which cuBLASLt's product applies on its way out."""
    if type(linear) is not nn.Linear or not h.is_cuda:
        return F.gelu(linear(h), approximate="tanh")
    out = torch.ops.aten._addmm_activation(linear.bias, h.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return out.unflatten(0, h.shape[:-1])


_LATTE: dict[str, BlockUpdate] = {
    "spatial": attention_latte,
    "temporal": attention_latte,
    "cross": cross_latte,
    "mlp": mlp_latte,
}
OF_BLOCK: dict[type, dict[str, BlockUpdate]] = {
    STDiT3Block: {
        "spatial": attention_stdit3,
        "temporal": attention_stdit3,
        "cross": cross_stdit3,
        "mlp": mlp_stdit3,
    },
    LatteBlock: _LATTE,
    OpenSoraPlanBlock: _LATTE,
}


def fused_update(block: nn.Module, kind: str, x: Tensor) -> BlockUpdate | None:
    """The function for a branch of this kind; None where there is none."""
    if kind == "temporal" and x.shape[1] > MOST_FRAMES:
        return None
    return OF_BLOCK.get(type(block), {}).get(kind)
