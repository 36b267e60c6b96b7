"""Video Decode (PAB)"""

from typing import Any

from . import host
from .host import io
from .types import LoadedModel, ModelType, from_latent

BYTES_A_PIXEL = 4 * 2000  # of activations and element size 1: the VAE takes four frames at once


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PABDecode",
            display_name="Video Decode (PAB)",
            category=host.CATEGORY,
            description="Decodes the latents of Video Sampler (PAB) to images and a video of the model's own speed.",
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB), the one that the sampler used."),
                io.Latent.Input("latent", tooltip="From Video Sampler (PAB)."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames, as a batch of images."),
                io.Video.Output(display_name="video", tooltip="The frames as a video, for Save Video."),
            ],
        )

    @classmethod
    def execute(cls, model: LoadedModel, latent: dict[str, Any]):
        pipeline = model.pipeline
        samples, num_frames = from_latent(latent, pipeline)
        weight = next(pipeline.vae.parameters())
        pixels = samples.shape[-2] * samples.shape[-1] * pipeline.spec.space_factor**2
        host.bring(model.vae, pixels * BYTES_A_PIXEL * weight.element_size())
        frames = pipeline.decode(samples, num_frames, progress=host.progress(pipeline))
        batch = host.images(frames)
        return io.NodeOutput(batch, host.video(batch, pipeline.spec.fps))
