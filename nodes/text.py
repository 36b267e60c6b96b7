"""Text Encode (PAB)"""

import logging

from pab_core.prompt_scores import CAMERA_MOTIONS, PromptScores

from . import host
from .host import io
from .types import LoadedModel, ModelType, one_of, to_conditioning

CAMERAS = ("any", *CAMERA_MOTIONS)
MOST_CLIPS = 1000


class EncodeText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABTextEncode",
            display_name="Text Encode (PAB)",
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
                    "prompt is cut, and the node says where. For a chain of clips (total frames at Image/Video "
                    "Condition): |0| a calm sea |2| a storm.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What not to show. Read by Latte and Open-Sora-Plan; Open-Sora and the demo model were "
                    "trained with a learned empty text in its place.",
                ),
                io.Float.Input(
                    "aesthetic",
                    default=6.5,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    tooltip="How good it is to look like, for Open-Sora, whose training clips had about 4 to 7; 0: not "
                    "said.",
                ),
                io.Float.Input(
                    "motion",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    optional=True,
                    tooltip="How much is to move, for Open-Sora: 5 is calm, much more tends to blur; 0: not said.",
                ),
                host.choice(
                    "camera",
                    CAMERAS,
                    optional=True,
                    tooltip="How the camera is to move, for Open-Sora; any: not said.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For Video Sampler (PAB).")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        prompt: str,
        negative: str = "",
        aesthetic: float = 6.5,
        motion: float = 0.0,
        camera: str = CAMERAS[0],
    ):
        one_of("camera motion", camera, CAMERAS)
        scores = PromptScores(aesthetic or None, motion or None, None if camera == CAMERAS[0] else camera)
        pipeline, texts = model.pipeline, {}
        for start, part in parts_of(prompt).items():
            if pipeline.text_encoder is not None and not pipeline.has_encoded(part, negative, scores):
                model.bring("text_encoder")
            texts[start] = pipeline.encode_prompt(part, negative.strip() or None, scores)
        told = dict.fromkeys(text.warning for text in texts.values() if text.warning)
        if told:
            logging.warning(" ".join(told))
            host.say(" ".join(told), cls.hidden.unique_id)
        return io.NodeOutput(to_conditioning(texts))


def parts_of(prompt: str) -> dict[int, str]:
    """The texts of a prompt by the clip of a chain from which each holds: "|0| a calm sea |2| a storm" has two."""
    if not prompt.lstrip().startswith("|"):
        return {0: prompt}
    from pab_core.chaining import split_prompt  # with what joins clips it brings diffusers

    texts = split_prompt(prompt, MOST_CLIPS)
    return {i: text for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]}
