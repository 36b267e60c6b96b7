"""LatteT2V, the transformer of Latte-1 (arXiv 2401.03048).

Source: Vchitect/Latte (Apache-2.0), re-published in NUS-HPC-AI-Lab/VideoSys and as diffusers' LatteTransformer3DModel;
parameter names are those of the released checkpoint maxin-cn/Latte-1.

Shapes: B batch, C latent channels, T latent frames, H and W latent size, S tokens a frame, D hidden_size, L text
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PabError
from .latte_layers import (
    AdaLayerNormSingle,
    Conditioning,
    LatteBlock,
    PatchEmbed2d,
    Projection,
    T2VConfig,
    attention_bias,
    latte_branches,
    run_pairs,
    sincos_positions,
    unpatchify,
)
from .layers import Branch, Seam, compute, modulate

# What a config.json may say of the architecture's variants: diffusers' blocks know more of them than Latte uses.
_FIXED = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "activation_fn": "gelu-approximate"}


@dataclass(frozen=True)
class LatteConfig(T2VConfig):
    """The fields of a released config.json that shape the model; the defaults are the released XL/2."""

    sample_size: int = 64  # side of the latents that it was trained on

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "LatteConfig":
        """Reads a config.json; entries that do not shape the model are left out.

        Raises:
            PabError: it describes a variant of the blocks that is not Latte's.
        """
        for name, expected in _FIXED.items():
            if config.get(name, expected) != expected:
                raise PabError(
                    f"This is no Latte transformer: its config.json says {name} = {config[name]!r}, where Latte has "
                    f"{expected!r}. Give the folder of a Latte checkpoint."
                )
        # An entry that is null stands for the default.
        return cls(**{f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None})


class LatteT2V(nn.Module):
    """Predicts the noise in video latents."""

    def __init__(self, config: LatteConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        # Latents larger than 64 a side count their positions in the units of 64.
        scale = max(config.sample_size // 64, 1)
        self.pos_embed = PatchEmbed2d(patch, config.in_channels, width, config.sample_size // patch, scale)
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = Projection(config.caption_channels, width, nn.GELU(approximate="tanh"))
        blocks = range(config.num_layers)
        self.transformer_blocks = nn.ModuleList(LatteBlock(config, "spatial", i) for i in blocks)
        self.temporal_transformer_blocks = nn.ModuleList(LatteBlock(config, "temporal", i) for i in blocks)
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch * patch * config.out_channels)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return latte_branches(self.config.num_layers)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        *,
        enable_temporal_attentions: bool = True,
        seam: Seam = compute,
    ) -> Tensor:
        """One evaluation of the model.

        Args:
            hidden_states: latents [B, C, T, H, W], H and W multiples of patch_size.
            timestep: [B], 0..999, 999 = noise.
            encoder_hidden_states: text states [B, L, caption_channels].
            encoder_attention_mask: [B, L], 1 = real token; None = all tokens are real.
            enable_temporal_attentions: False leaves the temporal blocks out, as for separate images.
            seam: how the branches of the blocks are run.

        Returns:
            float32 [B, out_channels, T, H, W]; the first C channels are the noise.
        """
        dtype, patch = self.proj_out.weight.dtype, self.config.patch_size
        num_frames, height, width = hidden_states.shape[2:]
        modulation, embedding = self.adaln_single(timestep)
        text = self.caption_projection(encoder_hidden_states.to(dtype))
        bias = None if encoder_attention_mask is None else attention_bias(encoder_attention_mask, dtype)[:, None, None]

        cond = Conditioning(modulation, text, bias)
        temporal = self.temporal_transformer_blocks if enable_temporal_attentions else ()
        positions = self.frame_positions(num_frames).to(dtype) if num_frames > 1 else None
        start = partial(self.pos_embed, hidden_states.to(dtype))
        x = run_pairs(self.transformer_blocks, temporal, start, positions, cond, seam)

        shift, scale = (self.scale_shift_table + embedding[:, None])[:, :, None, None].unbind(1)  # each [B, 1, 1, D]
        x = self.proj_out(modulate(self.norm_out(x), shift, scale))
        return unpatchify(x, patch, height // patch, width // patch).float()

    def frame_positions(self, num_frames: int) -> Tensor:
        """Sinusoidal position of each latent frame -> float32 [T, 1, D]."""
        frames = torch.arange(num_frames, device=self.proj_out.weight.device)
        return sincos_positions(frames, self.config.hidden_size)[:, None]
