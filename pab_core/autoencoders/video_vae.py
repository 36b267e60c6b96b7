"""What every video autoencoder here can do, so that nobody who decodes or encodes need know the family."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .tiling import Progress, Tiling


class VideoVAE(nn.Module, ABC):
    """Video [B, 3, T, H, W] in [-1, 1] <-> latents [B, Z, T', h, w] as the transformer sees them.

    A class, not a typing.Protocol: whoever holds one also moves it between devices and reads its parameters.
    """

    latent_channels: int
    spatial_factor: int  # pixels of a latent pixel's side
    authors_tiling: Tiling | None = None  # with which the authors decode
    # Lengths of a tile for `choose_tiling` to try, best first: the authors' own, then as far down as results stay good.
    tile_frames: tuple[int, ...]

    @abstractmethod
    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames and pixels -> (T', h, w)."""

    @abstractmethod
    def decode(
        self, z: Tensor, num_frames: int, progress: Progress | None = None, tiling: Tiling | None = None
    ) -> Tensor:
        """Latents [B, Z, T', h, w] -> video [B, 3, num_frames, H, W] in about [-1, 1] (not clamped).

        `progress(pieces done, pieces in all)` is called after each; what it raises stops the decoding and reaches the
        caller. `tiling`: None = whole frames.
        """

    @abstractmethod
    def encode(
        self,
        video: Tensor,
        *,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """Video [B, 3, T, H, W] in [-1, 1] -> latents [B, Z, T', h, w].

        The mean of the posterior, or with `sample_posterior` a draw from the generator. Otherwise as `decode`.
        """
