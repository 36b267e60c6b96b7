"""Every finished video with its settings: a row in SQLite for each, the files beside it in the folder of videos.

File names are made here, of random letters: no prompt and no user has a part in them.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PabError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS videos (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    created REAL NOT NULL,
    request TEXT NOT NULL,
    about TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_owner ON videos (owner, created);
"""


@dataclass(frozen=True)
class Entry:
    """One video."""

    id: str
    owner: str
    created: float  # seconds since 1970
    request: dict[str, Any]  # ClipRequest.to_json
    about: dict[str, Any]  # the metadata of the file, and what was measured
    video: Path
    thumbnail: Path


class History:
    """PabError where the database cannot be read or written."""

    def __init__(self, database: Path, videos: Path):
        self._database = database
        self._videos = videos
        self._lock = threading.Lock()
        with self._open() as connection:
            connection.executescript(_SCHEMA)

    def files_of(self, video_id: str) -> tuple[Path, Path]:
        """Where the video and its thumbnail of an id belong; for ids made here."""
        assert video_id.isalnum()
        return self._videos / f"pab-{video_id}.mp4", self._videos / f"pab-{video_id}.jpg"

    def add(self, video_id: str, owner: str, request: dict[str, Any], about: dict[str, Any]) -> Entry:
        """Notes a video whose files are there already."""
        created = time.time()
        row = (video_id, owner, created, json.dumps(request), json.dumps(about))
        with self._open() as connection:
            connection.execute("INSERT INTO videos VALUES (?, ?, ?, ?, ?)", row)
        return Entry(video_id, owner, created, request, about, *self.files_of(video_id))

    def list(self, owner: str, limit: int = 60, offset: int = 0) -> list[Entry]:
        """Newest first; rows whose video somebody removed by hand are left out."""
        query = "SELECT * FROM videos WHERE owner = ? ORDER BY created DESC, rowid DESC LIMIT ? OFFSET ?"
        with self._open() as connection:
            rows = connection.execute(query, (owner, limit, offset)).fetchall()
        entries = [self._entry(row) for row in rows]
        return [entry for entry in entries if entry.video.is_file()]

    def count(self, owner: str) -> int:
        with self._open() as connection:
            return connection.execute("SELECT count(*) FROM videos WHERE owner = ?", (owner,)).fetchone()[0]

    def get(self, video_id: str, owner: str) -> Entry:
        """PabError where the owner has no such video."""
        with self._open() as connection:
            row = connection.execute("SELECT * FROM videos WHERE id = ? AND owner = ?", (video_id, owner)).fetchone()
        if row is None:
            raise PabError("There is no such video in the history: it may have been deleted.")
        return self._entry(row)

    def pictures(self) -> set[str]:
        """The names of the pictures that any video, of any owner, was made from."""
        with self._open() as connection:
            requests = [json.loads(row[0]) for row in connection.execute("SELECT request FROM videos")]
        return {name for request in requests for key in ("picture", "last_picture") if (name := request.get(key))}

    def delete(self, video_id: str, owner: str) -> None:
        entry = self.get(video_id, owner)
        with self._open() as connection:
            connection.execute("DELETE FROM videos WHERE id = ? AND owner = ?", (video_id, owner))
        for path in (entry.video, entry.thumbnail, entry.video.with_suffix(".json")):
            path.unlink(missing_ok=True)

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        video_id, owner, created, request, about = row
        return Entry(video_id, owner, created, json.loads(request), json.loads(about), *self.files_of(video_id))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock, closing(sqlite3.connect(self._database, timeout=30)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise PabError(
                f"The history could not be read or written ({error}). If the disk is full, make room and try again."
            ) from None
