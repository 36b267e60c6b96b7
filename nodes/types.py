"""What travels between the nodes beside the host's own types, and the ways into and out of those."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from pab_core import PabError, Pipeline, Policy
from pab_core.broadcast import AnyPolicy, Window, customise, find_policy
from pab_core.models.registry import ModelSpec
from pab_core.text import TextEmbedding, embedding_from_conditioning

from . import host

ModelType = host.io.Custom("PAB_MODEL")
PolicyType = host.io.Custom("PAB_POLICY")
NEGATIVE = "pab_negative"  # entry of a CONDITIONING that Text Encode (PAB) makes for models guided by a negative prompt


class LoadedModel:
    """A pipeline and the handles by which the host moves its parts; what PAB_MODEL carries."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self.transformer = host.managed(pipeline.transformer)
        self.vae = None if pipeline.vae is None else host.managed(pipeline.vae)

    @cached_property
    def text_encoder(self) -> Any:
        """Its weights are read on the first use: who changes a slider never needs them."""
        assert self.pipeline.text_encoder is not None
        return host.managed(self.pipeline.text_encoder.encoder)


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

    def for_model(self, spec: ModelSpec) -> AnyPolicy:
        """The policy that these settings mean for a model; PabError where they do not go together."""
        base = find_policy(self.policy, spec.family, spec.depth)
        ranges = {"spatial": self.spatial, "temporal": self.temporal, "cross": self.cross}
        window = None
        if self.window_start > 0 or self.window_stop > 0:
            stop = base.window.stop if isinstance(base, Policy) else 1.0
            window = Window(self.window_start, self.window_stop or stop)
        # The toggle takes the MLP out of a policy of ranges and joins it to ranges set by hand; alone it leaves "off"
        # off.
        mlp = (True if any(ranges.values()) else None) if self.mlp else False
        if not isinstance(base, Policy) and not self.mlp:
            mlp = None
        changes = {kind: value or None for kind, value in ranges.items()}
        return customise(base, spec.family, spec.depth, **changes, mlp=mlp, window=window)


def to_conditioning(text: TextEmbedding) -> list[list[Any]]:
    text = text.to(host.result_device())
    about: dict[str, Any] = {"attention_mask": text.mask}
    if text.negative is not None:
        about[NEGATIVE] = text.negative
    return [[text.tokens, about]]


def from_conditioning(conditioning: list[list[Any]], pipeline: Pipeline) -> TextEmbedding:
    """The host's CONDITIONING -> what the pipeline takes. PabError if this model cannot be guided by it."""
    if len(conditioning) != 1:
        raise PabError(
            f"The conditioning holds {len(conditioning)} prompts side by side, and the Video Sampler takes one: write "
            "them into one Text Encode (PAB)."
        )
    tokens, about = conditioning[0]
    spec = pipeline.spec
    width = pipeline.transformer.config.caption_channels
    text = embedding_from_conditioning(tokens, about.get("attention_mask"), width, spec.max_tokens)
    negative = about.get(NEGATIVE)
    if negative is not None:
        return text.with_negative(TextEmbedding(negative, text.mask[:, :0]))
    return text


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
