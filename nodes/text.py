"""Text Encode (PAB)"""

import logging

from . import host
from .host import io
from .types import LoadedModel, ModelType, to_conditioning


class EncodeText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PABTextEncode",
            display_name="Text Encode (PAB)",
            category=host.CATEGORY,
            description="Turns a prompt into conditioning with the T5 text encoder of a video model.",
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
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For Video Sampler (PAB).")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: LoadedModel, prompt: str):
        host.bring(model.text_encoder)
        text = model.pipeline.encode_prompt(prompt)
        if text.warning:
            logging.warning(text.warning)
            host.say(text.warning, cls.hidden.unique_id)
        return io.NodeOutput(to_conditioning(text))
