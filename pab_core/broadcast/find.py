"""Policies by name: the one place where a name, or a file, becomes a policy for a model."""

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ..errors import PabError
from .calibrated import calibrated_names, calibrated_path
from .delta_dit import DELTA_DIT, DeltaDit
from .policy import Policy, Window
from .predictors import HISTORY, check_predictor
from .presets import FAMILIES, family_mlp_rules, pab
from .teacache import TeaCache, coefficients_of, teacache
from .tgate import tgate

if TYPE_CHECKING:  # pydantic takes its time
    from .schedule_file import ScheduleFile

AnyPolicy = Union[Policy, DeltaDit, TeaCache, "ScheduleFile"]
_RANGES = re.compile(r"(pab|scores)(?:([1-9])([1-9])([1-9])|(\d{1,3})-(\d{1,3})-(\d{1,3}))")
_STEPS = re.compile(r"steps([1-9]\d{0,3})")
_TEACACHE = re.compile(r"teacache(\d*\.?\d+)?")
_CALIBRATED = re.compile(r"calibrated(?:-([a-z0-9]+))?")


def policy_names(family: str, depth: int | None = None) -> tuple[str, ...]:
    """The policies that a model can be given by name, to list them; `pab` takes any ranges and `steps` any number.

    A policy of ranges or of a file may be followed by a predictor, as in pab246+linear.

    depth: where given, those that need calibration are named only for models that have it.
    """
    first = FAMILIES[family].names[0]
    names = ["off", *FAMILIES[family].names, "pab444", "tgate", "delta-dit", f"scores{first[3:]}", "steps20"]
    if depth is None or coefficients_of(family, depth) is not None:
        names.append("teacache")
    return (*names, *(("calibrated",) if depth is None else calibrated_names(family, depth)))


def find_policy(policy: "str | os.PathLike[str] | AnyPolicy", family: str, depth: int) -> AnyPolicy:
    """The policy of that name or in that schedule file, for a model of `depth` blocks a stream; a policy is itself.

    Raises:
        PabError: there is no such name or file, or it is not for this model.
    """
    policy = read_files(policy)
    if not isinstance(policy, str):
        if hasattr(policy, "check_model"):
            policy.check_model(family, depth)  # pyright: ignore[reportAttributeAccessIssue]
        return policy
    name = policy
    base, predictor = _split(name)
    if predictor:
        return _predicted(find_policy(base, family, depth), check_predictor(predictor))
    if name == "off":
        return Policy(name="off")
    if name == "tgate":
        return tgate(family)
    if name == "delta-dit":
        return DELTA_DIT[family]
    if found := _CALIBRATED.fullmatch(name):
        return _calibrated(family, depth, found[1] or "")
    if found := _STEPS.fullmatch(name):
        return Policy(name, steps=int(found[1]))
    if found := _TEACACHE.fullmatch(name):
        return teacache(family, depth, float(found[1]) if found[1] else None)
    if found := _RANGES.fullmatch(name):
        spatial, temporal, cross = (int(digits) for digits in found.groups()[1:] if digits)
        ranges = pab(name, spatial, temporal, cross, family, depth)
        # Those of one digit may be published ones, which may outlast a short run; these were set by hand.
        checked = ("spatial", "temporal", "cross") if "-" in name else ()
        return replace(ranges, scores=found[1] == "scores", checked=checked)
    known = policy_names(family, depth)
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise PabError(
        f"There is no policy named '{name}'.{hint} Known are {', '.join(known)}; pab followed by any three ranges "
        "(spatial, temporal, cross), such as pab444; steps and a number; and the path of a schedule file."
    )


def read_files(policy: "str | os.PathLike[str] | AnyPolicy") -> "str | AnyPolicy":
    """A policy that needs no file any more, to be told to another machine too: schedule files are read, with the
    predictor that may stand behind their path; names and policies stay what they are.

    PabError where a file cannot be read or is no schedule, or the policy is neither a name, a path nor a policy.
    """
    if not isinstance(policy, (str, os.PathLike)):
        if not isinstance(policy, Policy) and not hasattr(policy, "resolve"):
            raise PabError(
                f"A policy is a name such as pab246, the path of a schedule file or a Policy, not {policy!r}."
            )
        return policy
    name = os.fspath(policy)
    base, predictor = _split(name)
    if predictor in HISTORY and _is_path(policy, base):
        return _predicted(_load(Path(base)), predictor)
    return _load(Path(name)) if _is_path(policy, name) else name


def customise(
    policy: "str | os.PathLike[str] | AnyPolicy",
    family: str,
    depth: int,
    *,
    spatial: int | None = None,
    temporal: int | None = None,
    cross: int | None = None,
    mlp: bool | None = None,
    window: Window | None = None,
) -> AnyPolicy:
    """A policy, as `find_policy` takes it, with a user's own settings on top; None leaves a setting as the policy has
    it.

    Where the policy is off, it has neither a window nor MLP rules of its own: those of the family are taken.

    Raises:
        PabError: as from `find_policy`; a range that is not a whole number, 1 or more; settings for a policy that has
            neither ranges nor a window.
    """
    base = find_policy(policy, family, depth)
    if not isinstance(base, Policy):
        if any(setting is not None for setting in (spatial, temporal, cross, mlp, window)):
            raise PabError(
                f"The policy {base.name} has no ranges or window to change: leave them out, or choose one of those "
                "named pab."
            )
        return base
    rules = family_mlp_rules(family, depth)
    changed = base.with_changes(
        spatial=spatial, temporal=temporal, cross=cross, mlp=mlp, window=window, mlp_rules=rules
    )
    if base.is_off and base.window == Window() and window is None and not changed.is_off:
        return replace(changed, window=FAMILIES[family].window)
    return changed


def _is_path(policy: "str | os.PathLike[str]", name: str) -> bool:
    return isinstance(policy, os.PathLike) or name.endswith(".json") or "/" in name or "\\" in name


def _split(name: str) -> tuple[str, str]:
    """ "pab246+linear" -> "pab246" and "linear", "" where no predictor is named. PabError where two are."""
    base, plus, predictor = name.rpartition("+")
    before = base.rpartition("+")
    if predictor in HISTORY and before[1] and before[2] in HISTORY:
        raise PabError(f"{name} names two predictors, {before[2]} and {predictor}: leave one of them out.")
    return (base, predictor) if plus else (name, "")


def _predicted(policy: AnyPolicy, predictor: str) -> AnyPolicy:
    """The policy with its reused steps predicted."""
    base, _, before = policy.name.rpartition("+")  # which a file may have been written with
    name = f"{base if base and before in HISTORY else policy.name}+{predictor}"
    if isinstance(policy, Policy) and not policy.is_off:
        return replace(policy, name=name, predictor=predictor)
    if hasattr(policy, "rules"):
        changed: Any = policy
        if changed.merge and predictor == "gate":
            raise PabError(
                f"The schedule '{policy.name}' keeps neighbouring branches as one sum, which has no gate of its own: "
                "choose another predictor than gate, or a copy of the file without merge."
            )
        return type(changed).model_validate({**changed.model_dump(), "name": name, "predictor": predictor})
    raise PabError(
        f"The policy {policy.name} keeps no single updates to predict from: leave out +{predictor}, or choose one of "
        "those named pab or a schedule file."
    )


def _calibrated(family: str, depth: int, name: str) -> "ScheduleFile":
    path = calibrated_path(family, depth, name)
    if not path.is_file():
        called = f" named {name}" if name else ""
        raise PabError(
            f"No schedule{called} has been calibrated for a {family} model of depth {depth} yet: make one with pab "
            "calibrate, or give a schedule file as the policy."
        )
    return _from_file(path, family, depth)


def _from_file(path: Path, family: str, depth: int) -> "ScheduleFile":
    schedule = _load(path)
    schedule.check_model(family, depth)
    return schedule


def _load(path: Path) -> "ScheduleFile":
    from .schedule_file import load_schedule

    try:
        path = path.expanduser()
    except RuntimeError:
        raise PabError(f"The schedule file {path} cannot be read (there is no such user): check its name.") from None
    return load_schedule(path)
