"""The video autoencoder of Open-Sora 1.2.

Two autoencoders in a row. A Stable Diffusion image autoencoder shrinks every frame in space; a small causal 3D network
then shrinks the sequence of frame latents in time:

    video [B, 3, T, H, W] -> spatial latent [B, C, T, h, w] -> latent [B, Z, T', h, w]

Time runs in chunks of ``micro_frame_size`` frames that know nothing of each other. Inside a chunk the convolutions look
at earlier frames only; a chunk whose length is no multiple of the time factor is padded with zeros in front, and
decoding cuts them off again (17 frames with time factor 4: padded to 20, 5 latent frames).

Module names follow the released checkpoint (hpcai-tech/OpenSora-VAE-v1.2), so its state dict loads strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import PabError
from .images import OFFICIAL_SPATIAL, SpatialVAE, draw, frames_to_video, video_to_frames
from .temporal import TemporalConfig, TemporalVAE
from .tiling import Progress, Tiling, separate, split, tiled
from .video_vae import VideoVAE


class OpenSoraVAE(VideoVAE):
    """Video [B, 3, T, H, W] in [-1, 1] <-> normalised latent [B, Z, T', h, w].

    ``micro_frame_size``: frames per chunk in time, None = the whole clip is one chunk (this changes the result).
    ``micro_batch_size``: frames that ``encode`` and ``decode`` hand to the image autoencoder at once, None = all; this
    is about memory only.
    ``scale``, ``shift``: latent = (raw latent - shift) / scale; one number or one per latent channel.
    """

    scale: Tensor
    shift: Tensor
    tile_frames = (4, 2, 1)

    def __init__(
        self,
        spatial: Mapping[str, Any],
        temporal: TemporalConfig,
        *,
        micro_frame_size: int | None = 17,
        micro_batch_size: int | None = 4,
        scale: float | list[float] = 1.0,
        shift: float | list[float] = 0.0,
    ) -> None:
        super().__init__()
        self.spatial_vae = SpatialVAE(spatial)
        self.temporal_vae = TemporalVAE(temporal)
        self.latent_channels = temporal.embed_dim
        self.micro_frame_size = micro_frame_size
        self.micro_batch_size = micro_batch_size
        levels = len(self.spatial_vae.module.config["block_out_channels"])
        self.spatial_factor = 2 ** (levels - 1)
        if self.spatial_vae.module.config["latent_channels"] != temporal.in_out_channels:
            raise PabError(
                f"The image autoencoder gives {self.spatial_vae.module.config['latent_channels']} channels, but "
                f"vae_temporal.in_out_channels is {temporal.in_out_channels}; correct the VAE's config.json."
            )
        for name, value in (("scale", scale), ("shift", shift)):
            buffer = torch.tensor(value, dtype=torch.float32)
            if buffer.ndim:
                if buffer.shape != (temporal.embed_dim,):
                    raise PabError(
                        f"The VAE's {name} must be one number or {temporal.embed_dim} numbers, one for each latent "
                        f"channel; config.json has {value}."
                    )
                buffer = buffer.view(1, -1, 1, 1, 1)
            self.register_buffer(name, buffer)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OpenSoraVAE:
        """Builds the autoencoder from the contents of a config.json, without weights and without any download.

        The released config.json names the parts but not their sizes: sizes that are absent (``vae_2d.config``, fields
        of ``vae_temporal``) are the official ones.
        """
        spatial = config.get("vae_2d") or {}
        return cls(
            spatial.get("config") or OFFICIAL_SPATIAL,
            TemporalConfig.from_dict(config.get("vae_temporal") or {}),
            micro_frame_size=config.get("micro_frame_size", 17),
            micro_batch_size=spatial.get("micro_batch_size", 4),
            scale=config.get("scale", 1.0),
            shift=config.get("shift", 0.0),
        )

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames and pixels -> (T', h, w). Pixels beyond a multiple of ``spatial_factor`` are dropped."""
        return sum(self.chunk_latents(num_frames)), height // self.spatial_factor, width // self.spatial_factor

    def chunk_frames(self, num_frames: int) -> list[int]:
        """How many frames each chunk in time holds: 51 -> [17, 17, 17], 20 -> [17, 3]."""
        if num_frames < 1:
            raise PabError(f"A video needs at least 1 frame, but num_frames is {num_frames}.")
        return split(num_frames, self.micro_frame_size or num_frames)

    def chunk_latents(self, num_frames: int) -> list[int]:
        """How many latent frames each chunk has: 51 -> [5, 5, 5]."""
        return [-(-frames // self.temporal_vae.time_factor) for frames in self.chunk_frames(num_frames)]

    def normalize(self, z: Tensor) -> Tensor:
        """Raw latent -> latent of about unit variance, as the transformer sees it."""
        return (z - self.shift.to(z.dtype)) / self.scale.to(z.dtype)

    def denormalize(self, z: Tensor) -> Tensor:
        """Inverse of ``normalize``."""
        return z * self.scale.to(z.dtype) + self.shift.to(z.dtype)

    def encode_spatial(
        self,
        video: Tensor,
        micro_batch_size: int | None = None,
        progress: Progress | None = None,
        tiling: Tiling | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video [B, 3, T, H, W] -> mean and standard deviation of the spatial latent, each [B, C, T, h, w]."""

        def encode(tile: Tensor, kept: int) -> Tensor:
            return frames_to_video(torch.cat(self.spatial_vae.encode(video_to_frames(tile)), dim=1), len(tile))

        if tiling is not None:
            units = (self.spatial_factor, 1)
            both = self._tiled_frames(encode, video, micro_batch_size, units, progress, tiling)
            mean, std = both.chunk(2, dim=1)
            return mean, std
        frames = video_to_frames(video)
        parts = []
        done = 0
        for part in frames.split(micro_batch_size or len(frames)):
            parts.append(self.spatial_vae.encode(part))
            done += len(part)
            if progress is not None:
                progress(done, len(frames))
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return frames_to_video(mean, len(video)), frames_to_video(std, len(video))

    def encode_temporal(self, spatial_latent: Tensor, tiling: Tiling | None = None) -> tuple[Tensor, Tensor]:
        """Spatial latent [B, C, T, h, w] -> mean and log variance of the raw latent, each [B, Z, T', h, w]."""

        def encode(tile: Tensor, kept: int) -> Tensor:
            return torch.cat(self.temporal_vae.encode(tile), dim=1)

        frames = self.chunk_frames(spatial_latent.shape[2])
        if tiling is not None:
            pieces = separate(frames, self.chunk_latents(spatial_latent.shape[2]))
            both = tiled(encode, spatial_latent, pieces, tiling.tile(self.spatial_factor), (1, 1))
            mean, logvar = both.chunk(2, dim=1)
            return mean, logvar
        means, logvars = zip(*map(self.temporal_vae.encode, spatial_latent.split(frames, dim=2)), strict=True)
        return torch.cat(means, dim=2), torch.cat(logvars, dim=2)

    def decode_temporal(self, z: Tensor, num_frames: int, tiling: Tiling | None = None) -> Tensor:
        """Raw latent [B, Z, T', h, w] -> spatial latent [B, C, num_frames, h, w]."""
        frames, sizes = self.chunk_frames(num_frames), self.chunk_latents(num_frames)
        if z.shape[2] != sum(sizes):
            raise PabError(
                f"{num_frames} frames are {sum(sizes)} latent frames, but the latent has {z.shape[2]}; "
                f"decode with the number of frames that the latent was made for."
            )
        if tiling is not None:
            tile = tiling.tile(self.spatial_factor)
            return tiled(self.temporal_vae.decode, z, separate(sizes, frames), tile, (1, 1))
        parts = zip(z.split(sizes, dim=2), frames, strict=True)
        return torch.cat([self.temporal_vae.decode(part, count) for part, count in parts], dim=2)

    def decode_spatial(
        self,
        spatial_latent: Tensor,
        micro_batch_size: int | None = None,
        progress: Progress | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """Spatial latent [B, C, T, h, w] -> video [B, 3, T, H, W]."""

        def decode(tile: Tensor, kept: int) -> Tensor:
            return frames_to_video(self.spatial_vae.decode(video_to_frames(tile)), len(tile))

        if tiling is not None:
            units = (1, self.spatial_factor)
            return self._tiled_frames(decode, spatial_latent, micro_batch_size, units, progress, tiling)
        latents = video_to_frames(spatial_latent)
        parts = []
        done = 0
        for part in latents.split(micro_batch_size or len(latents)):
            parts.append(self.spatial_vae.decode(part))
            done += len(part)
            if progress is not None:
                progress(done, len(latents))
        return frames_to_video(torch.cat(parts), len(spatial_latent))

    def _tiled_frames(
        self,
        convert: Callable[[Tensor, int], Tensor],
        x: Tensor,
        micro_batch_size: int | None,
        units: tuple[int, int],
        progress: Progress | None,
        tiling: Tiling,
    ) -> Tensor:
        """Frames know nothing of each other, so how many go at once changes no result."""
        images = min(micro_batch_size or x.shape[2], tiling.frames)
        lengths = split(x.shape[2], max(images // len(x), 1))
        tile = tiling.tile(self.spatial_factor)
        return tiled(convert, x, separate(lengths, lengths), tile, units, progress)

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """For training: video [B, 3, T, H, W] -> mean and log variance of the raw latent, each [B, Z, T', h, w].

        The spatial latent's mean goes on to the temporal part. Differentiable, all frames in one batch.
        """
        return self.encode_temporal(self.encode_spatial(video)[0])

    def decode_raw(self, z: Tensor, num_frames: int) -> Tensor:
        """For training: raw latent [B, Z, T', h, w] -> video [B, 3, num_frames, H, W], all frames in one batch."""
        return self.decode_spatial(self.decode_temporal(z, num_frames))

    def sample_spatial(
        self,
        video: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """Video [B, 3, T, H, W] -> a draw of the spatial latent [B, C, T, h, w]; ``noise`` [B * T, C, h, w]."""
        mean, std = self.encode_spatial(video, self.micro_batch_size, progress, tiling)
        noise = draw(mean, generator) if noise is None else frames_to_video(noise.to(mean), len(video))
        return mean + std * noise

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        *,
        sample_posterior: bool = False,
        spatial_noise: Tensor | None = None,
        temporal_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """Video [B, 3, T, H, W] in [-1, 1] -> normalised latent [B, Z, T', h, w].

        Both posteriors give their means, or with ``sample_posterior`` a draw: from ``spatial_noise`` [B * T, C, h, w]
        (frame order) and ``temporal_noise`` [B, Z, T', h, w] where given, else from ``generator``. With ``tiling``,
        each of the two parts works in tiles of its own, here and in ``decode``: neither draws nor blended seams differ
        between tiles of the second part.
        """
        if not sample_posterior:
            spatial = self.encode_spatial(video, self.micro_batch_size, progress, tiling)[0]
            return self.normalize(self.encode_temporal(spatial, tiling)[0])
        spatial = self.sample_spatial(video, spatial_noise, generator, progress, tiling)
        mean, logvar = self.encode_temporal(spatial, tiling)
        noise = draw(mean, generator) if temporal_noise is None else temporal_noise.to(mean)
        return self.normalize(mean + torch.exp(0.5 * logvar) * noise)

    @torch.no_grad()
    def decode(
        self, z: Tensor, num_frames: int, progress: Progress | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Normalised latent [B, Z, T', h, w] -> video [B, 3, num_frames, H, W] in about [-1, 1] (not clamped).

        ``progress`` is called after each micro batch of the image decoder with the frames done and those in all, or the
        tiles where there is a tiling; what it raises stops the decoding and reaches the caller. A tiling with tiles as
        large as the frames changes nothing but how many frames go at once: time runs in chunks either way.
        """
        spatial_latent = self.decode_temporal(self.denormalize(z), num_frames, tiling)
        return self.decode_spatial(spatial_latent, self.micro_batch_size, progress, tiling)
