"""Latte's two autoencoders, both made of diffusers' modules.

    video [B, 3, T, H, W] in [-1, 1] <-> latents [B, Z, T, H / 8, W / 8]

The transformer works on latents of an image autoencoder (`vae/`, that of Stable Diffusion); time is not shrunk. Frames
are decoded by it one by one, or by a decoder that looks at their neighbours too (`vae_temporal_decoder/`, that of
Stable Video Diffusion), which is the authors' default.

Source: maxin-cn/Latte-1, and its authors' pipeline as re-published in NUS-HPC-AI-Lab/VideoSys: scale by the config's
scaling_factor, one image at a time, or 14 frames at a time that see nothing of the next 14. Module names follow the
released files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import PabError
from .images import draw, frames_to_video, video_to_frames
from .tiling import Progress, Tile, Tiling, separate, split, tiled
from .video_vae import VideoVAE

# Attention's parameters in diffusers' image autoencoders until 2023, and now.
FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class LatteVAE(VideoVAE):
    """Video [B, 3, T, H, W] in [-1, 1] <-> latents [B, Z, T, h, w], scaled as the transformer sees them.

    `temporal`: whether the decoder looks at neighbouring frames. `frames_at_once`: how many are decoded together.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder

        super().__init__()
        kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderKLTemporalDecoder)}
        name = config.get("_class_name")
        if name not in kinds:
            said = f"The VAE's config.json names the class {name}" if name else "No config.json says what the VAE is"
            raise PabError(
                f"{said}, but Latte's is {' or '.join(kinds)}; give the folder vae or vae_temporal_decoder of its "
                "checkpoint."
            )
        module = kinds[name].from_config(dict(config))
        assert isinstance(module, (AutoencoderKL, AutoencoderKLTemporalDecoder))
        self.temporal = isinstance(module, AutoencoderKLTemporalDecoder)
        self.frames_at_once = 14 if self.temporal else 1
        self.tile_frames = (14, 7, 4) if self.temporal else (1,)
        # Its parts without itself, since the released files name them so.
        self.encoder, self.decoder, self.quant_conv = module.encoder, module.decoder, module.quant_conv
        self.post_quant_conv = getattr(module, "post_quant_conv", None)
        self.latent_channels: int = module.config["latent_channels"]
        self.spatial_factor = 2 ** (len(module.config["block_out_channels"]) - 1)
        self.scale: float = module.config["scaling_factor"]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LatteVAE:
        """Builds the autoencoder from the contents of a config.json, without weights."""
        return cls(config)

    def former_names(self) -> dict[str, str]:
        """Names of parameters in files that an older diffusers wrote -> the names of now."""
        names = {}
        for name in self.state_dict():
            for former, now in FORMER_NAMES.items():
                if f".attentions.0.{now}." in name:
                    names[name.replace(f".{now}.", f".{former}.")] = name
        return names

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames and pixels -> (T', h, w). Pixels beyond a multiple of `spatial_factor` are dropped."""
        return num_frames, height // self.spatial_factor, width // self.spatial_factor

    def encode_moments(self, video: Tensor, progress: Progress | None = None, tiling: Tiling | None = None) -> Tensor:
        """Video [B, 3, T, H, W] -> mean and log variance of the raw latents, side by side: [B, 2 Z, T, h, w]."""

        def encode(tile: Tensor, kept: int) -> Tensor:
            moments = self.encoder(video_to_frames(tile))
            return frames_to_video(moments if self.quant_conv is None else self.quant_conv(moments), len(tile))

        # The encoder knows nothing of neighbouring frames, whatever the decoder does.
        return self._in_pieces(encode, video, 1, (self.spatial_factor, 1), progress, tiling)

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
        """Video [B, 3, T, H, W] in [-1, 1] -> latents [B, Z, T, h, w].

        The mean of the posterior, or with `sample_posterior` a draw: from `noise` [B, Z, T, h, w] where given, else
        from `generator`.
        """
        mean, logvar = self.encode_moments(video, progress, tiling).chunk(2, dim=1)
        if sample_posterior:
            noise = draw(mean, generator) if noise is None else noise.to(mean)
            mean = mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise
        return mean * self.scale

    @torch.no_grad()
    def decode(
        self, z: Tensor, num_frames: int | None = None, progress: Progress | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Latents [B, Z, T, h, w] -> video [B, 3, T, H, W] in about [-1, 1] (not clamped).

        `progress(tiles done, tiles in all)` is called after each tile, or after each 14 frames or single image where
        there is no tiling. With the temporal decoder, tiles of fewer than 14 frames change the result a little.
        """

        def decode(tile: Tensor, kept: int) -> Tensor:
            latents = video_to_frames(tile)
            if self.post_quant_conv is not None:
                latents = self.post_quant_conv(latents)
            if not self.temporal:
                return frames_to_video(self.decoder(latents), len(tile))
            # One of its mixtures tells images from clips; all here are clips.
            no_images = latents.new_zeros(len(tile), kept)
            frames = self.decoder(latents, num_frames=kept, image_only_indicator=no_images)
            return frames_to_video(frames, len(tile))

        if num_frames not in (None, z.shape[2]):
            raise PabError(
                f"{num_frames} frames are {num_frames} latent frames, but the latents have {z.shape[2]}; "
                "decode with the number of frames that the latents were made for."
            )
        units = (1, self.spatial_factor)
        return self._in_pieces(decode, z / self.scale, self.frames_at_once, units, progress, tiling)

    def _in_pieces(
        self,
        convert: Callable[[Tensor, int], Tensor],
        x: Tensor,
        frames: int,
        units: tuple[int, int],
        progress: Progress | None,
        tiling: Tiling | None,
    ) -> Tensor:
        """Pieces of `frames` or, with a tiling, fewer; without one, a tile is as large as the frames."""
        tile = Tile(max(x.shape[3:]), 0, even=True) if tiling is None else tiling.tile(self.spatial_factor)
        lengths = split(x.shape[2], frames if tiling is None else min(frames, tiling.frames))
        return tiled(convert, x, separate(lengths, lengths), tile, units, progress)
