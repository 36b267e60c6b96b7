"""Pyramid Attention Broadcast for video diffusion transformers."""

from typing import TYPE_CHECKING, Any

from .errors import PabError

if TYPE_CHECKING:
    from .broadcast import Policy, ScheduleTable
    from .pipeline import Pipeline
    from .results import Generation, Progress

__all__ = ["Generation", "PabError", "Pipeline", "Policy", "Progress", "ScheduleTable"]
__version__ = "0.1.0"

_HOMES = {
    "Generation": "results",
    "Pipeline": "pipeline",
    "Policy": "broadcast",
    "Progress": "results",
    "ScheduleTable": "broadcast",
}


def __getattr__(name: str) -> Any:
    """Torch is imported only when something that needs it is asked for: `pab --help` answers at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
