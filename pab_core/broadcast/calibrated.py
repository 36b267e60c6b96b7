"""Where schedules and coefficients lie that were calibrated for a model, and under which names they are found.

A user's own come first, in $PAB_SCHEDULES or a folder of the user's data, so that who calibrates a model is given the
result; then those that come with the package. Files are named by the model's family and depth:

    stdit3-28.json                 the policy `calibrated`
    stdit3-28-fast.json            the policy `calibrated-fast`
    stdit3-28.teacache.json        coefficients of `teacache`
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import PabError
from .whole_file import write_whole

PACKAGED = Path(__file__).resolve().parent / "schedules"
_NAME = re.compile(r"[a-z0-9]{1,24}")


def own_folder() -> Path:
    """Where `pab calibrate` writes: $PAB_SCHEDULES, else a folder of the user's data. It need not exist."""
    return Path(os.environ.get("PAB_SCHEDULES") or Path.home() / ".local" / "share" / "pab" / "schedules")


def own_path(family: str, depth: int, name: str = "") -> Path:
    """Where a schedule has to lie to be the policy `calibrated`, or `calibrated-NAME`.

    PabError where a name is not made of small letters and digits.
    """
    if name and not _NAME.fullmatch(name):
        raise PabError(
            f"A calibrated schedule is named by up to 24 small letters and digits, such as fast, not {name!r}."
        )
    return own_folder() / _file(family, depth, name)


def calibrated_path(family: str, depth: int, name: str = "") -> Path:
    """The schedule of that name, the user's before the package's; where there is none, a path that does not exist."""
    return _first(_file(family, depth, name))


def calibrated_names(family: str, depth: int, folders: Sequence[Path] | None = None) -> tuple[str, ...]:
    """The policies that were calibrated for a model, by name. folders: None: the user's and the package's."""
    stem = f"{family}-{depth}"
    found = {path.stem for folder in folders or (own_folder(), PACKAGED) for path in folder.glob(f"{stem}*.json")}
    names = sorted(name.removeprefix(stem) for name in found)
    return tuple(f"calibrated{name}" for name in names if not name or (name[0] == "-" and _NAME.fullmatch(name[1:])))


def coefficients_path(family: str, depth: int) -> Path:
    return own_folder() / f"{family}-{depth}.teacache.json"


def read_coefficients(family: str, depth: int) -> tuple[float, ...] | None:
    """TeaCache's, highest power first, from a file; None where there is none. PabError where it holds no such thing."""
    path = _first(coefficients_path(family, depth).name)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["coefficients"]
        values = tuple(float(value) for value in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PabError(f"{path} holds no coefficients for TeaCache ({error}): make them anew or remove it.") from None
    if not values or not all(map(math.isfinite, values)):
        raise PabError(f"{path} holds no coefficients for TeaCache: make them anew or remove it.")
    return values


def write_coefficients(path: Path, family: str, depth: int, coefficients: Sequence[float], note: str) -> Path:
    told = {"model": {"family": family, "depth": depth}, "coefficients": list(coefficients), "note": note}
    return write_whole(path, json.dumps(told, indent=2) + "\n")


def _first(name: str) -> Path:
    own = own_folder() / name
    return own if own.is_file() else PACKAGED / name


def _file(family: str, depth: int, name: str) -> str:
    return f"{family}-{depth}{'-' if name else ''}{name}.json"
