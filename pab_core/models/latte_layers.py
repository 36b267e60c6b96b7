"""What LatteT2V is built of, in Latte-1 and in Open-Sora-Plan v1.1.0: its block, and its layers.

Parameters have the names that both released checkpoints share, which are those of diffusers.

Shapes: B batch, C latent channels, T latent frames, H and W latent size, S tokens a frame, D hidden_size, L text
tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Branch, Kind, Seam, Stream, Update, compute, modulate, run_blocks, sinusoidal_embedding

_KINDS: dict[Stream, tuple[Kind, ...]] = {"spatial": ("spatial", "cross", "mlp"), "temporal": ("temporal", "mlp")}


@dataclass(frozen=True)
class T2VConfig:
    """The fields of a released config.json that both models have; the defaults are the released XL/2 of both."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    num_layers: int = 28
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8  # the noise, then the part of the learned variance, which sampling leaves out
    caption_channels: int = 4096
    attention_bias: bool = True
    norm_eps: float = 1e-6

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def depth(self) -> int:
        """Blocks of each stream."""
        return self.num_layers


def latte_branches(depth: int) -> tuple[Branch, ...]:
    """All residual branches in the order in which they run: `depth` pairs of a spatial and a temporal block.

    Temporal blocks do not look at the text.
    """
    return tuple(
        Branch(kind, stream, block) for block in range(depth) for stream, kinds in _KINDS.items() for kind in kinds
    )


@dataclass(frozen=True)
class Conditioning:
    """What one call of the model gives to every block; biases are added to attention scores, None masks nothing."""

    modulation: Tensor  # [B, 6, D]
    text: Tensor  # [B, L, D]
    text_bias: Tensor | None  # [B, 1, 1, L]
    token_bias: Tensor | None = None  # [B, T, S], of tokens within their frame


class LatteBlock(nn.Module):
    """Spatial: self-attention within a frame, cross-attention, feed-forward; temporal: along time, feed-forward."""

    def __init__(self, config: T2VConfig, stream: Stream, block: int):
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=False)
        self.attn1 = Attention(width, heads, config.attention_bias)
        if stream == "spatial":
            self.attn2 = Attention(width, heads, config.attention_bias)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=False)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.stream: Stream = stream
        self.branches = tuple(Branch(kind, stream, block) for kind in _KINDS[stream])

    def forward(self, x: Tensor, cond: Conditioning, seam: Seam = compute) -> Tensor:
        """x [B, T, S, D] -> [B, T, S, D]."""
        for branch, update in self.updates():
            x = x + seam(branch, update, x, cond)
        return x

    def updates(self) -> tuple[tuple[Branch, Update], ...]:
        """The branches in their order, each with the function that computes its update."""
        of_kind: dict[Kind, Update] = {
            self.stream: self.self_attention,
            "cross": self.cross_attention,
            "mlp": self.feed_forward,
        }
        return tuple((branch, of_kind[branch.kind]) for branch in self.branches)

    def self_attention(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The gated update of self-attention: x [B, T, S, D] -> [B, T, S, D]. Along time nothing is masked."""
        shift, scale, gate = self._modulation(cond, slice(0, 3))
        h = modulate(self.norm1(x), shift, scale)
        if self.stream == "spatial":
            bias = None if cond.token_bias is None else cond.token_bias.flatten(0, 1)[:, None, None]  # [B T, 1, 1, S]
            h = self.attn1(h.flatten(0, 1), bias=bias).unflatten(0, x.shape[:2])  # [B T, S, D]
        else:
            h = h.transpose(1, 2)  # [B, S, T, D]
            h = self.attn1(h.flatten(0, 1)).unflatten(0, h.shape[:2]).transpose(1, 2)
        return gate * h

    def cross_attention(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The update of cross-attention, neither normalised nor gated: x [B, T, S, D] -> [B, T, S, D]."""
        return self.attn2(x.flatten(1, 2), cond.text, cond.text_bias).view(x.shape)

    def feed_forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The gated update of the MLP: x [B, T, S, D] -> [B, T, S, D]."""
        shift, scale, gate = self._modulation(cond, slice(3, 6))
        return gate * self.ff(modulate(self.norm2(x), shift, scale))

    def _modulation(self, cond: Conditioning, rows: slice) -> tuple[Tensor, ...]:
        """Shift, scale and gate, each [B, 1, 1, D]."""
        table = self.scale_shift_table[rows] + cond.modulation[:, rows]
        return table[:, :, None, None].unbind(1)


def run_pairs(
    spatial: Iterable[nn.Module],
    temporal: Iterable[nn.Module],
    start: Callable[[], Tensor],
    positions: Tensor | None,
    cond: Conditioning,
    seam: Seam,
) -> Tensor:
    """Each spatial block with the temporal one after it; without temporal ones the spatial alone.

    Args:
        start: makes the first one's input, [B, T, S, D].
        positions: of the frames, [T, 1, D], added before the first temporal block, or None.
    """
    spatial, temporal = list(spatial), list(temporal)
    if not temporal:
        return run_blocks(spatial, start, cond, seam)

    def placed() -> Tensor:
        x = run_blocks(spatial[:1], start, cond, seam)
        return x if positions is None else x + positions

    pairs = zip(spatial, temporal, strict=True)
    return run_blocks([block for pair in pairs for block in pair][1:], placed, cond, seam)


def sincos_positions(positions: Tensor, dim: int) -> Tensor:
    """Sines then cosines of `positions` [N] at dim/2 frequencies -> float32 [N, dim].

    Computed in float64, as the released models were trained, and where the positions are, so that no step of a run
    waits for a copy; Apple's GPUs do not have that type.
    """
    device = torch.device("cpu") if positions.device.type == "mps" else positions.device
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim / 2))
    angles = positions.to(device, torch.float64)[:, None] * frequencies
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


def unpatchify(x: Tensor, patch: int, rows: int, columns: int) -> Tensor:
    """[B, T, S, patch area x C] of rows x columns tokens a frame -> [B, C, T, H, W]."""
    x = x.unflatten(3, (patch, patch, -1)).unflatten(2, (rows, columns))  # B, T, H', W', ph, pw, C
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
