"""The published policies by name, for each family of models.

Windows and MLP rules are fractions of the run, so that they hold at every size, length and step count. At the setting
for which the authors tuned them (Open-Sora 1.2: 480p, 51 frames, 30 steps; Latte-1: 50 steps; Open-Sora-Plan v1.1.0:
150 steps, which are 159 calls of the model) they resolve to exactly the authors' schedule. Source of the figures:
NUS-HPC-AI-Lab/VideoSys and arXiv 2408.12588.
"""

import math
from dataclasses import dataclass

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


def pab(name: str, spatial: int, temporal: int, cross: int, family: str, depth: int) -> Policy:
    """Pyramid Attention Broadcast with these ranges, in the family's window and with its MLP rules."""
    # As with the authors, no kind of attention broadcast means no broadcast at all.
    rules = family_mlp_rules(family, depth) if max(spatial, temporal, cross) > 1 else ()
    window = FAMILIES[family].window
    return Policy(name, spatial, temporal, cross, window, mlp_spatial=rules, mlp_temporal=rules)
