"""LatteT2V as in Open-Sora-Plan v1.1.0 (65x512x512 and 221x512x512).

Blocks like Latte's, with a mask of real latent pixels in spatial attention, and positions scaled to the trained length.

Source: PKU-YuanGroup/Open-Sora-Plan (v1.1.0) and its re-publication in NUS-HPC-AI-Lab/VideoSys; parameter names are
those of the released checkpoint LanguageBind/Open-Sora-Plan-v1.1.0.

Shapes: B batch, C latent channels, T latent frames, H and W latent size, S tokens a frame, D hidden_size, L text
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PabError
from .layers import (
    AdaLayerNormSingle,
    Attention,
    Branch,
    FeedForward,
    Kind,
    PatchEmbed2d,
    Projection,
    Seam,
    Stream,
    Update,
    attention_bias,
    compute,
    modulate,
    run_block,
    sincos_positions,
)

# What a config.json may say of the architecture's variants; others belong to other versions.
_FIXED = {
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "use_rope": False,
    "compress_kv_factor": 1,
}
_KINDS: dict[Stream, tuple[Kind, ...]] = {"spatial": ("spatial", "cross", "mlp"), "temporal": ("temporal", "mlp")}


@dataclass(frozen=True)
class OpenSoraPlanConfig:
    """The fields of a released config.json that shape the model; the defaults are the released 65x512x512."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    num_layers: int = 28
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8  # the noise, then the part of the learned variance, which sampling leaves out
    sample_size: tuple[int, int] = (64, 64)  # latents that it was trained on
    video_length: int = 17  # latent frames that it was trained on
    interpolation_scale_1d: float | None = None  # latent frames to a unit of temporal position; None: by video_length
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

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "OpenSoraPlanConfig":
        """Reads a config.json; entries that do not shape the model are left out.

        Raises:
            PabError: it describes a variant of the blocks that v1.1.0 does not have.
        """
        for name, expected in _FIXED.items():
            if config.get(name, expected) != expected:
                raise PabError(
                    f"This is no transformer of Open-Sora-Plan v1.1.0: its config.json says {name} = {config[name]!r}, "
                    f"where v1.1.0 has {expected!r}. Give the folder of a v1.1.0 checkpoint."
                )
        # An entry that is null stands for the default.
        known = {field.name: config[field.name] for field in fields(cls) if config.get(field.name) is not None}
        if "sample_size" in known:
            size = known["sample_size"]
            known["sample_size"] = (size, size) if isinstance(size, int) else tuple(size)
        return cls(**known)


def open_sora_plan_branches(depth: int) -> tuple[Branch, ...]:
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
    text_bias: Tensor | None  # [B, L]
    token_bias: Tensor | None  # [B, T, S]


class CaptionProjection(Projection):
    """Projects text states to the model's width; holds a null text that the released checkpoint has but never uses."""

    y_embedding: Tensor

    def __init__(self, caption_channels: int, hidden_size: int):
        super().__init__(caption_channels, hidden_size, nn.GELU(approximate="tanh"))
        self.register_buffer("y_embedding", torch.zeros(120, caption_channels))


class OpenSoraPlanBlock(nn.Module):
    """Spatial: self-attention within a frame, cross-attention, feed-forward; temporal: along time, feed-forward."""

    def __init__(self, config: OpenSoraPlanConfig, stream: Stream, block: int):
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
        bias = None if cond.text_bias is None else cond.text_bias[:, None, None]  # [B, 1, 1, L]
        return self.attn2(x.flatten(1, 2), cond.text, bias).view(x.shape)

    def feed_forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The gated update of the MLP: x [B, T, S, D] -> [B, T, S, D]."""
        shift, scale, gate = self._modulation(cond, slice(3, 6))
        return gate * self.ff(modulate(self.norm2(x), shift, scale))

    def _modulation(self, cond: Conditioning, rows: slice) -> tuple[Tensor, ...]:
        """Shift, scale and gate, each [B, 1, 1, D]."""
        table = self.scale_shift_table[rows] + cond.modulation[:, rows]
        return table[:, :, None, None].unbind(1)


class OpenSoraPlanT2V(nn.Module):
    """Predicts the noise in video latents."""

    def __init__(self, config: OpenSoraPlanConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        # Trained on more than 64 latents a side or 16 frames, it counts positions in units of those.
        space_scale = max(config.sample_size[0] // 64, 1)
        self.time_scale = max(config.interpolation_scale_1d or config.video_length // 16, 1)
        self.pos_embed = PatchEmbed2d(patch, config.in_channels, width, config.sample_size[0] // patch, space_scale)
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = CaptionProjection(config.caption_channels, width)
        blocks = range(config.num_layers)
        self.transformer_blocks = nn.ModuleList(OpenSoraPlanBlock(config, "spatial", i) for i in blocks)
        self.temporal_transformer_blocks = nn.ModuleList(OpenSoraPlanBlock(config, "temporal", i) for i in blocks)
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch * patch * config.out_channels)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return open_sora_plan_branches(self.config.num_layers)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        enable_temporal_attentions: bool = True,
        seam: Seam = compute,
    ) -> Tensor:
        """One evaluation of the model.

        Args:
            hidden_states: latents [B, C, T, H, W], H and W multiples of patch_size.
            timestep: [B], 0..999, 999 = noise.
            encoder_hidden_states: text states [B, L, caption_channels] or [B, 1, L, caption_channels].
            encoder_attention_mask: [B, L] or [B, 1, L], 1 = real token; None = all tokens are real.
            attention_mask: [B, T, H, W], 1 = real latent pixel, 0 = padding; None = all are real.
            enable_temporal_attentions: False leaves the temporal blocks out, as for separate images.
            seam: how the branches of the blocks are run.

        Returns:
            float32 [B, out_channels, T, H, W]; the first C channels are the noise.
        """
        dtype, patch = self.proj_out.weight.dtype, self.config.patch_size
        batch, _, num_frames, height, width = hidden_states.shape
        x = self.pos_embed(hidden_states.to(dtype))
        modulation, embedding = self.adaln_single(timestep)
        text = self.caption_projection(encoder_hidden_states.to(dtype).view(batch, -1, self.config.caption_channels))
        text_bias = token_bias = None
        if encoder_attention_mask is not None:
            text_bias = attention_bias(encoder_attention_mask.view(batch, -1), dtype)
        if attention_mask is not None:
            # A token is real if any of its latent pixels is.
            real = F.max_pool2d(attention_mask.float(), patch).flatten(2).bool()
            token_bias = attention_bias(real, dtype)

        cond = Conditioning(modulation, text, text_bias, token_bias)
        for i in range(self.config.num_layers):
            x = run_block(self.transformer_blocks[i], x, cond, seam)
            if not enable_temporal_attentions:
                continue
            if i == 0:
                x = x + self.frame_positions(num_frames).to(dtype)
            x = run_block(self.temporal_transformer_blocks[i], x, cond, seam)

        shift, scale = (self.scale_shift_table + embedding[:, None])[:, :, None, None].unbind(1)  # each [B, 1, 1, D]
        x = self.proj_out(modulate(self.norm_out(x), shift, scale))
        return self.unpatchify(x, height // patch, width // patch).float()

    def frame_positions(self, num_frames: int) -> Tensor:
        """Sinusoidal position of each latent frame -> float32 [T, 1, D]."""
        frames = torch.arange(num_frames, dtype=torch.float32, device=self.proj_out.weight.device)
        return sincos_positions(frames / self.time_scale, self.config.hidden_size)[:, None]

    def unpatchify(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """[B, T, S, patch area x out_channels] -> [B, out_channels, T, H, W]."""
        patch = self.config.patch_size
        x = x.unflatten(3, (patch, patch, -1)).unflatten(2, (rows, columns))  # B, T, H', W', ph, pw, C
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
