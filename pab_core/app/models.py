"""The models that the studio offers, and the one that is loaded."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..broadcast import ScheduleTable
from ..checkpoints import DEMOS, Checkpoint, Sampler, find_model, models_folder
from ..errors import PabError
from ..models.registry import MODELS, ModelSpec
from ..pipeline import Pipeline


@dataclass(frozen=True)
class Offered:
    """A model that users may choose by `name`. `source` is set by who starts the studio, never by a user."""

    name: str
    source: str | Path
    spec: ModelSpec
    sampler: Sampler

    def checkpoint(self) -> Checkpoint:
        found = find_model(self.source)
        found.check_complete()
        return found


def offered_models(more: Iterable[str] = ()) -> dict[str, Offered]:
    """The demos and what is downloaded, and `more`: folders or files; in the order in which they are shown.

    Raises:
        PabError: one of `more` is no model.
    """
    found: dict[str, Offered] = {}
    for source in more:
        _add(found, source)
    for name in MODELS:
        if name not in found and (name in DEMOS or (models_folder() / name).is_dir()):
            try:
                _add(found, name)
            except PabError:
                continue  # half a download must not keep the studio from starting
    if not found:
        raise PabError("There is no model here: fetch one with `pab download`, or name a folder with --model.")
    return found


def _add(found: dict[str, Offered], source: str) -> None:
    checkpoint = find_model(source)
    checkpoint.check_complete()
    name = checkpoint.spec.name
    found[name] = Offered(name, source, checkpoint.spec, checkpoint.sampler)


class LoadedModel:
    """Keeps one pipeline: a second large model would not fit beside the first. For one worker thread."""

    def __init__(self, device: str | None, speed: str = "auto"):
        self.device = device
        self.speed = speed
        self._name: str | None = None
        self._pipe: Pipeline | None = None

    def get(self, offered: Offered) -> Pipeline:
        if self._pipe is None or self._name != offered.name:
            self._pipe = None  # its memory is free before the next is read
            self._pipe = Pipeline.from_checkpoint(offered.checkpoint(), device=self.device, speed=self.speed)
            self._name = offered.name
        return self._pipe

    @property
    def name(self) -> str | None:
        return self._name if self._pipe is not None else None


def predicted_saving(offered: Offered, table: ScheduleTable, num_frames: int, height: int, width: int) -> float:
    """Share of the denoising's arithmetic (FLOPs) that a schedule leaves out, 0..1."""
    from ..evaluate import flops

    found = _found(str(offered.source))
    return flops.predicted_saving(found.spec, found.config, table, num_frames=num_frames, height=height, width=width)


@functools.lru_cache(maxsize=64)
def _found(source: str) -> Checkpoint:
    return find_model(source)
