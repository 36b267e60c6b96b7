"""The published policies by name, for each family of models.

Windows and MLP rules are fractions of the run, so that they hold at every size, length and step count. At the setting
for which the authors tuned them (Open-Sora 1.2: 480p, 51 frames, 30 steps; Latte-1: 50 steps; Open-Sora-Plan v1.1.0:
150 steps, which are 159 calls of the model) they resolve to exactly the authors' schedule. Source of the figures:
NUS-HPC-AI-Lab/VideoSys and arXiv 2408.12588.
"""

import difflib
import math
import re
from dataclasses import dataclass, replace

from ..errors import PabError
from .policy import MlpRule, Policy, Window, mlp_rules


@dataclass(frozen=True)
class Family:
    """How the authors set up broadcast for one family of models."""

    names: tuple[str, ...]  # the policies published for it, gentlest first
    window: Window
    mlp_at: tuple[float, ...]  # fractions of the run at which an MLP's update is kept
    mlp_skip: int  # steps that reuse it
    mlp_depth: float  # share of the blocks, from the first on, whose MLP takes part


FAMILIES = {
    "stdit3": Family(
        names=("pab246", "pab357", "pab579"),
        window=Window(9 / 30, 26 / 30),
        mlp_at=(13 / 30, 17 / 30, 21 / 30),
        mlp_skip=2,
        mlp_depth=5 / 28,
    ),
    "latte": Family(
        names=("pab236", "pab347", "pab469"),
        window=Window(10 / 50, 44 / 50),
        mlp_at=(13 / 50, 17 / 50, 21 / 50, 25 / 50, 29 / 50),
        mlp_skip=2,
        mlp_depth=5 / 28,
    ),
    "open-sora-plan": Family(
        names=("pab246", "pab357", "pab579"),
        window=Window(17 / 159, 142 / 159),
        mlp_at=tuple(step / 159 for step in range(35, 88, 4)),
        mlp_skip=2,
        mlp_depth=7 / 28,
    ),
}


def preset_names(family: str) -> tuple[str, ...]:
    return ("off", *FAMILIES[family].names)


def family_mlp_rules(family: str, depth: int) -> tuple[MlpRule, ...]:
    """The family's MLP rules for a model of `depth` blocks a stream."""
    f = FAMILIES[family]
    return mlp_rules(f.mlp_at, f.mlp_skip, range(math.ceil(f.mlp_depth * depth - 1e-9)))


def preset(name: str, family: str, depth: int) -> Policy:
    """A policy by name: "off", or "pab" and the ranges of spatial, temporal and cross attention, as in "pab246".

    Raises:
        PabError: there is no policy of that name.
    """
    if name == "off":
        return Policy(name="off")
    ranges = re.fullmatch(r"pab([1-9])([1-9])([1-9])", name)
    if ranges is None:
        known = preset_names(family)
        close = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise PabError(
            f"There is no policy named '{name}'.{hint} Known are {', '.join(known)}, and pab followed by any three "
            "ranges (spatial, temporal, cross), such as pab444."
        )
    spatial, temporal, cross = (int(digit) for digit in ranges.groups())
    # As with the authors, no kind of attention broadcast means no broadcast at all.
    rules = family_mlp_rules(family, depth) if max(spatial, temporal, cross) > 1 else ()
    return Policy(name, spatial, temporal, cross, FAMILIES[family].window, mlp_spatial=rules, mlp_temporal=rules)


def customise(
    policy: str | Policy,
    family: str,
    depth: int,
    *,
    spatial: int | None = None,
    temporal: int | None = None,
    cross: int | None = None,
    mlp: bool | None = None,
    window: Window | None = None,
) -> Policy:
    """A policy, by name or itself, with a user's own settings on top; None leaves a setting as the policy has it.

    Where the policy is off, it has neither a window nor MLP rules of its own: those of the family are taken.

    Raises:
        PabError: unknown name, or a range that is not a whole number, 1 or more.
    """
    base = preset(policy, family, depth) if isinstance(policy, str) else policy
    rules = family_mlp_rules(family, depth)
    changed = base.with_changes(
        spatial=spatial, temporal=temporal, cross=cross, mlp=mlp, window=window, mlp_rules=rules
    )
    if base.is_off and base.window == Window() and window is None and not changed.is_off:
        return replace(changed, window=FAMILIES[family].window)
    return changed
