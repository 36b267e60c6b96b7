"""Video Sampler (PAB)"""

import time
from typing import Any

import torch

from pab_core.broadcast import ScheduleTable
from pab_core.settings import check_guidance, clip_size
from pab_core.text import TextEmbedding

from . import host
from .host import io
from .types import (
    AnyChoice,
    ChosenPolicy,
    GivenSettings,
    GivenType,
    LoadedModel,
    ModelType,
    PolicyType,
    WorkersType,
    from_conditioning,
    to_latent,
)
from .workers import Workers


class SampleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def whole(name: str, maximum: int, step: int, tooltip: str):
            return io.Int.Input(
                name, default=0, min=0, max=maximum, step=step, tooltip=f"{tooltip}; 0: the model's own."
            )

        return host.schema(
            node_id="PABSampler",
            display_name="Video Sampler (PAB)",
            description=(
                "Denoises a video from a prompt with the sampler of its model and classifier-free guidance, reusing "
                "attention as the Pyramid Attention Broadcast policy says. Shows a preview on every step."
            ),
            search_aliases=["ksampler video", "denoise video", "text to video", "pab"],
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB)."),
                io.Conditioning.Input("conditioning", tooltip="From Text Encode (PAB)."),
                PolicyType.Input(
                    "policy", optional=True, tooltip="From Pyramid Attention Broadcast; left open, nothing is reused."
                ),
                GivenType.Input(
                    "given",
                    optional=True,
                    tooltip="From Image/Video Condition (PAB); left open, the video is made from the prompt alone.",
                ),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The same seed and settings give the same video, here and on the command line.",
                ),
                whole("steps", 1000, 1, "Denoising steps"),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance: how strongly the prompt is followed; 0: the model's own.",
                ),
                whole("width", 4096, 8, "Width in pixels, a multiple of 8"),
                whole("height", 4096, 8, "Height in pixels, a multiple of 8"),
                # Their step is the one of the models with clips of 17; others have lengths of their own.
                whole("frames", 17 * 60, 1, "Length in frames: for Open-Sora and demo a multiple of 17, or 1"),
                WorkersType.Input(
                    "workers",
                    optional=True,
                    tooltip="From Worker Pool (PAB), to make the video on several devices; left open, it is made on "
                    "ComfyUI's own.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For Video Decode (PAB).")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        conditioning: list[list[Any]],
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        frames: int,
        policy: AnyChoice | None = None,
        given: GivenSettings | None = None,
        workers: Workers | None = None,
    ):
        from pab_core.evaluate.peak import peak_of  # with accelerate, which takes half a second to import

        pipeline = model.pipeline
        num_frames, height, width = clip_size(pipeline.spec, frames or None, height or None, width or None)
        size = {"num_frames": num_frames, "height": height, "width": width}
        plan = given.plan(pipeline.spec, **size) if given else None
        parts = len(plan.segments) if plan else 1
        texts = from_conditioning(conditioning, pipeline, parts)
        policy = policy or ChosenPolicy("off")
        table = pipeline.schedule(policy.for_model(pipeline.spec), steps=steps or None, **size)
        scale = check_guidance(guidance) or None
        working = 0  # of the ablation by scores nobody knows it beforehand
        if not table.scores:
            peak = peak_of(pipeline, table, texts[0], guidance=scale, mode=model.mode, kept=policy.kept, **size)  # pyright: ignore[reportArgumentType]
            working = peak.working
        latents: list[torch.Tensor] = []
        clips: list[torch.Tensor] = []  # decoded: those that a later clip of a chain goes on from
        seconds, kept_bytes, taken = 0.0, 0, table
        for part in range(parts):
            own_seed = (seed + part) % 2**64
            noise, mask = pipeline.prepare_latents(own_seed, **size), None
            if plan is not None:
                from pab_core.conditioning import apply_given  # with what decodes and encodes it brings diffusers

                if plan.given.has_frames or parts > 1:
                    model.bring("vae", vae_bytes(model, **size))
                noise, mask = apply_given(noise, plan.frames_for(plan.segments[part], pipeline.encode, clips))
            if workers is not None:
                made, taken, took = sample_on(
                    workers, model, texts[part], noise, mask, policy, cls.hidden.unique_id, working, (part, parts),
                    seed=own_seed, steps=steps or None, guidance=scale, kept=policy.kept, **size,
                )  # fmt: skip
                latents.append(made)
                seconds += took
            else:
                model.bring("transformer", working)
                run = pipeline.new_run(table, policy.kept)
                start = time.perf_counter()
                made = pipeline.denoise(
                    noise,
                    texts[part],
                    table,
                    steps=steps or None,
                    guidance=scale,
                    cond_mask=mask,
                    seed=own_seed,
                    run=run,
                    progress=host.progress(pipeline, part, parts),
                    **size,
                )
                latents.append(made.to(host.result_device()))  # waits for a GPU
                seconds += time.perf_counter() - start
                kept_bytes, taken = max(kept_bytes, run.peak_bytes), run.taken
            if parts > 1:
                model.bring("vae", vae_bytes(model, **size))
                clips.append(pipeline.decode(latents[-1], num_frames, progress=lambda _: host.check_cancelled()))
        measured = measured_of(taken, seconds, parts, kept_bytes)
        return io.NodeOutput(to_latent(latents, num_frames, plan), ui={"pab_measured": [measured]})


def sample_on(
    workers: Workers,
    model: LoadedModel,
    text: TextEmbedding,
    noise: torch.Tensor,
    mask: torch.Tensor | None,
    policy: AnyChoice,
    node_id: str,
    working: int,
    place: tuple[int, int],
    **settings: Any,
) -> tuple[torch.Tensor, ScheduleTable, float]:
    """The denoise loop of a clip on a pool -> its latents, the schedule as it was followed, and the seconds.

    place: the clip's in its chain, and how many there are.
    """
    from pab_core.parallel.pool.job import policy_to_plain, text_to_tensors  # with pydantic

    job = {"task": "denoise", "policy": policy_to_plain(policy.for_model(model.pipeline.spec)), "previews": True}
    tensors = {**text_to_tensors(text), "noise": noise.cpu(), **({} if mask is None else {"cond_mask": mask.cpu()})}
    made = workers.run(model, {**job, **settings}, tensors, host.pool_progress(*place), node_id, working)
    assert made.latents is not None
    assert made.table is not None
    return made.latents, made.table, made.seconds["denoise"]


def measured_of(taken: ScheduleTable, seconds: float, parts: int = 1, kept_bytes: int = 0) -> dict[str, Any]:
    """What the policy's node tells of a run; kept_bytes 0: not known."""
    return {
        "policy": taken.policy,
        "seconds": round(seconds, 3),
        "steps": taken.steps * parts,
        "kept_bytes": kept_bytes,
        "reused": {kind: round(taken.reused_share(kind), 4) for kind in taken.kinds},
    }


def vae_bytes(model: LoadedModel, num_frames: int, height: int, width: int) -> int:
    """Bytes of decoding such a clip, beside the VAE's weights; encoding it takes less."""
    from pab_core.autoencoders import decode_bytes  # brings diffusers, which takes a second to import

    vae = model.pipeline.vae
    if vae is None:
        return 0  # what needs it says so, in words
    return decode_bytes(vae, num_frames, height, width, next(vae.parameters()).dtype, vae.authors_tiling)
