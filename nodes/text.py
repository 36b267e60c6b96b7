"""Text Encode (PAB)"""

import logging

from . import host
from .host import io
from .types import LoadedModel, ModelType, to_conditioning


class EncodeText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABTextEncode",
            display_name="Text Encode (PAB)",
            category=host.CATEGORY,
            description="Turns a prompt into conditioning with the T5 text encoder of a video model.",
            search_aliases=["prompt", "clip text encode", "t5", "pab"],
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB)."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a red ball rolls left over a green floor",
                    tooltip="What the video shows: things, their colours, how they and the camera move. Too long a "
                    "prompt is cut, and the node says where.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What not to show. Read by Latte and Open-Sora-Plan; Open-Sora and the demo model were "
                    "trained with a learned empty text in its place.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For Video Sampler (PAB).")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: LoadedModel, prompt: str, negative: str = ""):
        if model.pipeline.text_encoder is not None and not model.pipeline.has_encoded(prompt, negative):
            model.bring("text_encoder")
        text = model.pipeline.encode_prompt(prompt, negative.strip() or None)
        if text.warning:
            logging.warning(text.warning)
            host.say(text.warning, cls.hidden.unique_id)
        return io.NodeOutput(to_conditioning(text))
