"""Video Decode (PAB)"""

from typing import Any

from pab_core import PabError

from . import host
from .host import io
from .sample import vae_bytes
from .types import LoadedModel, ModelType, WorkersType, from_latent
from .workers import Workers


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABDecode",
            display_name="Video Decode (PAB)",
            description="Decodes the latents of Video Sampler (PAB) to images and a video of the model's own speed.",
            search_aliases=["vae decode video", "latent to video", "pab"],
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB), the one that the sampler used."),
                io.Latent.Input("latent", tooltip="From Video Sampler (PAB)."),
                WorkersType.Input(
                    "workers",
                    optional=True,
                    tooltip="From Worker Pool (PAB), to decode on several devices; left open, ComfyUI's own does it.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames, as a batch of images."),
                io.Video.Output(display_name="video", tooltip="The frames as a video, for Save Video."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: LoadedModel, latent: dict[str, Any], workers: Workers | None = None):
        pipeline = model.pipeline
        clips, num_frames = from_latent(latent, pipeline)
        if pipeline.vae is None:
            raise PabError(f"{pipeline.spec.title} was loaded without a VAE: load the folder that holds it too.")
        height, width = (side * pipeline.vae.spatial_factor for side in clips[0].shape[-2:])
        working = vae_bytes(model, num_frames, height, width)
        if workers is None:
            model.bring("vae", working)
        decoded = []
        for part, clip in enumerate(clips):
            if workers is None:
                decoded.append(pipeline.decode(clip, num_frames, progress=host.progress(pipeline, part, len(clips))))
                continue
            show = host.pool_progress(part, len(clips))
            job = {"task": "decode", "num_frames": num_frames}
            decoded.append(workers.run(model, job, {"latents": clip}, show, cls.hidden.unique_id, working).frames)
        plan = latent.get("pab_plan")
        batch = host.images(decoded[0] if plan is None else plan.finish(decoded))
        return io.NodeOutput(batch, host.video(batch, pipeline.spec.fps))
