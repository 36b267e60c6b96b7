"""The sentences about quality and motion that Open-Sora 1.2 reads at the end of a prompt.

Its captions in training ended in measured scores, so a prompt asks for what it wants in the same words
(hpcaitech/Open-Sora v1.2.0, docs/report_03.md). They go in before the prompt is cleaned.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import PabError

# The moves that were labelled in the training data.
CAMERA_MOTIONS = ("static", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")


@dataclass(frozen=True)
class PromptScores:
    """What a video is asked to be like; None leaves a sentence out.

    Raises:
        PabError: a score out of range or an unknown camera motion.
    """

    aesthetic: float | None = 6.5  # 0..10; the training clips had about 4..7, better ones above 6
    motion: float | None = None  # 0..100, mean optical flow; around 5 is calm, much more tends to blur
    camera: str | None = None  # of CAMERA_MOTIONS

    def __post_init__(self) -> None:
        for name, value, top in (("aesthetic score", self.aesthetic, 10), ("motion score", self.motion, 100)):
            if value is not None and (isinstance(value, bool) or not _within(value, top)):
                raise PabError(f"The {name} must be a number from 0 to {top}, not {value!r}.")
        if self.camera is not None and self.camera not in CAMERA_MOTIONS:
            raise PabError(
                f"The camera motion '{self.camera}' is not one the model was trained with; those are "
                f"{', '.join(CAMERA_MOTIONS)}."
            )

    def add_to(self, prompt: str) -> str:
        """The prompt with its sentences; one that the prompt has already is left as the user wrote it.

        An empty prompt stays empty: scores describe nothing.
        """
        if not prompt.strip():
            return prompt
        sentences = (
            ("aesthetic score:", None if self.aesthetic is None else f"{self.aesthetic:.1f}"),
            ("motion score:", None if self.motion is None else f"{self.motion:.1f}"),
            ("camera motion:", self.camera),
        )
        for opening, value in sentences:
            if value is not None and opening not in prompt.lower():
                prompt = f"{prompt} {opening} {value}."
        return prompt


def _within(value: object, top: float) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= top
