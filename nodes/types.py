"""What travels between the nodes beside the host's own types, and the ways into and out of those."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pab_core import PabError, Pipeline, Policy
from pab_core.broadcast import Window, customise, preset
from pab_core.models.registry import ModelSpec
from pab_core.text import TextEmbedding

from . import host

ModelType = host.io.Custom("PAB_MODEL")
PolicyType = host.io.Custom("PAB_POLICY")


class LoadedModel:
    """A pipeline and the handles by which the host moves its parts; what PAB_MODEL carries."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self.transformer = host.managed(pipeline.transformer)
        self.text_encoder = host.managed(pipeline.text_encoder)
        self.vae = host.managed(pipeline.vae)


@dataclass(frozen=True)
class BroadcastSettings:
    """The sliders of the broadcast node; what PAB_POLICY carries. 0 leaves a value as the policy has it."""

    policy: str
    spatial: int
    temporal: int
    cross: int
    mlp: bool
    window_start: float
    window_stop: float

    def __post_init__(self) -> None:
        if self.window_stop > 0:  # else it is the policy's, which only the model's family tells
            Window(self.window_start, self.window_stop)

    def for_model(self, spec: ModelSpec) -> Policy:
        """The policy that these settings mean for a model; PabError where they do not go together."""
        base = preset(self.policy, spec.family, spec.depth)
        ranges = {"spatial": self.spatial, "temporal": self.temporal, "cross": self.cross}
        window = None
        if self.window_start > 0 or self.window_stop > 0:
            window = Window(self.window_start, self.window_stop or base.window.stop)
        # The toggle takes the MLP out of any policy and joins it to ranges set by hand; alone it leaves "off" off.
        mlp = (True if any(ranges.values()) else None) if self.mlp else False
        changes = {kind: value or None for kind, value in ranges.items()}
        return customise(base, spec.family, spec.depth, **changes, mlp=mlp, window=window)


def to_conditioning(text: TextEmbedding) -> list[list[Any]]:
    device = host.result_device()
    return [[text.tokens.to(device), {"attention_mask": text.mask.to(device)}]]


def from_conditioning(conditioning: list[list[Any]], pipeline: Pipeline) -> TextEmbedding:
    """The host's CONDITIONING -> what the pipeline takes. PabError if this model cannot be guided by it."""
    if len(conditioning) != 1:
        raise PabError(
            f"The conditioning holds {len(conditioning)} prompts side by side, and the Video Sampler takes one: write "
            "them into one Text Encode (PAB)."
        )
    tokens, extra = conditioning[0]
    config = pipeline.transformer.config
    if tokens.shape[0] != 1 or tokens.shape[-1] != config.caption_channels:
        raise PabError(
            f"The conditioning was made by another text encoder ({tokens.shape[-1]} channels, {pipeline.spec.title} "
            f"reads {config.caption_channels}): connect Text Encode (PAB) with the same model."
        )
    mask = extra.get("attention_mask")
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
    if mask.shape != tokens.shape[:2] or not 0 < int(mask.sum()) <= config.model_max_length:
        raise PabError(
            f"The conditioning has {tokens.shape[1]} tokens, and {pipeline.spec.title} reads 1 to "
            f"{config.model_max_length}: use it as it comes from Text Encode (PAB)."
        )
    kept = mask[0].nonzero()[:, 0].to(tokens.device)
    return TextEmbedding(tokens[:, kept], torch.ones(1, len(kept), dtype=torch.bool, device=tokens.device))


def to_latent(samples: Tensor, num_frames: int) -> dict[str, Any]:
    """Latents [1, C, T, h, w] as the host's LATENT. Their length does not tell that of the clip: it goes along."""
    return {"samples": samples.to(host.result_device()), "num_frames": num_frames}


def from_latent(latent: dict[str, Any], pipeline: Pipeline) -> tuple[Tensor, int]:
    """The host's LATENT -> latents [1, C, T, h, w] and the number of frames. PabError if they are not this model's."""
    samples, num_frames = latent["samples"], latent.get("num_frames", 0)
    expected = (1, pipeline.transformer.config.in_channels, pipeline.spec.latent_frames(num_frames))
    if samples.ndim != 5 or num_frames < 1 or samples.shape[:3] != expected:
        raise PabError(
            f"The latents {list(samples.shape)} do not come from {pipeline.spec.title}: connect a Video Sampler (PAB) "
            "that runs the same model."
        )
    return samples, num_frames
