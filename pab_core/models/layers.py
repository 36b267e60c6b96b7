"""Layers that the video diffusion transformers share, and the seam of their blocks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["spatial", "temporal", "cross", "mlp"]
Stream = Literal["spatial", "temporal"]
Update = Callable[[Tensor, Any], Tensor]  # x [B, T, S, D] and what conditions the block -> what is to be added to x


@dataclass(frozen=True)
class Branch:
    """One residual branch of a model: `kind` says what it computes, `stream` and `block` where it stands."""

    kind: Kind
    stream: Stream
    block: int


class Seam(Protocol):
    """What stands between a block and its branches: the one place where broadcast and parallelism attach.

    It is given the branch, the function that computes the branch's gated update, and that function's arguments, and
    returns the update [B, T, S, D], which the block adds to x.
    """

    def __call__(self, branch: Branch, update: Update, x: Tensor, cond: Any) -> Tensor: ...


def compute(branch: Branch, update: Update, x: Tensor, cond: Any) -> Tensor:
    """The seam of a plain model: every branch is computed."""
    return update(x, cond)


def run_blocks(blocks: Sequence[Any], start: Callable[[], Tensor], cond: Any, seam: Seam) -> Tensor:
    """Blocks one after the other through a seam. One that has a `run_blocks` takes them all at once, and may melt the
    end of one into the beginning of the next.

    start: makes the input of the first, [B, T, S, D]; as a function, so that nothing but the blocks holds it.
    """
    whole = getattr(seam, "run_blocks", None)
    if whole is not None:
        return whole(blocks, start, cond)
    x = start()
    for block in blocks:
        x = block(x, cond, seam)
    return x


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part (DiT, arXiv 2212.09748)."""
    return x * (1 + scale) + shift


def sinusoidal_embedding(values: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Cosines then sines of `values` [N] (fractional allowed) at dim/2 frequencies -> float32 [N, dim]."""
    half = dim // 2
    indices = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(-math.log(max_period) * indices / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedder(nn.Module):
    """Embeds a scalar (timestep, frames per second): sinusoids, then a two-layer MLP."""

    def __init__(self, hidden_size: int, frequency_size: int = 256):
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(nn.Linear(frequency_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, values: Tensor) -> Tensor:
        """values [N] -> [N, D]."""
        embedding = sinusoidal_embedding(values, self.frequency_size)
        return self.mlp(embedding.to(next(self.mlp.parameters()).dtype))


class Mlp(nn.Module):
    """Two linear layers with tanh-approximated GELU between."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's update with probability `rate` (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, update: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return update
        keep = torch.rand(update.shape[0], *[1] * (update.ndim - 1), device=update.device) >= self.rate
        return update * keep.to(update.dtype) / (1 - self.rate)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) on neighbouring pairs of the last axis.

    x [..., N, d], angles [N, d/2] in radians -> [..., N, d], computed in float32.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional RMS norm of queries and keys and rotary positions."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """x [N, L, D] -> [N, L, D]; `angles` [L, d/2] rotate queries and keys where given."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [N, heads, L, d]
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention from video tokens to text tokens."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D], text [B, L, D], mask bool [B, 1, 1, L] (True = a real token) or None -> [B, N, D]."""
        q = self.q_linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))
