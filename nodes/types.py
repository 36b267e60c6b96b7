"""What travels between the nodes beside the host's own types, and the ways into and out of those."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pab_core import PabError, Pipeline, Policy
from pab_core.broadcast import AnyPolicy, Window, customise, find_policy
from pab_core.models.registry import ModelSpec
from pab_core.text import TextEmbedding, embedding_from_conditioning

from . import host

if TYPE_CHECKING:
    from pab_core.offload import Mode
    from pab_core.tasks import Plan

ModelType = host.io.Custom("PAB_MODEL")
CheckpointType = host.io.Custom("PAB_CHECKPOINT")
PolicyType = host.io.Custom("PAB_POLICY")
GivenType = host.io.Custom("PAB_GIVEN")
WorkersType = host.io.Custom("PAB_WORKERS")
NEGATIVE = "pab_negative"  # entry of a CONDITIONING that Text Encode (PAB) makes for models guided by a negative prompt
KEPT = ("plain", "fp8", "host")  # where updates wait, as broadcast.cache has them
FROM_CLIP = "pab_from_clip"  # another, of a prompt of several texts: the clip of a chain from which this one holds
Part = Literal["text_encoder", "transformer", "vae"]


class LoadedModel:
    """A pipeline and the handles by which the host moves its parts; what PAB_MODEL carries.

    mode: of a pipeline that brings its parts to the device itself (offload.py); the host then only makes room.
    source: what parallel.pool.job.ModelSource.of takes for workers to load the same.
    """

    def __init__(self, pipeline: Pipeline, mode: "Mode | None", source: dict[str, Any]):
        self.pipeline = pipeline
        self.mode: Mode | None = mode
        self.source = source
        self._transformer = None if mode else host.managed(pipeline.transformer)
        self._vae = None if mode or pipeline.vae is None else host.managed(pipeline.vae)

    @cached_property
    def _text_encoder(self) -> Any:
        """Its weights are read on the first use: who changes a slider never needs them."""
        assert self.pipeline.text_encoder is not None
        return host.managed(self.pipeline.text_encoder.encoder)

    def bring(self, part: Part, working: int = 0) -> None:
        """Has the host bring a part to the compute device, with room for `working` bytes of work beside it."""
        if getattr(self.pipeline, part) is None:
            what = part.replace("_", " ")
            raise PabError(
                f"{self.pipeline.spec.title} was loaded without a {what}: load the folder that holds it too."
            )
        if self.mode is None:
            host.bring(getattr(self, f"_{part}"), working)
            return
        module = getattr(self.pipeline, part)
        if part == "text_encoder":
            module = module.encoder
        # With blocks it takes less than that; what is freed too much was not in use.
        host.make_room(working + sum(parameter.nbytes for parameter in module.parameters()))


@dataclass(frozen=True)
class ChosenPolicy:
    """A policy by name or as it is, for models that it fits; what PAB_POLICY carries.

    kept: where updates wait for their reuse, one of KEPT.
    """

    policy: str | AnyPolicy
    kept: str = "plain"

    def __post_init__(self) -> None:
        one_of("place where results are kept", self.kept, KEPT)

    def for_model(self, spec: ModelSpec) -> AnyPolicy:
        """The policy for a model; PabError where it is not for that one."""
        return find_policy(self.policy, spec.family, spec.depth)


@dataclass(frozen=True)
class BroadcastSettings:
    """The sliders of the broadcast node; what PAB_POLICY carries, too. 0 leaves a value as the policy has it."""

    policy: str
    spatial: int
    temporal: int
    cross: int
    mlp: bool
    window_start: float
    window_stop: float
    kept: str = "plain"

    def __post_init__(self) -> None:
        check_name(self.policy)
        if self.window_stop > 0:  # else it is the policy's, which only the model's family tells
            Window(self.window_start, self.window_stop)
        one_of("place where results are kept", self.kept, KEPT)

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


def kept_input(**fields: Any) -> Any:
    """Where updates wait: an input of all nodes that make a policy."""
    return host.choice(
        "kept",
        KEPT,
        tooltip="Where results wait for their reuse. plain: as they are, on the GPU. fp8: there in eight bits, a "
        "quarter to half of the memory. host: in the computer's own memory, which frees the GPU's.",
        **fields,
    )


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """PabError unless a choice is one of those offered: not every ComfyUI checks what comes over HTTP."""
    if value not in known:
        raise PabError(f"The {what} '{str(value)[:80]}' is not known: choose one of {', '.join(known)}.")
    return value


def check_name(policy: str) -> str:
    """PabError unless a policy is told by name: what comes over HTTP must not read the server's files."""
    if any(sign in policy for sign in "/\\") or policy.lower().endswith(".json"):
        raise PabError(
            f"'{policy[:80]}' is not the name of a policy but the path of a file: use Load Schedule (PAB) for those."
        )
    return policy


AnyChoice = ChosenPolicy | BroadcastSettings


@dataclass(frozen=True, eq=False)
class GivenSettings:
    """Pictures and clips to start from; what PAB_GIVEN carries. Pictures are the host's IMAGE, [T, H, W, 3]."""

    image: Tensor | None = None
    last_image: Tensor | None = None
    video: Tensor | None = None
    video_fps: float = 0.0
    edit: float | None = None
    loop: bool = False
    total_frames: int | None = None

    def plan(self, spec: ModelSpec, **size: int) -> "Plan":
        """What becomes of it at the model's size; PabError for a model that takes no frames, or what does not fit."""
        from pab_core.tasks import Given, make_plan

        video = None if self.video is None else at_rate(self.video, self.video_fps, spec.fps)
        given = Given(self.image, self.last_image, video, self.edit, self.loop)
        return make_plan(spec, "", given, total_frames=self.total_frames, **size)


def at_rate(frames: Tensor, fps: float, wanted: float) -> Tensor:
    """Frames [T, ...] of a clip as it would be at another rate: the nearest ones."""
    count = max(1, round(len(frames) * wanted / fps)) if fps > 0 else len(frames)
    return frames[[min(int((i + 0.5) * fps / wanted), len(frames) - 1) for i in range(count)]] if fps > 0 else frames


def to_conditioning(texts: dict[int, TextEmbedding]) -> list[list[Any]]:
    """texts: by the clip of a chain from which each holds; {0: text} of any video."""
    conditioning: list[list[Any]] = []
    for start, text in texts.items():
        text = text.to(host.result_device())
        about: dict[str, Any] = {"attention_mask": text.mask}
        if text.negative is not None:
            about[NEGATIVE] = text.negative
        if len(texts) > 1:
            about[FROM_CLIP] = start
        conditioning.append([text.tokens, about])
    return conditioning


def from_conditioning(conditioning: list[list[Any]], pipeline: Pipeline, clips: int = 1) -> list[TextEmbedding]:
    """The host's CONDITIONING -> what the pipeline takes, for each clip. PabError if this model cannot be guided by
    it."""
    starts = [about.get(FROM_CLIP) for _, about in conditioning]
    if len(conditioning) != 1 and (not starts or None in starts):
        raise PabError(
            f"The conditioning holds {len(conditioning)} prompts side by side, and the Video Sampler takes one: write "
            "them into one Text Encode (PAB)."
        )
    if len(conditioning) == 1:
        return [_text_of(conditioning[0], pipeline)] * clips
    if starts[-1] >= clips:
        raise PabError(
            f"The prompt has a text for clip {starts[-1]}, but the video has {clips}, numbered from 0: give it more "
            "total frames at Image/Video Condition (PAB), or leave that text out."
        )
    texts = [_text_of(entry, pipeline) for entry in conditioning]
    return [texts[max(i for i, start in enumerate(starts) if start <= clip)] for clip in range(clips)]


def _text_of(entry: list[Any], pipeline: Pipeline) -> TextEmbedding:
    tokens, about = entry
    spec = pipeline.spec
    width = pipeline.transformer.config.caption_channels
    text = embedding_from_conditioning(tokens, about.get("attention_mask"), width, spec.max_tokens)
    negative = about.get(NEGATIVE)
    if negative is not None:
        return text.with_negative(TextEmbedding(negative, text.mask[:, :0]))
    return text


def to_latent(clips: list[Tensor], num_frames: int, plan: "Plan | None" = None) -> dict[str, Any]:
    """Latents [1, C, T, h, w] of the clips of a video as the host's LATENT, one after another in time.

    Their length does not tell that of a clip: it goes along, and so does the plan of a video that is more than a clip.
    """
    import torch

    samples = torch.cat([clip.to(host.result_device()) for clip in clips], dim=2)
    return {"samples": samples, "num_frames": num_frames, **({} if plan is None else {"pab_plan": plan})}


def from_latent(latent: dict[str, Any], pipeline: Pipeline) -> tuple[list[Tensor], int]:
    """The host's LATENT -> latents [1, C, T, h, w] of each clip, and its frames. PabError if not of this model."""
    samples, num_frames = latent["samples"], latent.get("num_frames", 0)
    plan = latent.get("pab_plan")
    count = 1 if plan is None else len(plan.segments)
    frames = pipeline.spec.latent_frames(num_frames) if num_frames > 0 else 0
    expected = (1, pipeline.transformer.config.in_channels, frames * count)
    if samples.ndim != 5 or num_frames < 1 or samples.shape[:3] != expected:
        raise PabError(
            f"The latents {list(samples.shape)} do not come from {pipeline.spec.title}: connect a Video Sampler (PAB) "
            "that runs the same model."
        )
    return list(samples.split(frames, dim=2)), num_frames
