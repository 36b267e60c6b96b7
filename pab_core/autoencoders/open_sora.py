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
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from ..errors import PabError
from .temporal import TemporalConfig, TemporalVAE

# Fixed in the authors' code, whatever scaling factor the image autoencoder's own config names.
SPATIAL_SCALE = 0.18215

# The image autoencoder of the released model (SDXL's), for configs that only name where it came from.
OFFICIAL_SPATIAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}

Progress = Callable[[int, int], None]


class SpatialVAE(nn.Module):
    """The image autoencoder, frame by frame; its latents are scaled by 0.18215."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        module = AutoencoderKL.from_config(dict(config))
        assert isinstance(module, AutoencoderKL)
        self.module = module

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] -> mean and standard deviation, each [N, C, h, w]"""
        posterior = self.module.encode(frames, return_dict=False)[0]
        return posterior.mean * SPATIAL_SCALE, posterior.std * SPATIAL_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, 3, H, W]"""
        # diffusers' annotation asks for a FloatTensor; any float tensor does.
        return self.module.decode(latents / SPATIAL_SCALE, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


class OpenSoraVAE(nn.Module):
    """Video [B, 3, T, H, W] in [-1, 1] <-> normalised latent [B, Z, T', h, w].

    ``micro_frame_size``: frames per chunk in time, None = the whole clip is one chunk (this changes the result).
    ``micro_batch_size``: frames that ``encode`` and ``decode`` hand to the image autoencoder at once, None = all; this
    is about memory only.
    ``scale``, ``shift``: latent = (raw latent - shift) / scale; one number or one per latent channel.
    """

    scale: Tensor
    shift: Tensor

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
        latent_frames = sum(-(-frames // self.temporal_vae.time_factor) for frames in self.chunk_frames(num_frames))
        return latent_frames, height // self.spatial_factor, width // self.spatial_factor

    def chunk_frames(self, num_frames: int) -> list[int]:
        """How many frames each chunk in time holds: 51 -> [17, 17, 17], 20 -> [17, 3]."""
        if num_frames < 1:
            raise PabError(f"A video needs at least 1 frame, but num_frames is {num_frames}.")
        size = self.micro_frame_size or num_frames
        return [min(size, num_frames - start) for start in range(0, num_frames, size)]

    def normalize(self, z: Tensor) -> Tensor:
        """Raw latent -> latent of about unit variance, as the transformer sees it."""
        return (z - self.shift.to(z.dtype)) / self.scale.to(z.dtype)

    def denormalize(self, z: Tensor) -> Tensor:
        """Inverse of ``normalize``."""
        return z * self.scale.to(z.dtype) + self.shift.to(z.dtype)

    def encode_spatial(self, video: Tensor, micro_batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Video [B, 3, T, H, W] -> mean and standard deviation of the spatial latent, each [B, C, T, h, w]."""
        frames = video_to_frames(video)
        parts = [self.spatial_vae.encode(part) for part in frames.split(micro_batch_size or len(frames))]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return frames_to_video(mean, len(video)), frames_to_video(std, len(video))

    def encode_temporal(self, spatial_latent: Tensor) -> tuple[Tensor, Tensor]:
        """Spatial latent [B, C, T, h, w] -> mean and log variance of the raw latent, each [B, Z, T', h, w]."""
        chunks = spatial_latent.split(self.chunk_frames(spatial_latent.shape[2]), dim=2)
        means, logvars = zip(*(self.temporal_vae.encode(chunk) for chunk in chunks), strict=True)
        return torch.cat(means, dim=2), torch.cat(logvars, dim=2)

    def decode_temporal(self, z: Tensor, num_frames: int) -> Tensor:
        """Raw latent [B, Z, T', h, w] -> spatial latent [B, C, num_frames, h, w]."""
        frames = self.chunk_frames(num_frames)
        sizes = [-(-count // self.temporal_vae.time_factor) for count in frames]
        if z.shape[2] != sum(sizes):
            raise PabError(
                f"{num_frames} frames are {sum(sizes)} latent frames, but the latent has {z.shape[2]}; "
                f"decode with the number of frames that the latent was made for."
            )
        parts = zip(z.split(sizes, dim=2), frames, strict=True)
        return torch.cat([self.temporal_vae.decode(part, count) for part, count in parts], dim=2)

    def decode_spatial(
        self, spatial_latent: Tensor, micro_batch_size: int | None = None, progress: Progress | None = None
    ) -> Tensor:
        """Spatial latent [B, C, T, h, w] -> video [B, 3, T, H, W]; ``progress(frames done, frames in all)``."""
        latents = video_to_frames(spatial_latent)
        parts = []
        done = 0
        for part in latents.split(micro_batch_size or len(latents)):
            parts.append(self.spatial_vae.decode(part))
            done += len(part)
            if progress is not None:
                progress(done, len(latents))
        return frames_to_video(torch.cat(parts), len(spatial_latent))

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """For training: video [B, 3, T, H, W] -> mean and log variance of the raw latent, each [B, Z, T', h, w].

        The spatial latent's mean goes on to the temporal part. Differentiable, all frames in one batch.
        """
        return self.encode_temporal(self.encode_spatial(video)[0])

    def decode_raw(self, z: Tensor, num_frames: int) -> Tensor:
        """For training: raw latent [B, Z, T', h, w] -> video [B, 3, num_frames, H, W], all frames in one batch."""
        return self.decode_spatial(self.decode_temporal(z, num_frames))

    def sample_spatial(
        self, video: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Video [B, 3, T, H, W] -> a draw of the spatial latent [B, C, T, h, w]; ``noise`` [B * T, C, h, w]."""
        mean, std = self.encode_spatial(video, self.micro_batch_size)
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
    ) -> Tensor:
        """Video [B, 3, T, H, W] in [-1, 1] -> normalised latent [B, Z, T', h, w].

        Both posteriors give their means, or with ``sample_posterior`` a draw: from ``spatial_noise`` [B * T, C, h, w]
        (frame order) and ``temporal_noise`` [B, Z, T', h, w] where given, else from ``generator``.
        """
        if not sample_posterior:
            return self.normalize(self.encode_temporal(self.encode_spatial(video, self.micro_batch_size)[0])[0])
        mean, logvar = self.encode_temporal(self.sample_spatial(video, spatial_noise, generator))
        noise = draw(mean, generator) if temporal_noise is None else temporal_noise.to(mean)
        return self.normalize(mean + torch.exp(0.5 * logvar) * noise)

    @torch.no_grad()
    def decode(self, z: Tensor, num_frames: int, progress: Progress | None = None) -> Tensor:
        """Normalised latent [B, Z, T', h, w] -> video [B, 3, num_frames, H, W] in about [-1, 1] (not clamped).

        ``progress(frames done, frames in all)`` is called after each micro batch of the image decoder; what it raises
        stops the decoding and reaches the caller.
        """
        spatial_latent = self.decode_temporal(self.denormalize(z), num_frames)
        return self.decode_spatial(spatial_latent, self.micro_batch_size, progress)


def draw(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of that shape, drawn on the generator's own device: a CPU seed is the same everywhere."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like)


def video_to_frames(video: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]"""
    return video.transpose(1, 2).flatten(0, 1)


def frames_to_video(frames: Tensor, batch: int) -> Tensor:
    """[B * T, C, H, W] -> [B, C, T, H, W]"""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
