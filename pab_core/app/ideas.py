"""Prompts of the studio's own: an idea for whoever has none, and the few of a measurement."""

from __future__ import annotations

import random

from ..checkpoints import DEMOS
from ..demo.captions import caption, evaluation_prompts, random_fields
from ..evaluate.prompts import PROMPTS
from ..models.registry import ModelSpec

_DRAW = 12  # of the demo models' prompts, those that `pab bench quality` measures on, too


def is_demo(spec: ModelSpec) -> bool:
    """Whether the model knows nothing but the scenes that the demo's grammar words."""
    return spec.name in DEMOS


def new_idea(spec: ModelSpec, other_than: str = "") -> str:
    """A prompt that the model can make, drawn anew each time."""
    draw = random.SystemRandom()
    while True:
        found = caption(random_fields(draw, "train"), draw) if is_demo(spec) else draw.choice(PROMPTS)
        if found != other_than:
            return found


def measured_prompts(spec: ModelSpec, count: int) -> list[str]:
    """The same ones each time."""
    return [prompt.text for prompt in evaluation_prompts(count, _DRAW)] if is_demo(spec) else list(PROMPTS[:count])
