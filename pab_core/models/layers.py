"""Layers that the video diffusion transformers share, and the seam of their blocks."""

import math
from collections.abc import Callable
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


def run_block(block: Any, x: Tensor, cond: Any, seam: Seam) -> Tensor:
    """A block through a seam. One that has a `run_block` takes whole blocks, to compile them."""
    whole = getattr(seam, "run_block", None)
    return block(x, cond, seam) if whole is None else whole(block, x, cond)


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


# ------------------------------------------------- layers of Latte and Open-Sora-Plan, under the names of diffusers


def sincos_positions(positions: Tensor, dim: int) -> Tensor:
    """Sines then cosines of `positions` [N] at dim/2 frequencies -> float32 [N, dim].

    Computed in float64, as the released models were trained, and on the CPU, since not every device has that type.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device="cpu") / (dim / 2))
    angles = positions.to("cpu", torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(positions.device, torch.float32)


class PatchEmbed2d(nn.Module):
    """Cuts each frame into patches and adds their positions: [B, C, T, H, W] -> [B, T, S, D].

    Positions are counted in units of the trained grid, of `base_size` patches a side, whatever the size of the frame:
    half of the channels hold the column, half the row.
    """

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int, base_size: int, interpolation_scale: float):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.base_size = base_size
        self.interpolation_scale = interpolation_scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj(x.transpose(1, 2).flatten(0, 1)).permute(0, 2, 3, 1)  # [B T, H', W', D]
        h = (h + self.positions(h.shape[1], h.shape[2], h.device)).to(h.dtype)
        return h.flatten(1, 2).unflatten(0, (x.shape[0], x.shape[2]))

    def positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """-> float32 [rows, columns, D]."""

        def axis(count: int) -> Tensor:
            places = torch.arange(count, dtype=torch.float32, device=device)
            places = places / (count / self.base_size) / self.interpolation_scale
            return sincos_positions(places, self.proj.out_channels // 2)

        column = axis(columns)[None, :].expand(rows, -1, -1)
        row = axis(rows)[:, None].expand(-1, columns, -1)
        return torch.cat([column, row], dim=-1)


class Projection(nn.Module):
    """Two linear layers with an activation between, for the timestep's embedding and the text states."""

    def __init__(self, in_features: int, out_features: int, activation: nn.Module):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.activation = activation
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return self.linear_2(self.activation(self.linear_1(x)))


class AdaLayerNormSingle(nn.Module):
    """The timestep's embedding and the modulation that all blocks share (PixArt-alpha, arXiv 2310.00426)."""

    def __init__(self, hidden_size: int, frequency_size: int = 256):
        super().__init__()
        self.frequency_size = frequency_size
        embedder = Projection(frequency_size, hidden_size, nn.SiLU())
        self.emb = nn.ModuleDict({"timestep_embedder": embedder})
        self.linear = nn.Linear(hidden_size, 6 * hidden_size)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep [B] -> modulation [B, 6, D] and the embedding [B, D]."""
        frequencies = sinusoidal_embedding(timestep, self.frequency_size).to(self.linear.weight.dtype)
        embedding = self.emb["timestep_embedder"](frequencies)
        return self.linear(F.silu(embedding)).unflatten(-1, (6, -1)), embedding


class Attention(nn.Module):
    """Multi-head attention to the tokens themselves or to a context of the same width."""

    def __init__(self, hidden_size: int, num_heads: int, bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.to_k = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.to_v = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [N, M, D], context [N, L, D] or None (= x), bias on the scores [N, 1, 1 or M, L] -> [N, M, D]."""
        context = x if context is None else context
        q, k, v = (
            linear(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [N, heads, M or L, d]
            for linear, states in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.to_out(x.transpose(1, 2).flatten(2))


class GeluLinear(nn.Module):
    """A linear layer, then tanh-approximated GELU."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times as wide inside; the released keys count a dropout between its layers."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.net = nn.Sequential(
            GeluLinear(hidden_size, 4 * hidden_size), nn.Identity(), nn.Linear(4 * hidden_size, hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask [..., L], 1 = a real token -> bias on attention scores: 0 there, -10000 elsewhere.

    Not minus infinity: where no token is real, the released models then attend to all alike.
    """
    return (1 - mask.to(dtype)) * -10000.0
