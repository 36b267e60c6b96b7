"""What the fields of a model offer: its title, its sizes and lengths, its policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..broadcast.calibrated import calibrated_names, own_folder
from ..conditioning import check_takes_frames
from ..errors import PabError
from ..models.registry import ModelSpec
from ..settings import schedule_for
from ..sizes import DURATIONS, RESOLUTIONS, is_named_size, size_of
from .ideas import is_demo
from .models import Offered
from .request import LEVELS
from .texts import level_title, model_title

_RATIOS = ("16:9", "1:1", "9:16")
_PACKAGED = ("calibrated", "calibrated-fast")  # the package's others lie between them


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
    """Choices of a policy: (words, name); what is nearest to the original before what is less so."""
    return [(level_title(name, language), name) for name in ("off", *calibrated_levels(offered), *LEVELS)]


def calibrated_levels(offered: Offered) -> tuple[str, ...]:
    """The policies that were calibrated for a model, that which saves least first: all of the user's own, and those of
    the package that have a name in words."""
    spec, own, shares = offered.spec, _own(offered.spec), dict[str, float]()
    for name in calibrated_names(spec.family, spec.depth):
        try:
            if name in _PACKAGED or name in own:
                shares[name] = schedule_for(spec, name, offered.sampler).reused_share()
        except PabError:
            continue  # a broken file must not take the others away
    return tuple(sorted(shares, key=shares.__getitem__))


def first_level(offered: Offered) -> str:
    """What is chosen where nobody has chosen: what was calibrated, for nothing is nearer to the original in that time;
    but not what the package carried over to a released model from the demo model of its kind, which nobody measured."""
    measured = is_demo(offered.spec) or "calibrated" in _own(offered.spec)
    return "calibrated" if measured and "calibrated" in calibrated_levels(offered) else LEVELS[0]


def _own(spec: ModelSpec) -> tuple[str, ...]:
    """The policies that a user calibrated, here."""
    return calibrated_names(spec.family, spec.depth, (own_folder(),))


def takes_pictures(spec: ModelSpec) -> bool:
    """Whether a video can start from given pictures."""
    try:
        check_takes_frames(spec)
    except PabError:
        return False
    return True
