"""Load Video DiT (PAB)"""

from pab_core import PabError, Pipeline
from pab_core.checkpoints import default_dtype, find_model

from . import host
from .host import io
from .types import LoadedModel, ModelType

host.register_model_folder()


class LoadVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PABLoadModel",
            display_name="Load Video DiT (PAB)",
            category=host.CATEGORY,
            description=(
                "Loads a text-to-video diffusion transformer with its text encoder and VAE, for use with Pyramid "
                "Attention Broadcast. 'demo' is a small trained model that comes with these nodes and runs on any CPU; "
                "Open-Sora checkpoints go to models/pab, one folder each."
            ),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=["demo", *(name for name in host.checkpoint_folders() if name != "demo")],
                    default="demo",
                    tooltip="'demo' comes with these nodes; the others are the checkpoint folders in models/pab.",
                ),
            ],
            outputs=[
                ModelType.Output(display_name="model", tooltip="For Text Encode, Video Sampler and Video Decode (PAB).")
            ],
        )

    @classmethod
    def execute(cls, model: str):
        source = "demo" if model == "demo" else host.checkpoint_folders().get(model)
        if source is None:
            raise PabError(f"The checkpoint folder '{model}' is no longer in models/pab: choose another model.")
        # Weights wait on the host's keep device; the precision is that of the device which will compute with them.
        found = find_model(source, spare_tokenizer=host.t5_tokenizer())
        dtype = default_dtype(found.spec, host.compute_device())
        pipeline = Pipeline.from_checkpoint(found, device=host.keep_device(), dtype=dtype)
        return io.NodeOutput(LoadedModel(pipeline))
