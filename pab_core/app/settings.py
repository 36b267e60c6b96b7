"""How the studio is run: where it listens, who may come in, where videos are kept, how much one user may ask for."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PabError


@dataclass(frozen=True)
class Limits:
    """What a single video and the queue may take. They keep one user from filling a shared machine."""

    pixels: int = 1280 * 720  # of a frame
    frames: int = 408
    steps: int = 250
    prompt: int = 4000  # characters
    queued: int = 30  # jobs that wait, of all users
    queued_each: int = 8  # jobs of one user that wait or run
    upload_mb: int = 25
    upload_pixels: int = 64_000_000
    free_mb: int = 200  # that must be left on the disk before a job is taken


@dataclass(frozen=True)
class StudioSettings:
    """All of it is set where the studio is started; nothing of it can be changed from the page."""

    data: Path  # holds history.sqlite, uploads/, and videos/, the only folder that is served
    models: tuple[str, ...] = ()  # checkpoints beside those known by name: folders or files
    device: str | None = None  # None: the GPU if there is one
    devices: str | None = None  # several, which share each video: "auto", "0,1" or "cpu*2"
    method: str = "auto"  # how they share it
    workers: bool = False  # on the pool that `pab workers` keeps in the background
    speed: str = "auto"  # of acceleration.choice
    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[str, str] | None = None
    root_path: str = ""  # where a reverse proxy shows the page, such as "/pab"
    limits: Limits = field(default_factory=Limits)

    @property
    def videos(self) -> Path:
        return self.data / "videos"

    @property
    def uploads(self) -> Path:
        return self.data / "uploads"

    @property
    def bench(self) -> Path:
        """Of what was measured on this machine; it need not exist."""
        return self.data / "bench"

    @property
    def database(self) -> Path:
        return self.data / "history.sqlite"

    def make_folders(self) -> None:
        """PabError where they cannot be made."""
        try:
            for folder in (self.data, self.videos, self.uploads):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PabError(
                f"The studio cannot keep its videos in {self.data}: {error.strerror}; choose another folder with "
                "--output."
            ) from None

    def check_space(self) -> None:
        """PabError where the disk is all but full."""
        free = shutil.disk_usage(self.data).free
        if free < self.limits.free_mb * 10**6:
            raise PabError(
                f"The disk that keeps the videos is full: {free // 10**6} MB are left. Delete videos in the history, "
                "or make room elsewhere, then try again."
            )


def not_kept(what: str, error: OSError) -> str:
    """What a user is told where a file could not be written."""
    return (
        f"{what} could not be kept: {error.strerror or error}. If the disk is full, delete videos in the history, or "
        "make room elsewhere."
    )


def default_data() -> Path:
    """Where videos are kept if nothing else is said: $PAB_STUDIO, else a folder of the user's home."""
    return Path(os.environ.get("PAB_STUDIO") or Path.home() / "pab-studio")


def parse_auth(text: str) -> tuple[str, str]:
    """ "ann:secret" -> ("ann", "secret"). PabError where a part is missing."""
    user, _, password = text.partition(":")
    if not user or not password:
        raise PabError("--auth takes a name and a password with a colon between, as in --auth ann:secret.")
    return user, password
