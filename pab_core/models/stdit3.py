"""STDiT3, the transformer of Open-Sora 1.2.

Source: hpcaitech/Open-Sora (Apache-2.0) and its re-publication in NUS-HPC-AI-Lab/VideoSys; parameter names are those of
the released checkpoint hpcai-tech/OpenSora-STDiT-v3.

Shapes: B batch, C latent channels, T latent frames, H and W latent size, S tokens a frame, D hidden_size, L text
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    Branch,
    CrossAttention,
    DropPath,
    Mlp,
    ScalarEmbedder,
    Seam,
    SelfAttention,
    Stream,
    Update,
    compute,
    modulate,
    run_blocks,
)


@dataclass(frozen=True)
class STDiT3Config:
    """The fields of a released config.json that shape the model; the defaults are the released XL/2."""

    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 2, 2)
    in_channels: int = 4
    pred_sigma: bool = True
    input_sq_size: int = 512
    caption_channels: int = 4096
    model_max_length: int = 300
    qk_norm: bool = True
    skip_y_embedder: bool = False
    # training only
    class_dropout_prob: float = 0.1
    drop_path: float = 0.0
    only_train_temporal: bool = False
    freeze_y_embedder: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "STDiT3Config":
        """Reads a config.json; entries that do not shape the model (kernel choices, names) are left out."""
        known = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        if "patch_size" in known:
            known["patch_size"] = tuple(known["patch_size"])
        return cls(**known)


def stdit3_branches(depth: int) -> tuple[Branch, ...]:
    """All residual branches in the order in which they run: `depth` pairs of a spatial and a temporal block."""
    streams: tuple[Stream, Stream] = ("spatial", "temporal")
    return tuple(
        Branch(kind, stream, block) for block in range(depth) for stream in streams for kind in (stream, "cross", "mlp")
    )


@dataclass(frozen=True)
class Conditioning:
    """What one call of the model gives to every block."""

    modulation: Tensor  # [B, 1 or T, 6, D], a row for each latent frame where an x_mask is given
    text: Tensor  # [B, L, D]
    text_mask: Tensor | None  # bool [B, 1, 1, L]; None: all tokens are real
    angles: Tensor  # [T, head_dim / 2], rotary positions of the latent frames


class PatchEmbed(nn.Module):
    """Cuts the latents into patches: [B, C, T, H, W] -> [B, T', S, D], zero-padded at the far end of each axis."""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, hidden_size: int):
        super().__init__()
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        padding = [-size % patch for size, patch in zip(x.shape[2:], self.patch_size, strict=True)]
        x = F.pad(x, (0, padding[2], 0, padding[1], 0, padding[0]))
        return self.proj(x).flatten(3).permute(0, 2, 3, 1)


class CaptionEmbedder(nn.Module):
    """Projects text states to the model's width and holds the null text of classifier-free guidance."""

    def __init__(self, config: STDiT3Config):
        super().__init__()
        width = config.caption_channels
        self.y_proj = Mlp(width, config.hidden_size, config.hidden_size)
        self.y_embedding = nn.Parameter(torch.randn(config.model_max_length, width) / width**0.5)
        self.dropout_prob = config.class_dropout_prob

    def forward(self, text: Tensor) -> Tensor:
        """text [B, L, caption_channels] -> [B, L, D]; in training a share of the captions becomes the null text."""
        if self.training and self.dropout_prob > 0:
            drop = torch.rand(text.shape[0], device=text.device) < self.dropout_prob
            text = torch.where(drop[:, None, None], self.y_embedding[: text.shape[1]].to(text.dtype), text)
        return self.y_proj(text)


class RotaryPositions(nn.Module):
    """Rotary frequencies over latent frames, kept as a parameter because the released checkpoint holds them."""

    def __init__(self, head_dim: int, theta: float = 10000.0):
        super().__init__()
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        self.freqs = nn.Parameter(theta**-exponents, requires_grad=False)

    def forward(self, num_frames: int) -> Tensor:
        """-> angles [T, head_dim / 2] in radians, float32."""
        positions = torch.arange(num_frames, device=self.freqs.device, dtype=torch.float32)
        return positions[:, None] * self.freqs.float()


class STDiT3Block(nn.Module):
    """Self-attention within a frame (spatial) or along time (temporal), cross-attention to the text, feed-forward."""

    def __init__(self, config: STDiT3Config, stream: Stream, block: int):
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, config.num_heads, config.qk_norm)
        self.cross_attn = CrossAttention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.drop_path = DropPath(config.drop_path * block / max(config.depth - 1, 1))
        self.stream: Stream = stream
        self.branches = (Branch(stream, stream, block), Branch("cross", stream, block), Branch("mlp", stream, block))

    def forward(self, x: Tensor, cond: Conditioning, seam: Seam = compute) -> Tensor:
        """x [B, T, S, D] -> [B, T, S, D]."""
        for branch, update in self.updates():
            x = x + seam(branch, update, x, cond)
        return x

    def updates(self) -> tuple[tuple[Branch, Update], ...]:
        """The branches in their order, each with the function that computes its update."""
        return tuple(zip(self.branches, (self.self_attention, self.cross_attention, self.feed_forward), strict=True))

    def self_attention(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The gated update of self-attention: x [B, T, S, D] -> [B, T, S, D]."""
        shift, scale, gate = self._modulation(cond, slice(0, 3))
        h = modulate(self.norm1(x), shift, scale)
        if self.stream == "spatial":
            h = self.attn(h.flatten(0, 1)).unflatten(0, x.shape[:2])  # [B T, S, D]
        else:
            h = h.transpose(1, 2)  # [B, S, T, D]
            h = self.attn(h.flatten(0, 1), cond.angles).unflatten(0, h.shape[:2]).transpose(1, 2)
        return self.drop_path(gate * h)

    def cross_attention(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The update of cross-attention, neither normalised nor gated: x [B, T, S, D] -> [B, T, S, D]."""
        return self.cross_attn(x.flatten(1, 2), cond.text, cond.text_mask).view(x.shape)

    def feed_forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The gated update of the MLP: x [B, T, S, D] -> [B, T, S, D]."""
        shift, scale, gate = self._modulation(cond, slice(3, 6))
        return self.drop_path(gate * self.mlp(modulate(self.norm2(x), shift, scale)))

    def _modulation(self, cond: Conditioning, rows: slice) -> tuple[Tensor, ...]:
        """Shift, scale and gate, each [B, 1 or T, 1, D]."""
        table = self.scale_shift_table[rows] + cond.modulation[:, :, rows]
        return table.unsqueeze(3).unbind(2)


class FinalLayer(nn.Module):
    """Last norm, modulation by the timestep, projection to patches."""

    def __init__(self, config: STDiT3Config, out_features: int):
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, t: Tensor, t_clean: Tensor | None, x_mask: Tensor | None) -> Tensor:
        """x [B, T, S, D]; t, t_clean [B, D]; x_mask bool [B, T] -> [B, T, S, out_features]."""
        x = self._modulate(x, t)
        if x_mask is not None and t_clean is not None:
            # The released model was trained with given frames normalised and modulated a second time.
            x = torch.where(x_mask[:, :, None, None], x, self._modulate(x, t_clean))
        return self.linear(x)

    def _modulate(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None])[:, :, None, None].unbind(1)  # each [B, 1, 1, D]
        return modulate(self.norm_final(x), shift, scale)


class STDiT3(nn.Module):
    """Predicts the velocity (clean minus noise) of a rectified flow over video latents."""

    def __init__(self, config: STDiT3Config):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.out_channels = config.in_channels * (2 if config.pred_sigma else 1)
        patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]

        self.rope = RotaryPositions(width // config.num_heads)
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width)
        self.t_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(config)
        self.spatial_blocks = nn.ModuleList(STDiT3Block(config, "spatial", i) for i in range(config.depth))
        self.temporal_blocks = nn.ModuleList(STDiT3Block(config, "temporal", i) for i in range(config.depth))
        self.final_layer = FinalLayer(config, patch_volume * self.out_channels)
        self._set_trainable()

    @property
    def branches(self) -> tuple[Branch, ...]:
        return stdit3_branches(self.config.depth)

    def init_weights(self) -> None:
        """Initialisation for training from nothing: temporal blocks and the fps embedding start as identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.final_layer.linear.weight)
        inner, outer = (layer for layer in self.fps_embedder.mlp if isinstance(layer, nn.Linear))
        nn.init.normal_(inner.weight, std=0.02)
        nn.init.zeros_(outer.weight)
        for block in self.temporal_blocks:
            assert isinstance(block, STDiT3Block)
            for linear in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)

    def _set_trainable(self) -> None:
        if self.config.only_train_temporal:
            self.requires_grad_(False)
            self.temporal_blocks.requires_grad_(True)
        if self.config.freeze_y_embedder:
            self.y_embedder.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        x_mask: Tensor | None = None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        seam: Seam = compute,
    ) -> Tensor:
        """One evaluation of the model.

        Args:
            x: latents [B, C, T, H, W].
            timestep: [B], 0..1000, 1000 = noise; fractional values allowed.
            y: text states [B, 1, L, caption_channels]; already projected, [B, 1, L, D] or packed [1, sum L, D], if the
                config says skip_y_embedder.
            mask: 1 = real token, [B or 1, L]; token counts [B] if packed; None = all tokens are real.
            x_mask: bool [B, T], False = a given (clean) frame, treated as timestep 0.
            fps: frames per second, [1 or B].
            height, width: size of the video in pixels, [1 or B]; they only scale the position embedding.
            seam: how the branches of the blocks are run.

        Returns:
            float32 [B, out_channels, T, H, W]; the first C channels are the velocity.
        """
        dtype = self.x_embedder.proj.weight.dtype
        batch, _, *size = x.shape
        tokens = [-(-n // patch) for n, patch in zip(size, self.config.patch_size, strict=True)]  # T', H', W'

        pixels = float(height[0]) * float(width[0])
        fps_embedding = self.fps_embedder(fps.repeat(batch // fps.shape[0]))
        t = self.t_embedder(timestep.to(dtype)) + fps_embedding
        modulation = self.t_block(t).view(batch, 1, 6, -1)
        t_clean = None
        if x_mask is not None:
            t_clean = self.t_embedder(torch.zeros_like(timestep, dtype=dtype)) + fps_embedding
            clean = self.t_block(t_clean).view(batch, 1, 6, -1)
            modulation = torch.where(x_mask[:, :, None, None], modulation, clean)
        text, text_mask = self.embed_text(y.to(dtype), mask, batch)

        cond = Conditioning(modulation, text, text_mask, self.rope(tokens[0]))

        def embedded() -> Tensor:
            return self.x_embedder(x.to(dtype)) + self.position_embedding(tokens[1], tokens[2], pixels).to(dtype)

        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        h = run_blocks([block for pair in pairs for block in pair], embedded, cond, seam)
        return self.unpatchify(self.final_layer(h, t, t_clean, x_mask), tokens, size).float()

    def embed_text(self, y: Tensor, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """-> text [B, L', D] and its mask (None where all samples have the same tokens, which are then cut out)."""
        if self.config.skip_y_embedder and mask is not None and mask.ndim == 1:
            rows = y.flatten(0, -2).split(mask.tolist())
            text = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
            real = torch.arange(text.shape[1], device=mask.device) < mask[:, None]
            return text, real[:, None, None]
        y = y.flatten(1, 2) if y.ndim == 4 else y
        if mask is not None and mask.shape[0] == 1:
            y, mask = y[:, mask[0].bool()], None
        text = y if self.config.skip_y_embedder else self.y_embedder(y)
        if mask is None:
            return text, None
        return text, mask.bool().repeat(batch // mask.shape[0], 1)[:, None, None]

    def position_embedding(self, rows: int, columns: int, pixels: float) -> Tensor:
        """Sinusoidal position of each token of a frame, scaled by the video's resolution -> float32 [S, D].

        Half of the channels hold the column, half the row, each stretched to the square of equal token count.
        """
        device = self.final_layer.linear.weight.device
        scale = pixels**0.5 / self.config.input_sq_size
        side = round((rows * columns) ** 0.5)
        width = self.config.hidden_size // 2
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device).float() / width)

        def axis(count: int) -> Tensor:
            angles = (torch.arange(count, device=device) / scale * (side / count))[:, None] * frequencies
            return torch.cat([angles.sin(), angles.cos()], dim=-1)

        column = axis(columns)[None, :].expand(rows, -1, -1)
        row = axis(rows)[:, None].expand(-1, columns, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)

    def unpatchify(self, x: Tensor, tokens: list[int], size: list[int]) -> Tensor:
        """[B, T', S, patch volume x out_channels] -> [B, out_channels, T, H, W], padding cut off."""
        patch = self.config.patch_size
        x = x.reshape(x.shape[0], *tokens, *patch, self.out_channels)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # B, C, T', pt, H', ph, W', pw
        x = x.reshape(x.shape[0], self.out_channels, *(n * p for n, p in zip(tokens, patch, strict=True)))
        return x[:, :, : size[0], : size[1], : size[2]]
