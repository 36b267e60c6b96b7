"""Pictures that users send: checked, and written anew before anything else looks at them.

What is kept is a PNG of our own making under a random name; nothing of the file that came, neither name nor bytes, goes
further than this.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Set
from pathlib import Path

from PIL import Image

from ..errors import PabError
from ..frame_input import PICTURES, read_picture
from .settings import Limits, not_kept

_LONGEST_SIDE = 2048  # pixels; no model here makes larger frames
_NAME = re.compile(r"[0-9a-f]{32}")
_UNUSED = 24 * 3600.0  # seconds after which a picture that no video was made from is deleted


def keep_picture(upload: str | Path, folder: Path, limits: Limits) -> str:
    """Checks an uploaded file and keeps it as a PNG in `folder`; returns its name, for `find_picture`.

    Raises:
        PabError: too large, of a kind that is not taken, damaged, or no room to keep it.
    """
    path = Path(upload)
    if path.suffix.lower() not in PICTURES:
        raise PabError(f"Pictures of the kind '{path.suffix or '?'}' are not taken: send a PNG, JPEG or WebP file.")
    size = path.stat().st_size
    if size > limits.upload_mb * 10**6:
        raise PabError(f"The picture has {size / 10**6:.0f} MB; {limits.upload_mb} MB are the most.")
    _check_pixels(path, limits.upload_pixels)
    try:
        picture = read_picture(path)
    except PabError:
        raise PabError("The file could not be read as a picture: it is damaged or of an unknown kind.") from None
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    name = secrets.token_hex(16)
    try:
        picture.save(folder / f"{name}.png")
    except OSError as error:
        (folder / f"{name}.png").unlink(missing_ok=True)
        raise PabError(not_kept("The picture", error)) from None
    return name


def find_picture(name: str, folder: Path) -> Path:
    """The file of a kept picture. PabError where the name is none that `keep_picture` gave, or it was swept."""
    path = folder / f"{name}.png"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise PabError("The picture is no longer here: send it again.")
    with contextlib.suppress(OSError):
        os.utime(path)  # its time is that of its last use, by which sweep_pictures goes
    return path


def sweep_pictures(folder: Path, kept: Set[str]) -> None:
    """Deletes those that nobody used for a day, except the names in `kept`."""
    now = time.time()
    for path in folder.glob("*.png"):
        with contextlib.suppress(OSError):  # somebody else deleted it, or has it open
            if path.stem not in kept and now - path.stat().st_mtime > _UNUSED:
                path.unlink()


def _check_pixels(path: Path, most: int) -> None:
    """Says by the header alone that a picture is too large to be decoded."""
    try:
        with Image.open(path) as image:
            wide, high = image.size
    except Image.DecompressionBombError:
        raise PabError(f"The picture is too large: {most // 10**6} million pixels are the most.") from None
    except (OSError, SyntaxError, ValueError):
        raise PabError("The file could not be read as a picture: it is damaged or of an unknown kind.") from None
    if wide * high > most:
        raise PabError(f"The picture has {wide}x{high} pixels; {most // 10**6} million are the most.")
