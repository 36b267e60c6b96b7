"""What a run tells on its way, and what comes of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .broadcast import ScheduleTable
from .checkpoints import Sampler
from .models.registry import ModelSpec
from .noise_sampling import NoiseSampler


@dataclass(frozen=True)
class Progress:
    """One event of a run. `latents` is the model's present idea of the clean latents, for a preview."""

    stage: str  # "denoise" or "decode"
    done: int
    total: int
    latents: Tensor | None = None  # [1, C, T, h, w]


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Generation:
    """A finished video and how it was made."""

    frames: Tensor  # uint8 [T, H, W, 3]
    fps: int
    table: ScheduleTable
    seconds: dict[str, float]  # by stage
    metadata: dict[str, Any]  # prompt, seed and all settings
    warnings: tuple[str, ...] = ()

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Writes an H.264 mp4 that carries the metadata. PabError where the file exists already, unless `force`."""
        from .video_io import write_mp4

        return write_mp4(path, self.frames, self.fps, self.metadata, force=force)


def metadata_of(
    spec: ModelSpec,
    sampler: Sampler,
    table: ScheduleTable,
    *,
    prompt: str,
    negative: str | None,
    seed: int,
    steps: int | None,
    guidance: float,
    num_frames: int,
    height: int,
    width: int,
    clips: int,
) -> dict[str, Any]:
    """What a video carries of how it was made. `table`: as it was followed; `clips`: how many it was made of."""
    return {
        "prompt": prompt,
        **({"negative": negative} if negative else {}),
        "model": spec.name,
        "policy": table.policy,
        "seed": seed,
        "steps": table.sampler_steps or (spec.steps if steps is None else steps),
        **({"sampler": sampler.scheduler} if isinstance(sampler, NoiseSampler) else {}),
        "guidance": guidance,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        **({"clips": clips} if clips > 1 else {}),
        "fps": spec.fps,
        "reused": {kind: round(table.reused_share(kind), 4) for kind in table.kinds},
    }


def part_of(progress: ProgressCallback | None, index: int, count: int) -> ProgressCallback | None:
    """The callback as one clip of a chain calls it: counts are of the whole."""
    if progress is None or count == 1:
        return progress

    def tell(event: Progress) -> None:
        progress(replace(event, done=index * event.total + event.done, total=count * event.total))

    return tell


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that the `with` takes to those of its stage, the GPU's work with them."""
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[stage] += time.perf_counter() - start
