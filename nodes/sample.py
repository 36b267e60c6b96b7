"""Video Sampler (PAB)"""

from typing import Any

from pab_core.evaluate.peak import peak_of
from pab_core.pipeline import check_guidance, clip_size

from . import host
from .host import io
from .types import BroadcastSettings, LoadedModel, ModelType, PolicyType, from_conditioning, to_latent


class SampleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def whole(name: str, maximum: int, step: int, tooltip: str):
            return io.Int.Input(
                name, default=0, min=0, max=maximum, step=step, tooltip=f"{tooltip}; 0: the model's own."
            )

        return io.Schema(
            node_id="PABSampler",
            display_name="Video Sampler (PAB)",
            category=host.CATEGORY,
            description=(
                "Denoises a video from a prompt with the sampler of its model and classifier-free guidance, reusing "
                "attention as the Pyramid Attention Broadcast policy says. Shows a preview on every step."
            ),
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB)."),
                io.Conditioning.Input("conditioning", tooltip="From Text Encode (PAB)."),
                PolicyType.Input(
                    "policy", optional=True, tooltip="From Pyramid Attention Broadcast; left open, nothing is reused."
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
                whole("frames", 17 * 60, 17, "Length in frames, a multiple of 17 or a single one"),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For Video Decode (PAB).")],
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
        policy: BroadcastSettings | None = None,
    ):
        pipeline = model.pipeline
        text = from_conditioning(conditioning, pipeline)
        num_frames, height, width = clip_size(pipeline.spec, frames or None, height or None, width or None)
        size = {"num_frames": num_frames, "height": height, "width": width}
        chosen = policy.for_model(pipeline.spec) if policy else "off"
        table = pipeline.schedule(chosen, steps=steps or None, **size)
        noise = pipeline.prepare_latents(seed, **size)
        scale = check_guidance(guidance) or None
        working = 0  # of the ablation by scores nobody knows it beforehand
        if not table.scores:
            peak = peak_of(pipeline, table, text, num_frames=num_frames, height=height, width=width, guidance=scale)
            working = peak.working
        host.bring(model.transformer, working)
        latents = pipeline.denoise(
            noise,
            text,
            table,
            num_frames=num_frames,
            height=height,
            width=width,
            steps=steps or None,
            guidance=scale,
            seed=seed,
            progress=host.progress(pipeline),
        )
        return io.NodeOutput(to_latent(latents, num_frames))
