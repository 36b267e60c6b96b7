"""A model as published and at other speeds, side by side, as a comparison of their videos needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..acceleration.choice import choose_speed
from ..checkpoints import Checkpoint, default_dtype
from ..errors import PabError
from ..models.registry import ModelSpec
from ..pipeline import Pipeline

OTHER_SPEEDS = ("fast", "fp8")


def check_beside(spec: ModelSpec, speeds: Sequence[str], device: torch.device) -> None:
    """PabError where these are no speeds beside exact, or the device cannot do them: asked before anything is made."""
    for speed in speeds:
        if speed not in OTHER_SPEEDS:
            raise PabError(f"Beside exact no speed named '{speed}' is measured: choose {' or '.join(OTHER_SPEEDS)}.")
        if speeds.count(speed) > 1:
            raise PabError(f"The speed {speed} is given twice: give each once.")
        chosen, note = choose_speed(speed, device, _dtype(spec, speeds, device), trying=True)
        if chosen != speed:
            # Its last sentence is how a video would be made all the same.
            reason = note.rpartition(". ")[0]
            raise PabError(f"{reason}. So the speed {speed} cannot be measured on this machine: leave it out.")


def load_beside(found: Checkpoint, speeds: Sequence[str], device: torch.device) -> list[Pipeline]:
    """Exact, and these speeds that `check_beside` passed, all of one precision: what of them is equal is there once.

    Without any, the model alone, as it is loaded for a video.
    """
    dtype = _dtype(found.spec, speeds, device)
    first = Pipeline.from_checkpoint(found, device=device, dtype=dtype, speed="exact" if speeds else "auto")
    pipes = [first]
    for speed in speeds:
        other = Pipeline.from_checkpoint(found, device=device, dtype=dtype, speed=speed)
        same = speed != "fp8" and _dtype_of(other) == dtype
        transformer = first.transformer if same else other.transformer
        pipes.append(replace(other, text_encoder=first.text_encoder, transformer=transformer))
    return pipes


def _dtype(spec: ModelSpec, speeds: Sequence[str], device: torch.device) -> torch.dtype:
    """Eight bits go with bfloat16, of models too that run in float32 otherwise; then so does what they are put beside,
    or they would be credited with that."""
    return torch.bfloat16 if "fp8" in speeds else default_dtype(spec, device)


def _dtype_of(pipe: Pipeline) -> torch.dtype:
    return next(pipe.transformer.parameters()).dtype
