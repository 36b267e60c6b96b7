"""T-GATE (arXiv 2404.02747) as the paper of PAB compares it: self-attention is reused early in the run, and the text's
influence is frozen for the rest of it. The MLP is always computed.

Settings: the comparison's own (NUS-HPC-AI-Lab/VideoSys, branch exp/tgate_deltadit).
"""

from dataclasses import dataclass

from .policy import TO_THE_END, Policy, Window


@dataclass(frozen=True)
class Gates:
    """In calls of the model, of a run of `steps` calls."""

    self_attention: int  # up to this step, self-attention is computed at every `interval`-th only
    cross_attention: int  # the last step that computes cross-attention
    interval: int
    steps: int


GATES = {
    "stdit3": Gates(12, 12, 2, 30),
    "latte": Gates(20, 20, 2, 50),
    "open-sora-plan": Gates(60, 90, 3, 159),
}


def tgate(family: str) -> Policy:
    """The policy for a family of models, at the same fractions of runs of any length."""
    gates = GATES[family]
    return Policy(
        "tgate",
        spatial=gates.interval,
        temporal=gates.interval,
        cross=TO_THE_END,
        window=Window(0, gates.self_attention / gates.steps),
        windows=(("cross", Window((gates.cross_attention + 1) / gates.steps, 1)),),
    )
