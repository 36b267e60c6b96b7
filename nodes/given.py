"""Image/Video Condition (PAB): given pictures and clips for the sampler"""

from typing import Any

from torch import Tensor

from pab_core import PabError

from . import host
from .host import io
from .types import GivenSettings, GivenType


class ConditionOnFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABGiven",
            display_name="Image/Video Condition (PAB)",
            description=(
                "Lets the video start from a picture, end at one, go on from the end of a clip, change a clip, or run "
                "in a circle. For Open-Sora and the demo model; Latte and Open-Sora-Plan were made for text alone. "
                "Pictures are scaled and cropped to the size of the video."
            ),
            search_aliases=["image to video", "i2v", "first frame", "last frame", "extend video", "loop", "v2v"],
            inputs=[
                io.Image.Input("first_frame", optional=True, tooltip="The video starts from it."),
                io.Image.Input("last_frame", optional=True, tooltip="The video ends at it."),
                io.Video.Input(
                    "video", optional=True, tooltip="The video goes on from its end; with an edit ratio, it is changed."
                ),
                io.Float.Input(
                    "edit",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the given video may change, up to 1; 0: it is not edited but goes on.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    label_on="end meets beginning",
                    label_off="no loop",
                    tooltip="The end meets the beginning: from the first frame, or from nothing.",
                ),
                io.Int.Input(
                    "total_frames",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Length of a video longer than the sampler's frames: a chain of clips, each of which goes "
                    "on from the last 17 frames of the one before. 0: one clip (a loop from nothing: the shortest).",
                ),
            ],
            outputs=[GivenType.Output(display_name="given", tooltip="For Video Sampler (PAB).")],
        )

    @classmethod
    def execute(
        cls,
        edit: float,
        loop: bool,
        total_frames: int,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
        video: Any = None,
    ):
        frames, fps = (None, 0.0) if video is None else host.read_video(video)
        given = GivenSettings(
            one_picture(first_frame, "first"),
            one_picture(last_frame, "last"),
            frames,
            fps,
            edit or None,
            loop,
            total_frames or None,
        )
        # What does not go together is told here, at this node, and not only by the sampler.
        from pab_core.tasks import Given

        Given(given.image, given.last_image, given.video, given.edit, given.loop)
        return io.NodeOutput(given)


def one_picture(batch: Tensor | None, which: str) -> Tensor | None:
    if batch is not None and len(batch) != 1:
        raise PabError(
            f"The {which} frame is a batch of {len(batch)} pictures: give one, or a clip as the video (Create Video)."
        )
    return batch
