"""How long a pool waits for its workers before it takes one for dead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Seconds.

    beat: without any sign of life from a process, whose threads send one every half second.
    start: until a new process is ready; most of it is the import of torch.
    join: until all ranks have found each other.
    load: reading a model, and a job's first step and first decoded frames, where kernels are made and text is encoded.
    step: without progress, at least; more where steps were seen to take longer.
    factor: times the longest step that was seen.
    settle: for the ranks that are left to end a job in which one has failed.
    """

    beat: float = 20.0
    start: float = 180.0
    join: float = 60.0
    load: float = 1800.0
    step: float = 120.0
    factor: float = 20.0
    settle: float = 15.0


class Watch:
    """Follows the progress of one job on one rank."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self._since = now
        self._stage = ""
        self._seen = 0  # progress of this stage
        self._longest = 0.0
        self.place = "before its first step"

    def progress(self, stage: str, done: int, total: int, now: float) -> None:
        if stage != self._stage:
            self._stage, self._seen = stage, 0
        elif self._seen:
            self._longest = max(self._longest, now - self._since)
        self._seen += 1
        self._since = now
        self.place = f"in step {done + 1} of {total}" if stage == "denoise" else f"while it {_DOING.get(stage, stage)}"
        if stage == "denoise" and done >= total:
            self.place = "after its last step"

    @property
    def bound(self) -> float:
        """Longest silence from here on; after the last step follows another stage's first."""
        patience = self._patience
        if self._stage not in ("denoise", "decode") or self._seen < 2 or self.place == "after its last step":
            return patience.load
        return max(patience.step, patience.factor * self._longest)

    def overdue(self, now: float) -> bool:
        return now - self._since > self.bound

    def postpone(self, seconds: float) -> None:
        """The watcher itself was stopped for so long."""
        self._since += seconds


_DOING = {"load": "loaded the model", "decode": "decoded"}
