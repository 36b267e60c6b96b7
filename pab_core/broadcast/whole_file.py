"""Files that are there whole or not at all, also when the program is killed while it writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import PabError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; what lies there at the end takes the place of `path`, whose folder is made.

    PabError where the file cannot be written.
    """
    part = path.with_name(f".{secrets.token_hex(6)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise PabError(f"{path} cannot be written ({error}): choose another place.") from None
    finally:
        with contextlib.suppress(OSError):  # such as of a folder that is a file
            part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> Path:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path
