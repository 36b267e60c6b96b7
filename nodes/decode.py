"""Video Decode (PAB)"""

from typing import Any

from pab_core import PabError

from . import host
from .host import io
from .types import LoadedModel, ModelType, from_latent


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
        if pipeline.vae is None:
            raise PabError(f"{pipeline.spec.title} was loaded without a VAE: load the folder that holds it too.")
        from pab_core.autoencoders import decode_bytes  # brings diffusers, which takes a second to import

        vae = pipeline.vae
        height, width = (side * vae.spatial_factor for side in samples.shape[-2:])
        dtype = next(vae.parameters()).dtype
        host.bring(model.vae, decode_bytes(vae, num_frames, height, width, dtype, vae.authors_tiling))
        frames = pipeline.decode(samples, num_frames, progress=host.progress(pipeline))
        batch = host.images(frames)
        return io.NodeOutput(batch, host.video(batch, pipeline.spec.fps))
