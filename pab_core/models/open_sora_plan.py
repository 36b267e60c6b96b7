"""LatteT2V as in Open-Sora-Plan v1.1.0 (65x512x512 and 221x512x512).

Blocks like Latte's, with a mask of real latent pixels in spatial attention, and positions scaled to the trained length.

Source: PKU-YuanGroup/Open-Sora-Plan (v1.1.0) and its re-publication in NUS-HPC-AI-Lab/VideoSys; parameter names are
those of the released checkpoint LanguageBind/Open-Sora-Plan-v1.1.0.

Shapes: B batch, C latent channels, T latent frames, H and W latent size, S tokens a frame, D hidden_size, L text
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
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

# What a config.json may say of the architecture's variants; others belong to other versions.
_FIXED = {
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "use_rope": False,
    "compress_kv_factor": 1,
}


@dataclass(frozen=True)
class OpenSoraPlanConfig(T2VConfig):
    """The fields of a released config.json that shape the model; the defaults are the released 65x512x512."""

    sample_size: tuple[int, int] = (64, 64)  # latents that it was trained on
    video_length: int = 17  # latent frames that it was trained on
    interpolation_scale_1d: float | None = None  # latent frames to a unit of temporal position; None: by video_length

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


class CaptionProjection(Projection):
    """Projects text states to the model's width; holds a null text that the released checkpoint has but never uses."""

    y_embedding: Tensor

    def __init__(self, caption_channels: int, hidden_size: int):
        super().__init__(caption_channels, hidden_size, nn.GELU(approximate="tanh"))
        self.register_buffer("y_embedding", torch.zeros(120, caption_channels))


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
        modulation, embedding = self.adaln_single(timestep)
        text = self.caption_projection(encoder_hidden_states.to(dtype).view(batch, -1, self.config.caption_channels))
        text_bias = token_bias = None
        if encoder_attention_mask is not None:
            text_bias = attention_bias(encoder_attention_mask.view(batch, -1), dtype)[:, None, None]
        if attention_mask is not None:
            # A token is real if any of its latent pixels is.
            real = F.max_pool2d(attention_mask.float(), patch).flatten(2).bool()
            token_bias = attention_bias(real, dtype)

        cond = Conditioning(modulation, text, text_bias, token_bias)
        temporal = self.temporal_transformer_blocks if enable_temporal_attentions else ()
        positions = self.frame_positions(num_frames).to(dtype)
        start = partial(self.pos_embed, hidden_states.to(dtype))
        x = run_pairs(self.transformer_blocks, temporal, start, positions, cond, seam)

        shift, scale = (self.scale_shift_table + embedding[:, None])[:, :, None, None].unbind(1)  # each [B, 1, 1, D]
        x = self.proj_out(modulate(self.norm_out(x), shift, scale))
        return unpatchify(x, patch, height // patch, width // patch).float()

    def frame_positions(self, num_frames: int) -> Tensor:
        """Sinusoidal position of each latent frame -> float32 [T, 1, D]."""
        frames = torch.arange(num_frames, dtype=torch.float32, device=self.proj_out.weight.device)
        return sincos_positions(frames / self.time_scale, self.config.hidden_size)[:, None]
