"""The models by name: family, size of the transformer, and how their authors generate with them."""

import difflib
from dataclasses import dataclass

from ..errors import PabError
from .layers import Branch
from .stdit3 import stdit3_branches


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model without its weights."""

    name: str
    title: str
    family: str  # key of broadcast.presets.FAMILIES and of loading's builders
    depth: int  # blocks of each stream
    num_frames: int
    height: int  # pixels
    width: int  # pixels
    fps: int
    steps: int
    guidance: float
    chunk_frames: int = 17  # frames that the VAE encodes together
    time_factor: int = 4
    space_factor: int = 8
    trained: bool = True  # False: random weights, good for tests and timings only

    @property
    def branches(self) -> tuple[Branch, ...]:
        return stdit3_branches(self.depth)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip: whole chunks, then the rest, each rounded up to a multiple of time_factor."""
        chunks, rest = divmod(num_frames, self.chunk_frames)
        return chunks * -(-self.chunk_frames // self.time_factor) + -(-rest // self.time_factor)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """PabError where the model cannot take a size or a length; the message says which are near."""
        for axis, pixels in (("height", height), ("width", width)):
            if not _is_whole(pixels) or pixels < self.space_factor:
                raise PabError(f"The {axis} {pixels!r} is not a whole number of pixels, {self.space_factor} or more.")
            # The authors' own 854 is no multiple of 8: the VAE leaves out the pixels beyond one.
            if pixels % self.space_factor and pixels != getattr(self, axis):
                low = pixels // self.space_factor * self.space_factor
                raise PabError(
                    f"The {axis} {pixels} does not fit {self.title}: it must be a multiple of {self.space_factor}. "
                    f"Near are {low} and {low + self.space_factor}."
                )
        if not _is_whole(num_frames) or num_frames < 1:
            raise PabError(f"The number of frames must be a whole number, 1 or more, not {num_frames!r}.")
        if num_frames != 1 and num_frames % self.chunk_frames:
            low = num_frames // self.chunk_frames * self.chunk_frames or 1
            high = -(-num_frames // self.chunk_frames) * self.chunk_frames
            raise PabError(
                f"{num_frames} frames do not fit {self.title}: it makes 1 frame or a multiple of {self.chunk_frames}. "
                f"Near are {low} and {high}."
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="demo",
            title="the demo model",
            family="stdit3",
            depth=5,
            num_frames=34,
            height=128,
            width=192,
            fps=16,
            steps=30,
            guidance=4.0,
        ),
        ModelSpec(
            name="open-sora",
            title="Open-Sora 1.2",
            family="stdit3",
            depth=28,
            num_frames=51,
            height=480,
            width=854,
            fps=24,
            steps=30,
            guidance=7.0,
        ),
    )
}


def model_spec(name: str) -> ModelSpec:
    """The model of that name; PabError, with the names there are, if it is unknown."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise PabError(
            f"There is no model named '{name}'.{hint} Known are {', '.join(MODELS)}, or give a checkpoint's folder."
        )
    return MODELS[name]
