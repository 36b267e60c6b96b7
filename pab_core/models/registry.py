"""The models by name: family, size of the transformer, and how their authors generate with them."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ..errors import PabError
from .latte import LatteConfig, LatteT2V
from .latte_layers import latte_branches
from .layers import Branch
from .open_sora_plan import OpenSoraPlanConfig, OpenSoraPlanT2V
from .stdit3 import STDiT3, STDiT3Config, stdit3_branches


class TransformerConfig(Protocol):
    """What the configs of all families tell."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def caption_channels(self) -> int: ...


@dataclass(frozen=True)
class Architecture:
    """A family of models: how its transformer is built."""

    read_config: Callable[[Mapping[str, Any]], TransformerConfig]  # from a released config.json
    build: Callable[[Any], nn.Module]  # from that config
    branches: Callable[[int], tuple[Branch, ...]]  # of a model of `depth` blocks a stream


ARCHITECTURES = {
    "stdit3": Architecture(STDiT3Config.from_dict, STDiT3, stdit3_branches),
    "latte": Architecture(LatteConfig.from_dict, LatteT2V, latte_branches),
    "open-sora-plan": Architecture(OpenSoraPlanConfig.from_dict, OpenSoraPlanT2V, latte_branches),
}


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model without its weights."""

    name: str
    title: str
    family: str  # key of ARCHITECTURES, broadcast.presets.FAMILIES, checkpoints.SAMPLERS and denoising.DENOISERS
    depth: int  # blocks of each stream
    num_frames: int
    height: int  # pixels
    width: int  # pixels
    fps: int
    steps: int
    guidance: float
    chunk_frames: int = 17  # frames that the VAE encodes together
    first_frames: int = 0  # frames before the first chunk, a latent frame each
    time_factor: int = 4
    space_factor: int = 8
    latent_multiple: int = 1  # height and width of the latents are multiples of it
    max_tokens: int = 300  # of the prompt, the end token counted
    cleaning: str = "t5"  # of the prompt, one of prompt_cleaning.CLEANINGS
    prompt_scores: bool = False  # the prompt is to end with scores of its look and motion, see prompt_scores.py
    image_fps: int | None = None  # rate that stands for a single image; None: that of a clip
    trained: bool = True  # False: random weights, good for tests and timings only
    full_precision: bool = False  # float32 on a GPU as well; for a model small enough

    @property
    def branches(self) -> tuple[Branch, ...]:
        return ARCHITECTURES[self.family].branches(self.depth)

    def fps_of(self, num_frames: int) -> int:
        """The rate that the model is told for a clip, which for a single image may be another."""
        return self.image_fps if num_frames == 1 and self.image_fps else self.fps

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip: the first frames, whole chunks, the rest; chunks are padded to time_factor."""
        chunks, rest = divmod(num_frames - self.first_frames, self.chunk_frames)
        return self.first_frames + chunks * -(-self.chunk_frames // self.time_factor) + -(-rest // self.time_factor)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """PabError where the model cannot take a size or a length; the message says which are near."""
        unit = self.space_factor * self.latent_multiple
        for axis, pixels in (("height", height), ("width", width)):
            if not _is_whole(pixels) or pixels < unit:
                raise PabError(f"The {axis} {pixels!r} is not a whole number of pixels, {unit} or more.")
            # The authors' own 854 is no multiple of 8: the VAE leaves out the pixels beyond one.
            if pixels % unit and pixels != getattr(self, axis):
                low = pixels // unit * unit
                raise PabError(
                    f"The {axis} {pixels} does not fit {self.title}: it must be a multiple of {unit}. "
                    f"Near are {low} and {low + unit}."
                )
        if not _is_whole(num_frames) or num_frames < 1:
            raise PabError(f"The number of frames must be a whole number, 1 or more, not {num_frames!r}.")
        rest = (num_frames - self.first_frames) % self.chunk_frames
        if num_frames != 1 and rest:
            more = f"{self.first_frames} more than " if self.first_frames else ""
            raise PabError(
                f"{num_frames} frames do not fit {self.title}: it makes 1 frame or {more}a multiple of "
                f"{self.chunk_frames}. Near are {num_frames - rest or 1} and {num_frames - rest + self.chunk_frames}."
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
            max_tokens=32,
            cleaning="plain",
            full_precision=True,
        ),
        ModelSpec(
            name="demo-latte",
            title="the demo model of Latte's kind",
            family="latte",
            depth=4,
            num_frames=16,
            height=128,
            width=192,
            fps=8,
            steps=50,
            guidance=4.0,
            chunk_frames=1,
            time_factor=1,
            latent_multiple=2,
            max_tokens=32,
            cleaning="plain",
            full_precision=True,
        ),
        ModelSpec(
            name="demo-plan",
            title="the demo model of Open-Sora-Plan's kind",
            family="open-sora-plan",
            depth=4,
            num_frames=29,
            height=128,
            width=192,
            fps=16,
            steps=30,
            guidance=4.0,
            chunk_frames=4,
            first_frames=1,
            latent_multiple=2,
            max_tokens=32,
            cleaning="plain",
            full_precision=True,
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
            image_fps=120,
            prompt_scores=True,
        ),
        ModelSpec(
            name="latte",
            title="Latte-1",
            family="latte",
            depth=28,
            num_frames=16,
            height=512,
            width=512,
            fps=8,
            steps=50,
            guidance=7.5,
            chunk_frames=1,
            time_factor=1,
            latent_multiple=2,
            max_tokens=120,
        ),
        ModelSpec(
            name="open-sora-plan",
            title="Open-Sora-Plan v1.1.0",
            family="open-sora-plan",
            depth=28,
            num_frames=65,
            height=512,
            width=512,
            fps=24,
            steps=150,
            guidance=7.5,
            chunk_frames=4,
            first_frames=1,
            latent_multiple=2,
        ),
        ModelSpec(
            name="open-sora-plan-221",
            title="Open-Sora-Plan v1.1.0, 221 frames",
            family="open-sora-plan",
            depth=28,
            num_frames=221,
            height=512,
            width=512,
            fps=24,
            steps=150,
            guidance=7.5,
            chunk_frames=4,
            first_frames=1,
            latent_multiple=2,
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
