"""`Pipeline.generate`, on a pool: the same settings, the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...broadcast import AnyPolicy
from ...prompt_scores import PromptScores
from ...results import Generation
from ...tasks import Given
from .job import Job, ModelSource, Scores, given_to_plain, policy_to_plain
from .pool import Handle
from .record import OnProgress, PoolProgress

_LOOK = 0.2  # seconds; a wait without a bound could not be interrupted on Windows


class Pool(Protocol):
    """A WorkerPool, a RayPool, or the SharedPool of `pab workers`."""

    def submit(self, job: Job, tensors: Any = None, progress: OnProgress | None = None) -> Handle: ...


def generate_on_pool(
    pool: Pool,
    model: ModelSource,
    prompt: str,
    *,
    policy: str | AnyPolicy = "off",
    given: Given | None = None,
    scores: PromptScores | None = None,
    sampler: str | None = None,
    previews: bool = False,
    progress: Callable[[PoolProgress], None] | None = None,
    **settings: Any,
) -> Generation:
    """Waits for the video; whatever ends the wait (Ctrl-C, too) cancels the job.

    Args:
        settings: negative, seed, steps, guidance, num_frames, height, width, total_frames, kept as Pipeline.generate.
        sampler: by name, for models that take others.
        previews: small pictures come with the progress.

    Raises:
        PabError, JobCancelled: as Handle.result. What `progress` raises passes through.
    """
    files, tensors = given_to_plain(given or Given())
    job = Job.read(
        {
            "model": model,
            "prompt": prompt,
            "policy": policy_to_plain(policy),
            "given": files,
            "scores": None if scores is None else Scores(**vars(scores)),
            "sampler": sampler,
            "previews": previews,
            **settings,
        }
    )
    handle = pool.submit(job, tensors, progress)
    try:
        while not handle.wait(_LOOK):
            pass
    except BaseException:
        handle.cancel()
        raise
    made = handle.result().generation
    assert made is not None
    return made
