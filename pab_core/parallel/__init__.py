"""One clip on several devices: each rank of a process group holds a part of it, attached from outside the models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoding import split_decode
    from .methods import METHODS, Sizes, check_sizes, most_ranks
    from .pipelines import ParallelPipeline, attach

_HOMES = {
    "split_decode": "decoding",
    "METHODS": "methods",
    "Sizes": "methods",
    "check_sizes": "methods",
    "most_ranks": "methods",
    "ParallelPipeline": "pipelines",
    "attach": "pipelines",
}
__all__ = ["METHODS", "ParallelPipeline", "Sizes", "attach", "check_sizes", "most_ranks", "split_decode"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name is asked for: a worker's process starts without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
