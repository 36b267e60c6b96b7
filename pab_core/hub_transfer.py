"""One file from the Hugging Face Hub: fetched, or completed where it was broken off, and checked.

huggingface_hub moves the bytes. Here are progress, checksums, and going on where a download was broken off, which its
own `hf_hub_download` no longer does. A file is kept as `name.<checksum>.part` until it is whole and right; only then it
gets its name.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PabError

Progress = Callable[[int, int], None]

_HTTP_LIBRARIES = {"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2"}
_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TRIES = 5
_PIECE = 2**24  # bytes that are read at once


@dataclass(frozen=True)
class HubFile:
    """A file on the Hub and where it goes."""

    url: str
    path: Path
    size: int  # bytes
    sha256: str | None  # of files in large file storage
    git_sha1: str | None  # git's own checksum of the others

    @property
    def partial(self) -> Path:
        """Named by the checksum, so that pieces of two versions never meet."""
        return self.path.with_name(f"{self.path.name}.{(self.sha256 or self.git_sha1 or '')[:12]}.part")

    @property
    def there(self) -> bool:
        """Whether it has been fetched: what has its name and size was checked when it got the name."""
        return self.path.is_file() and size_of(self.path) == self.size

    @property
    def fetched(self) -> int:
        """Bytes of the partial file that can be kept."""
        return size_of(self.partial) if size_of(self.partial) <= self.size else 0

    def hasher(self) -> Any:
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def is_right(self, hasher: Any) -> bool:
        expected = self.sha256 or self.git_sha1
        return expected is None or hasher.hexdigest() == expected


class Count:
    """Bytes done and in all, told to the caller; `raised` is what its progress callback raised."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.raised: BaseException | None = None

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is None:
            return
        try:
            self.progress(self.done, self.total)
        except BaseException as error:
            self.raised = error
            raise


class Sink:
    """The partial file as huggingface_hub writes to it: what arrives is hashed and counted as it passes."""

    def __init__(self, file: HubFile, count: Count) -> None:
        self.count, self.file, self.length = count, file, 0
        file.partial.parent.mkdir(parents=True, exist_ok=True)
        self.stream = file.partial.open("a+b")
        self.truncate(file.fetched)

    def write(self, data: bytes) -> int:
        self.stream.write(data)
        self.hasher.update(data)
        self.length += len(data)
        self.count.add(len(data))
        return len(data)

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """Also called by huggingface_hub, for a server that begins again instead of going on."""
        before, self.length = self.length, self.stream.truncate(size)
        self.hasher = self.file.hasher()
        self.stream.seek(0)
        while piece := self.stream.read(_PIECE):
            self.hasher.update(piece)
        self.count.add(self.length - before)
        return self.length

    def close(self) -> None:
        self.stream.close()


def fetch(file: HubFile, token: str | None, count: Count) -> None:
    """Fetches what is missing of a file, checks it and gives it its name.

    Raises:
        PabError: no connection, no room, or the file came damaged (it is then deleted). What the progress callback
            raises passes as it is. In all cases but damage a later call goes on where this one stopped.
    """
    right = False
    try:
        for left in reversed(range(_TRIES)):
            with closing(Sink(file, count)) as sink:
                if _take(file, sink, token, last=left == 0):
                    right = file.is_right(sink.hasher)
                    break
            count.done -= sink.length  # the next one counts it again
        if right:
            os.replace(file.partial, file.path)
            return
        file.partial.unlink()
    except Exception as error:
        if error is count.raised:
            raise
        kept = "What was fetched is kept: start the download again, and it goes on there."
        raise explained(error, file.path.name, kept) from None
    count.add(-file.size)
    raise PabError(
        f"{file.path} came damaged: its checksum is not the one that the Hub names, so it was deleted. Start the "
        "download again; if that does not help, something on the way to the Hub changes files."
    )


def _take(file: HubFile, sink: Sink, token: str | None, last: bool) -> bool:
    """Whether the rest of the file came; False to try once more, unless it was the last time."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # Nothing on the way may pack the bytes; and a range of one's own keeps huggingface_hub from handing the file to a
    # faster program that knows of neither progress nor resuming.
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity", "Range": "bytes=0-"}
    before = sink.length
    try:
        # A Sink is all of a BinaryIO that it uses.
        http_get(file.url, sink, resume_size=sink.tell(), headers=headers, expected_size=file.size)  # pyright: ignore
    except Exception as error:
        # huggingface_hub goes on by itself after most breaks, but before its version 1 not where a stream ended early
        # (an error of the HTTP library) or began anew (a plain OSError, at the end).
        odd = type(error) is OSError and error.errno is None
        if last or error is sink.count.raised or not (odd or (_is_network(error) and sink.length > before)):
            raise
        return False
    return True


def link_twin(file: HubFile, folder: Path, count: Count) -> bool:
    """Whether the file, of `folder`, lay in a folder beside that one under the same path, and is now here too.

    It is linked, which costs no room on the disk; and only where its checksum is right.
    """
    for other in sorted(folder.absolute().parent.iterdir()) if folder.absolute().parent.is_dir() else ():
        twin = other / file.path.relative_to(folder)
        if file.sha256 is None or other == folder.absolute() or size_of(twin) != file.size:
            continue
        hasher, before = file.hasher(), count.done
        with twin.open("rb") as stream:
            while piece := stream.read(_PIECE):
                hasher.update(piece)
                count.add(len(piece))
        if file.is_right(hasher):
            link = file.path.with_name(f"{file.path.name}.link")
            try:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                os.link(twin, link)
                os.replace(link, file.path)
                return True
            except OSError:  # a disk, or another disk, without links
                pass
        count.add(before - count.done)
    return False


def explained(error: Exception, what: str, hint: str) -> Exception:
    """What went wrong with network or disk, as a sentence; an error of another kind as it is."""
    from huggingface_hub.utils import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    told = ""
    if isinstance(error, GatedRepoError):
        return PabError(f"{what} is open only to those who accepted its terms: do so on its page, then log in.")
    if isinstance(error, RepositoryNotFoundError):
        return PabError(f"The Hub has no {what}, or it is private: check the name, or log in with `hf auth login`.")
    if isinstance(error, HFValidationError):
        return PabError(f"'{what}' is no name of a repository on the Hub; it must be like maxin-cn/Latte-1.")
    if isinstance(error, HfHubHTTPError):
        told = f"The Hub does not give {what} (status {getattr(error.response, 'status_code', 'unknown')})."
    elif _is_network(error):
        told = f"There is no connection to the Hub ({str(error).strip().partition(chr(10))[0]:.200})."
    elif isinstance(error, OSError) and error.errno in _NO_ROOM:
        told = f"The disk is full, and {what} is not whole: free some space."
    elif isinstance(error, OSError) and error.errno is not None:
        return PabError(f"{error.filename or what} cannot be written ({error.strerror}); choose another folder.")
    elif isinstance(error, OSError):  # huggingface_hub's own
        told = f"The server sent more or less of {what} than it announced."
    return PabError(f"{told} {hint}") if told else error


def _is_network(error: BaseException) -> bool:
    """Whether it comes from an HTTP library: from which one depends on huggingface_hub's version."""
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        base.__module__.partition(".")[0] in _HTTP_LIBRARIES for base in type(error).__mro__
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """huggingface_hub's own bars would stand beside the caller's."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
