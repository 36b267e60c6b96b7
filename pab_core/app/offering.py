"""What the fields of a model offer: its title, its sizes and lengths, its policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..broadcast.calibrated import calibrated_names
from ..conditioning import check_takes_frames
from ..errors import PabError
from ..models.registry import ModelSpec
from ..settings import schedule_for
from ..sizes import DURATIONS, RESOLUTIONS, is_named_size, size_of
from .models import Offered
from .request import LEVELS
from .texts import model_title, text

_RATIOS = ("16:9", "1:1", "9:16")


def title_of(offered: Offered, language: str = "en") -> str:
    """As it begins a line."""
    title = offered.spec.title
    return model_title(offered.spec.name, title[:1].upper() + title[1:], language)


def model_choices(offered: Mapping[str, Offered]) -> Callable[[str], list[tuple[str, str]]]:
    """Choices of a list of models: (title, name)."""
    return lambda language: [(title_of(one, language), name) for name, one in offered.items()]


def size_choices(spec: ModelSpec) -> dict[str, Any]:
    """The model's own size first; for Open-Sora those that it was trained with."""
    own = f"{spec.width}x{spec.height}"
    if not (spec.family == "stdit3" and is_named_size(spec.height, spec.width)):
        return {"choices": [own], "value": own}
    named = [size_of(resolution, ratio) for resolution in RESOLUTIONS for ratio in _RATIOS]
    return {"choices": list(dict.fromkeys([own, *(f"{wide}x{high}" for high, wide in named)])), "value": own}


def length_choices(spec: ModelSpec) -> dict[str, Any]:
    own = str(spec.num_frames)
    more = list(DURATIONS) if spec.family == "stdit3" and is_named_size(spec.height, spec.width) else []
    return {"choices": [own, *more], "value": own}


def level_choices(offered: Offered, language: str) -> list[tuple[str, str]]:
    """Choices of a policy: (words, name)."""
    levels = {level: level for level in ("off", *LEVELS)} | calibrated_levels(offered)
    return [(text(key, language), name) for key, name in levels.items()]


def calibrated_levels(offered: Offered) -> dict[str, str]:
    """Of what was calibrated for a model: key of the words -> policy. {}, or one, or with it the one that saves most.

    The one is `calibrated`, or what saves least where none has that name.
    """
    spec, shares = offered.spec, dict[str, float]()
    for name in calibrated_names(spec.family, spec.depth):
        try:
            shares[name] = schedule_for(spec, name, offered.sampler).reused_share()
        except PabError:
            continue  # a broken file must not take the others away
    if not shares:
        return {}
    first = "calibrated" if "calibrated" in shares else min(shares, key=shares.__getitem__)
    most = max(shares, key=shares.__getitem__)
    return {"calibrated": first} | ({"calibrated_fast": most} if shares[most] > shares[first] else {})


def takes_pictures(spec: ModelSpec) -> bool:
    """Whether a video can start from given pictures."""
    try:
        check_takes_frames(spec)
    except PabError:
        return False
    return True
