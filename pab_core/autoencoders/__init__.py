"""Video autoencoders: pixels to latents and back."""

from .open_sora import OpenSoraVAE
from .open_sora_plan import CausalVAE

__all__ = ["CausalVAE", "OpenSoraVAE"]
