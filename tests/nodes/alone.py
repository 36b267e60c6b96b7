"""A module of the plugin without its package, which wants the host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

NODES = Path(__file__).resolve().parents[2] / "nodes"


def load_alone(path: str) -> Any:
    """path: of the file, in nodes/."""
    spec = importlib.util.spec_from_file_location("alone", NODES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
