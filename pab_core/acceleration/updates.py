"""The branches of the models' blocks in fused operations: the same sums as the models' own, in fewer and other kernels.

Each takes the block, what its first product reads, [B, T, S, D], and the conditioning. What that is (x or its modulated
norm) and the gate of the update are told beside it: both belong to the residual stream, see run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.fp8 import Fp8Linear
from ..models.latte_layers import Attention, LatteBlock
from ..models.layers import SelfAttention
from ..models.stdit3 import STDiT3Block
from .attention import attend
from .fp8_products import fp8_product, gelu_product_goes
from .fused import MOST_FRAMES, Norm, Rows, attend_in_time, gelu_product, norm_heads, residual, rows_in_fp8


@dataclass(frozen=True)
class FusedUpdate:
    """A branch: update = gate * compute(block, rows, cond)."""

    norm: str | None  # name of the norm whose result is read; None: x itself is, and there is no gate
    modulation: slice  # shift, scale and gate among the block's
    reads: Callable[[Any], nn.Module]  # the block's product that reads the rows
    compute: Callable[[Any, Any, Any], Tensor]

    def prepare(self, block: Any, modulation: Sequence[Tensor]) -> tuple[Norm | None, Tensor | None, bool]:
        """What the rows are of x, the gate [B, 1 or T, 1, D] or None, and whether the rows are wanted in eight bits.

        modulation: the block's, see modulations.
        """
        fp8 = _in_fp8(self.reads(block))
        if self.norm is None:
            return None, None, fp8
        shift, scale, gate = modulation[self.modulation]
        return Norm(shift, scale, getattr(block, self.norm).eps), gate, fp8

    def gated(self, block: Any, x: Tensor, cond: Any) -> tuple[Tensor | None, Tensor]:
        """All of it but the product with the gate: x [B, T, S, D] -> the gate, and what it multiplies."""
        norm, gate, fp8 = self.prepare(block, modulations([block], cond)[0])
        _, rows, _ = residual(x.contiguous(), norm=norm, rows_fp8=fp8)
        return gate, self.compute(block, rows, cond)


def modulations(blocks: Sequence[Any], cond: Any) -> list[tuple[Tensor, ...]]:
    """For each block shift, scale and gate of its attention and of its MLP, each [B, 1 or T, 1, D].

    Of all blocks at once: one by one they take more time to start than to compute.
    """
    given = cond.modulation if cond.modulation.ndim == 4 else cond.modulation.unsqueeze(1)  # [B, 1 or T, 6, D]
    tables = torch.stack([block.scale_shift_table for block in blocks])[:, None, None] + given
    return [table.unbind(0) for table in tables.permute(0, 3, 1, 2, 4).unsqueeze(4).unbind(0)]


def product(layer: nn.Module, h: Tensor | Rows) -> Tensor:
    """A linear layer of h [..., in], which is turned into eight bits first where the layer wants that."""
    if type(layer) is nn.Linear:  # called as a module it takes twice as long to start
        return F.linear(h, layer.weight, layer.bias)  # pyright: ignore[reportArgumentType]
    if not _in_fp8(layer):
        return layer(h)
    assert isinstance(layer, Fp8Linear)
    rows = h if isinstance(h, Rows) else rows_in_fp8(h)
    return fp8_product(rows.values, rows.scales, layer.weight, layer.scale, layer.bias)


def products(layers: Sequence[nn.Module], h: Tensor | Rows) -> Sequence[Tensor]:
    """Linear layers of equal size of the same h: one product where their weights lie behind each other.

    Where they don't yet they are laid so, which a GPU's products of three times the width repay by a sixth of their
    time. The parameters stay what they were.
    """
    fp8 = all(_in_fp8(layer) for layer in layers)
    if not fp8 and any(type(layer) is not nn.Linear for layer in layers):
        return [product(layer, h) for layer in layers]
    given: list[Any] = list(layers)
    weight = _joined([layer.weight for layer in given])
    bias = None if given[0].bias is None else _joined([layer.bias for layer in given])
    if fp8:
        rows = h if isinstance(h, Rows) else rows_in_fp8(h)
        out = fp8_product(rows.values, rows.scales, weight, _joined([layer.scale for layer in given]), bias)
    else:
        assert isinstance(h, Tensor)
        out = F.linear(h, weight, bias)
    return out.chunk(len(given), -1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parameters of one shape as one tensor, along their first axis."""
    first, size = parts[0], parts[0].nbytes
    behind = all(
        part.data_ptr() == first.data_ptr() + i * size
        and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        for i, part in enumerate(parts)
    )
    if not behind:
        for part, place in zip(parts, torch.cat([part.data for part in parts]).chunk(len(parts)), strict=True):
            part.data = place
    return first.data.as_strided((len(parts) * len(first), *first.shape[1:]), first.stride(), first.storage_offset())


def _in_fp8(layer: nn.Module) -> bool:
    return isinstance(layer, Fp8Linear) and layer.products


# --------------------------------------------------------------------------------------------------- Open-Sora


def attention_stdit3(block: STDiT3Block, rows: Any, cond: Any) -> Tensor:
    attn, shape = block.attn, rows.shape
    qkv = product(attn.qkv, rows).unflatten(-1, (3, attn.num_heads, -1))  # [B, T, S, 3, heads, d]
    del rows  # large, as is all that is let go as soon as it has been used
    if block.stream == "temporal":
        h = _in_time(attn, qkv, cond.angles)
        del qkv
        return product(attn.proj, h)
    weights = _norm_weights(attn)
    if weights[0] is not None:
        norm_heads(qkv, *weights, 1e-6)
    q, k, v = qkv.flatten(0, 1).unbind(2)  # each [B T, S, heads, d]
    h = attend(q, k, v, None)
    del qkv, q, k, v
    return product(attn.proj, h).view(shape)


def _in_time(attn: SelfAttention, qkv: Tensor, angles: Tensor | None) -> Tensor:
    q, k, v = qkv.unbind(3)
    return attend_in_time(q, k, v, *_norm_weights(attn), angles)


def _norm_weights(attn: SelfAttention) -> tuple[Any, Any]:
    """Of the norms on queries and keys; None where there are none."""
    return (attn.q_norm.weight, attn.k_norm.weight) if isinstance(attn.q_norm, nn.RMSNorm) else (None, None)


def cross_stdit3(block: STDiT3Block, rows: Any, cond: Any) -> Tensor:
    attn = block.cross_attn
    q = product(attn.q_linear, rows)
    shape = q.shape
    k, v = product(attn.kv_linear, cond.text).unflatten(-1, (2, attn.num_heads, -1)).unbind(2)
    h = attend(q.flatten(1, 2).unflatten(-1, (attn.num_heads, -1)), k, v, cond.text_mask)
    del q
    return product(attn.proj, h).view(shape)


def mlp_stdit3(block: STDiT3Block, rows: Any, cond: Any) -> Tensor:
    return _mlp(block.mlp.fc1, block.mlp.fc2, rows)


# ------------------------------------------------------------------------------------ Latte and Open-Sora-Plan


def attention_latte(block: LatteBlock, rows: Any, cond: Any) -> Tensor:
    attn, shape = block.attn1, rows.shape
    parts = products((attn.to_q, attn.to_k, attn.to_v), rows)
    q, k, v = (part.unflatten(-1, (attn.num_heads, -1)) for part in parts)
    del rows, parts
    if block.stream == "temporal":
        return product(attn.to_out[0], attend_in_time(q, k, v))
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # each [B T, S, heads, d]
    bias = None if cond.token_bias is None else cond.token_bias.flatten(0, 1)[:, None, None]  # [B T, 1, 1, S]
    h = attend(q, k, v, bias)
    del q, k, v
    return product(attn.to_out[0], h).view(shape)


def cross_latte(block: LatteBlock, rows: Any, cond: Any) -> Tensor:
    attn: Attention = block.attn2
    q = product(attn.to_q, rows)
    shape = q.shape
    k, v = (part.unflatten(-1, (attn.num_heads, -1)) for part in products((attn.to_k, attn.to_v), cond.text))
    h = attend(q.flatten(1, 2).unflatten(-1, (attn.num_heads, -1)), k, v, cond.text_bias)
    return product(attn.to_out[0], h).view(shape)


def mlp_latte(block: LatteBlock, rows: Any, cond: Any) -> Tensor:
    first: Any = block.ff.net[0]
    return _mlp(first.proj, block.ff.net[2], rows)


def _mlp(first: nn.Module, second: nn.Module, h: Tensor | Rows) -> Tensor:
    if _in_fp8(first):
        return product(second, _gelu_in_fp8(first, h if isinstance(h, Rows) else rows_in_fp8(h)))
    assert isinstance(h, Tensor)
    return product(second, _gelu_linear(first, h))


def _gelu_in_fp8(layer: Any, rows: Rows) -> Rows:
    """tanh-approximated GELU of a layer in eight bits."""
    if not gelu_product_goes(layer, rows.values.device):
        return rows_in_fp8(product(layer, rows), gelu=True)
    weight = Rows(layer.weight.view(rows.values.dtype), layer.scale)
    return gelu_product(rows, weight, layer.bias, *layer.bound)


def _gelu_linear(linear: nn.Module, h: Tensor) -> Tensor:
    """tanh-approximated GELU of a linear layer, which cuBLASLt's product applies on its way out."""
    if type(linear) is not nn.Linear or not h.is_cuda:
        return F.gelu(linear(h), approximate="tanh")
    out = torch.ops.aten._addmm_activation(linear.bias, h.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return out.unflatten(0, h.shape[:-1])


def _of_block(attention: Any, reads: Any, cross: Any, cross_reads: Any, mlp: Any, mlp_reads: Any) -> dict[str, Any]:
    first = FusedUpdate("norm1", slice(0, 3), reads, attention)
    return {
        "spatial": first,
        "temporal": first,
        "cross": FusedUpdate(None, slice(0, 0), cross_reads, cross),
        "mlp": FusedUpdate("norm2", slice(3, 6), mlp_reads, mlp),
    }


OF_BLOCK: dict[type, dict[str, FusedUpdate]] = {
    STDiT3Block: _of_block(
        attention_stdit3,
        lambda block: block.attn.qkv,
        cross_stdit3,
        lambda block: block.cross_attn.q_linear,
        mlp_stdit3,
        lambda block: block.mlp.fc1,
    ),
    LatteBlock: _of_block(
        attention_latte,
        lambda block: block.attn1.to_q,
        cross_latte,
        lambda block: block.attn2.to_q,
        mlp_latte,
        lambda block: block.ff.net[0].proj,
    ),
}


def fused_update(block: nn.Module, kind: str, num_frames: int) -> FusedUpdate | None:
    """Of a branch of this kind, over so many latent frames; None where there is none."""
    if kind == "temporal" and num_frames > MOST_FRAMES:
        return None
    return OF_BLOCK.get(type(block), {}).get(kind)
