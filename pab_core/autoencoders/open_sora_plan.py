"""The causal video autoencoder of Open-Sora-Plan v1.1.0.

    video [B, 3, T, H, W] in [-1, 1] <-> latents [B, Z, T', H / 8, W / 8],  T = 4 (T' - 1) + 1

Convolutions look at earlier frames only, so the first frame is encoded as an image and a clip can be worked on in
chunks of time. Tiling bounds the memory: chunks that share one frame, and in each chunk overlapping tiles whose seams
are blended. It changes the result a little, since a tile does not know what lies before and around it.

Source: PKU-YuanGroup/Open-Sora-Plan (v1.1.0) and its re-publication in NUS-HPC-AI-Lab/VideoSys. Module names follow the
released checkpoint (LanguageBind/Open-Sora-Plan-v1.1.0, vae/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PabError
from .causal import ATTENTIONS, CONVS, RESAMPLERS, RESIDUAL_BLOCKS, norm, part
from .images import draw
from .tiling import Piece, Progress, Tiling, tiled
from .video_vae import VideoVAE

LATENT_SCALE = 0.18215


@dataclass(frozen=True)
class CausalVAEConfig:
    """The fields of a released config.json that shape the autoencoder; the defaults are the released v1.1.0.

    One entry for each level, widest resolution first; "" where a level does not resample.
    """

    hidden_size: int = 128
    hidden_size_mult: tuple[int, ...] = (1, 2, 4, 4)
    z_channels: int = 4
    embed_dim: int = 4
    double_z: bool = True
    num_res_blocks: int = 2
    resolution: int = 256
    attn_resolutions: tuple[int, ...] = ()
    q_conv: str = "CausalConv3d"
    encoder_conv_in: str = "Conv2d"
    encoder_conv_out: str = "CausalConv3d"
    encoder_attention: str = "AttnBlock3DFix"
    encoder_mid_resnet: str = "ResnetBlock3D"
    encoder_resnet_blocks: tuple[str, ...] = ("ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D")
    encoder_spatial_downsample: tuple[str, ...] = ("Downsample", "Downsample", "Downsample", "")
    encoder_temporal_downsample: tuple[str, ...] = ("", "TimeDownsampleRes2x", "TimeDownsampleRes2x", "")
    decoder_conv_in: str = "CausalConv3d"
    decoder_conv_out: str = "CausalConv3d"
    decoder_attention: str = "AttnBlock3DFix"
    decoder_mid_resnet: str = "ResnetBlock3D"
    decoder_resnet_blocks: tuple[str, ...] = ("ResnetBlock3D",) * 4
    decoder_spatial_upsample: tuple[str, ...] = ("", *("SpatialUpsample2x",) * 3)
    decoder_temporal_upsample: tuple[str, ...] = ("", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x")

    def __post_init__(self) -> None:
        for name in _LEVEL_FIELDS:
            if len(getattr(self, name)) != len(self.hidden_size_mult):
                raise PabError(
                    f"The VAE's config.json has {len(getattr(self, name))} entries in {name}, but "
                    f"{len(self.hidden_size_mult)} levels in hidden_size_mult; correct the file."
                )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> CausalVAEConfig:
        """Reads a config.json; entries that are about training only are left out."""
        known: dict[str, Any] = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        for name, value in known.items():
            if isinstance(value, list):
                known[name] = tuple(value)
        return cls(**known)

    @property
    def widths(self) -> list[int]:
        return [self.hidden_size * factor for factor in self.hidden_size_mult]


_LEVEL_FIELDS = (
    "encoder_resnet_blocks",
    "encoder_spatial_downsample",
    "encoder_temporal_downsample",
    "decoder_resnet_blocks",
    "decoder_spatial_upsample",
    "decoder_temporal_upsample",
)


class Middle(nn.Module):
    """[B, C, T, h, w] -> the same: the blocks at the lowest resolution."""

    def __init__(self, channels: int, resnet: str, attention: str) -> None:
        super().__init__()
        self.block_1 = part(RESIDUAL_BLOCKS, resnet)(channels, channels)
        self.attn_1 = part(ATTENTIONS, attention)(channels)
        self.block_2 = part(RESIDUAL_BLOCKS, resnet)(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks, each with attention where the config asks for it, then resampling in space and in time."""

    def __init__(self, widths: list[int], resnet: str, attention: str | None, resamplers: dict[str, str]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(part(RESIDUAL_BLOCKS, resnet)(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(part(ATTENTIONS, attention)(b) for _, b in pairs if attention is not None)
        self.resamplers = [name for name, kind in resamplers.items() if kind]
        for name in self.resamplers:
            self.add_module(name, part(RESAMPLERS, resamplers[name])(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in self.resamplers:
            x = self.get_submodule(name)(x)
        return x


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] -> [B, 2 z_channels, T', h, w]"""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        width, side = config.hidden_size, config.resolution
        self.conv_in = part(CONVS, config.encoder_conv_in)(3, width, 3)
        self.down = nn.ModuleList()
        for i, level_width in enumerate(config.widths):
            space, time = config.encoder_spatial_downsample[i], config.encoder_temporal_downsample[i]
            self.down.append(
                Level(
                    [width, *[level_width] * config.num_res_blocks],
                    config.encoder_resnet_blocks[i],
                    config.encoder_attention if side in config.attn_resolutions else None,
                    {"downsample": space, "time_downsample": time},
                )
            )
            width, side = level_width, side // 2 if space else side
        self.mid = Middle(width, config.encoder_mid_resnet, config.encoder_attention)
        self.norm_out = norm(width)
        self.conv_out = part(CONVS, config.encoder_conv_out)(width, config.z_channels * (1 + config.double_z), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """[B, z_channels, T', h, w] -> video [B, 3, T, H, W]

    Levels are stored in the encoder's order and run backwards.
    """

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        levels = len(config.widths)
        width, side = config.widths[-1], config.resolution // 2 ** (levels - 1)
        self.conv_in = part(CONVS, config.decoder_conv_in)(config.z_channels, width, 3)
        self.mid = Middle(width, config.decoder_mid_resnet, config.decoder_attention)
        self.up = nn.ModuleList()
        for i in reversed(range(levels)):
            space, time = config.decoder_spatial_upsample[i], config.decoder_temporal_upsample[i]
            level = Level(
                [width, *[config.widths[i]] * (config.num_res_blocks + 1)],
                config.decoder_resnet_blocks[i],
                config.decoder_attention if side in config.attn_resolutions else None,
                {"upsample": space, "time_upsample": time},
            )
            self.up.insert(0, level)
            width, side = config.widths[i], side * 2 if space else side
        self.norm_out = norm(width)
        self.conv_out = part(CONVS, config.decoder_conv_out)(width, 3, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CausalVAE(VideoVAE):
    """Video [B, 3, T, H, W] in [-1, 1] <-> latents [B, Z, T', h, w], scaled by 0.18215 as the transformer sees them."""

    authors_tiling = Tiling(even=False)
    tile_frames = (29, 17)

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.embed_dim
        self.spatial_factor = 2 ** sum(map(bool, config.encoder_spatial_downsample))
        self.time_factor = 2 ** sum(map(bool, config.encoder_temporal_downsample))
        conv = part(CONVS, config.q_conv)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = conv(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = conv(config.embed_dim, config.z_channels, 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CausalVAE:
        """Builds the autoencoder from the contents of a config.json, without weights."""
        return cls(CausalVAEConfig.from_dict(config))

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames and pixels -> (T', h, w), each rounded up."""
        frames = -(-(num_frames - 1) // self.time_factor) + 1
        return frames, -(-height // self.spatial_factor), -(-width // self.spatial_factor)

    def latent_pieces(self, size: Sequence[int], tiling: Tiling | None) -> list[Piece]:
        """How time is cut for decoding latents of `size` (T', h, w): each piece starts with the last one's end.

        None at all where the clip is no larger than a tile, and is worked on whole.
        """
        if tiling is None:
            return []
        length = (tiling.frames - 1) // self.time_factor + 1
        if length < 2:
            raise PabError(
                f"A VAE tile of {tiling.frames} frames is 1 latent frame, but neighbouring pieces share one; take at "
                f"least {self.time_factor + 1} frames."
            )
        if size[0] <= length and max(size[1:]) <= tiling.tile(self.spatial_factor).side:
            return []
        firsts = range(0, max(size[0] - 1, 1), length - 1)
        ends = (min(first + length, size[0]) for first in firsts)
        return [Piece(a, b, (b - a - 1) * self.time_factor + (a == 0)) for a, b in zip(firsts, ends, strict=True)]

    def encode_moments(self, video: Tensor, progress: Progress | None = None, tiling: Tiling | None = None) -> Tensor:
        """Video [B, 3, T, H, W] -> mean and log variance of the raw latents, side by side: [B, 2 Z, T', h, w]."""

        def encode(x: Tensor, kept: int) -> Tensor:
            return self.quant_conv(self.encoder(x))

        pieces = self._frame_pieces(video.shape[2:], tiling)
        return self._convert(encode, video, pieces, (self.spatial_factor, 1), progress, tiling)

    def _frame_pieces(self, size: Sequence[int], tiling: Tiling | None) -> list[Piece]:
        """The same for encoding a video of `size` (T, H, W).

        Frames beyond the last whole latent one go to its piece as far as that reaches: they are in its norms.
        """
        time, frames = self.time_factor, size[0]
        pieces = []
        for first, end, _ in self.latent_pieces(self.latent_size(*size), tiling):
            start, stop = first * time, min((end - 1) * time + 1, frames)
            kept = (stop - 1 - start) // time + (first == 0)
            if kept:
                pieces.append(Piece(start, stop, kept))
        return pieces

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        *,
        sample_posterior: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """Video [B, 3, T, H, W] in [-1, 1] -> latents [B, Z, T', h, w].

        The mean of the posterior, or with `sample_posterior` a draw: from `noise` [B, Z, T', h, w] where given, else
        from `generator`.
        """
        mean, logvar = self.encode_moments(video, progress, tiling).chunk(2, dim=1)
        if sample_posterior:
            noise = draw(mean, generator) if noise is None else noise.to(mean)
            mean = mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise
        return mean * LATENT_SCALE

    @torch.no_grad()
    def decode(
        self, z: Tensor, num_frames: int | None = None, progress: Progress | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Latents [B, Z, T', h, w] -> video [B, 3, T, H, W] in about [-1, 1] (not clamped).

        `num_frames`: cut off frames beyond these; None = keep all 4 (T' - 1) + 1. `progress(tiles done, tiles in all)`
        is called after each tile; what it raises stops the decoding and reaches the caller. A tiling with tiles as
        large as the clip changes nothing.
        """

        def decode(x: Tensor, kept: int) -> Tensor:
            return self.decoder(self.post_quant_conv(x))

        frames = self.time_factor * (z.shape[2] - 1) + 1
        if num_frames is not None and num_frames > frames:
            raise PabError(
                f"{z.shape[2]} latent frames decode to {frames} frames, but {num_frames} were asked for; "
                "decode with the number of frames that the latents were made for."
            )
        pieces = self.latent_pieces(z.shape[2:], tiling)
        video = self._convert(decode, z / LATENT_SCALE, pieces, (1, self.spatial_factor), progress, tiling)
        return video[:, :, :num_frames]

    def _convert(
        self,
        convert: Callable[[Tensor, int], Tensor],
        x: Tensor,
        pieces: list[Piece],
        units: tuple[int, int],
        progress: Progress | None,
        tiling: Tiling | None,
    ) -> Tensor:
        if tiling is not None and pieces:
            return tiled(convert, x, pieces, tiling.tile(self.spatial_factor), units, progress)
        out = convert(x, x.shape[2])
        if progress is not None:
            progress(1, 1)
        return out
