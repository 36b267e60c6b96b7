"""Video autoencoders: pixels to latents and back."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import PabError
from .budget import choose_tiling, decode_bytes
from .latte import LatteVAE
from .open_sora import OpenSoraVAE
from .open_sora_plan import CausalVAE
from .tiling import Tiling
from .video_vae import VideoVAE

# By family of the model, as in models.registry.
FAMILIES: dict[str, Callable[[Mapping[str, Any]], VideoVAE]] = {
    "stdit3": OpenSoraVAE.from_config,
    "latte": LatteVAE.from_config,
    "open-sora-plan": CausalVAE.from_config,
}

__all__ = ["CausalVAE", "LatteVAE", "OpenSoraVAE", "Tiling", "VideoVAE", "build_vae", "choose_tiling", "decode_bytes"]


def build_vae(family: str, config: Mapping[str, Any]) -> VideoVAE:
    """The autoencoder of a family of models from the contents of its config.json, without weights.

    Build it under `torch.device("meta")` where weights are to be loaded.
    """
    if family not in FAMILIES:
        raise PabError(f"No autoencoder is known for models of the family '{family}'; known are {', '.join(FAMILIES)}.")
    return FAMILIES[family](config)
