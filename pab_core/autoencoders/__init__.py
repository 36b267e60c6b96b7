"""Video autoencoders: pixels to latents and back."""

from .open_sora import OpenSoraVAE

__all__ = ["OpenSoraVAE"]
