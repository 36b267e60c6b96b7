"""The work on a job: rendering, files, history; for a comparison also what its two videos are measured to be."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import PabError
from ..results import Generation
from .comparing import compare_frames
from .history import Entry, History
from .jobs import Cancelled, Job, Report
from .rendering import Event, OnEvent, Renderer
from .request import Clip
from .settings import StudioSettings, not_kept

_PREVIEW_SIDE = 320  # longest side, pixels
_PREVIEW_APART = 0.4  # seconds between two previews at least
_THUMBNAIL = (384, 384)


class Maker:
    """Makes the videos of a job; called by the queue's one thread."""

    def __init__(self, settings: StudioSettings, history: History, renderer: Renderer):
        self._settings = settings
        self._history = history
        self._renderer = renderer

    def __call__(self, job: Job, report: Report) -> None:
        self._settings.check_space()
        entries: list[Entry] = []
        frames: list[Tensor] = []
        comparing = len(job.clips) > 1
        try:
            if comparing:
                tell = follow(job.clips[0], report)
                self._renderer.warm_up(job.clips[0], job.cancelled, tell)
            for index, clip in enumerate(job.clips):
                report(clip=index, stage="denoise", done=0, total=clip.table.steps, seconds_left=None)
                made, memory = self._renderer.render(clip, job.cancelled, follow(clip, report))
                report(stage="write", preview=None, warnings=made.warnings)
                entries.append(self._keep(job.owner, clip, made, memory))
                if comparing:
                    frames.append(made.frames)
            measured = {}
            if comparing:
                report(stage="measure")
                measured = self._measure(entries, frames)
            report(results=tuple(entry.id for entry in entries), measured=measured)
        except Cancelled:
            for entry in entries:  # half a comparison is none
                self._history.delete(entry.id, job.owner)
            raise

    def _keep(self, owner: str, clip: Clip, made: Generation, memory: int | None) -> Entry:
        """Writes the video and its thumbnail, and notes them; on failure nothing stays behind."""
        video_id = secrets.token_hex(16)
        video, thumbnail = self._history.files_of(video_id)
        try:
            made.save(video)
            write_thumbnail(made.frames, thumbnail)
            about = {
                **made.metadata,
                "seconds": {stage: round(seconds, 3) for stage, seconds in made.seconds.items()},
                **({"gpu_bytes": memory} if memory else {}),
            }
            return self._history.add(video_id, owner, clip.request.to_json(), about)
        except BaseException as error:
            for path in (video, thumbnail):
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise PabError(not_kept("The video", error)) from None
            raise

    def _measure(self, entries: Sequence[Entry], frames: Sequence[Tensor]) -> dict[str, Any]:
        first, second = (entry.about["seconds"]["denoise"] for entry in entries)
        return {
            "seconds": [first, second],
            "speedup": round(first / second, 3) if second else None,
            **compare_frames(frames[1], frames[0]),
            "gpu_bytes": [entry.about.get("gpu_bytes") for entry in entries],
        }


def follow(clip: Clip, report: Callable[..., None]) -> OnEvent:
    """Tells of each step: how far, how long it will still take, and what the model sees by now."""
    started: float | None = None
    shown = 0.0
    branches = max(len(clip.table.branches), 1)
    # A step that reuses much is over sooner; half of a step is what no schedule touches.
    costs = [
        0.5 + 0.5 * sum(not clip.table.reuses(branch, i) for branch in clip.table.branches) / branches
        for i in range(clip.table.steps)
    ]

    def on_event(event: Event) -> None:
        nonlocal shown, started
        changes: dict[str, Any] = {"stage": event.stage, "done": event.done, "total": event.total}
        now = time.perf_counter()
        if event.stage == "denoise":
            # From the first step on: what comes before it, text and loading, says nothing of the steps.
            if started is None:
                started, first = now, event.done
                costs[:first] = [0.0] * first
            past = sum(costs[: event.done])
            changes["seconds_left"] = (now - started) * sum(costs[event.done :]) / past if past else None
            if event.picture is not None and now - shown >= _PREVIEW_APART:
                shown = now
                changes["preview"] = preview_picture(event.picture(), clip.offered.spec.fps)
        else:
            changes["seconds_left"] = None
        report(**changes)

    return on_event


def preview_picture(frames: Tensor, fps: int) -> bytes:
    """Small frames uint8 [T, h, w, 3] -> an animated WebP; its rate is that of latents, of which a clip has fewer."""
    scale = _PREVIEW_SIDE / max(frames.shape[1:3])
    size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
    first, *rest = [Image.fromarray(frame.numpy()).resize(size, Image.Resampling.BICUBIC) for frame in frames[:24]]
    out = io.BytesIO()
    first.save(
        out, "WEBP", save_all=True, append_images=rest, duration=max(40, 4000 // fps), loop=0, quality=55, method=0
    )
    return out.getvalue()


def write_thumbnail(frames: Tensor, path: Any) -> None:
    """The middle frame of frames uint8 [T, H, W, 3] as a small JPEG."""
    picture = Image.fromarray(frames[frames.shape[0] // 2].numpy())
    picture.thumbnail(_THUMBNAIL, Image.Resampling.LANCZOS)
    picture.save(path, "JPEG", quality=85)
