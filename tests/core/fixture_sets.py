"""Loads the parity fixtures: numbers made with the authors' code, one folder for each model.

The environment variable PAB_FIXTURES names another folder of such sets; they have other sizes and case names, so tests
read everything they need from the set itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class FixtureSet:
    """config: constructor arguments. cases: what to run. weights: float32 state dict. io: inputs `in.*` and results."""

    name: str
    folder: Path
    config: dict[str, Any]
    cases: list[dict[str, Any]]
    weights: dict[str, Tensor]
    io: dict[str, Tensor]
    trace: dict[str, Any] | None

    def inputs(self, case: dict[str, Any]) -> dict[str, Tensor]:
        """Argument name -> tensor."""
        return {argument: self.io[key] for argument, key in case["inputs"].items()}

    def expected(self, case: dict[str, Any]) -> dict[str, Tensor]:
        """Name of the result without the case's name (`decode1.video` -> `video`) -> tensor."""
        return {key.removeprefix(case["name"] + "."): self.io[key] for key in case["outputs"]}


def fixture_root() -> Path:
    """The folder that holds one folder for each set."""
    default = Path(__file__).resolve().parent.parent / "data" / "fixtures"
    return Path(os.environ.get("PAB_FIXTURES") or default)


def load_set(name: str) -> FixtureSet:
    """Reads the set of that folder name; FileNotFoundError when it is not there."""
    folder = fixture_root() / name
    trace = folder / "pab_trace.json"
    return FixtureSet(
        name=name,
        folder=folder,
        config=read_json(folder / "config.json"),
        cases=read_json(folder / "cases.json"),
        # Stored in half precision, exactly; the results were computed in float32.
        weights={
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(folder / "weights.safetensors").items()
        },
        io=load_file(folder / "io.safetensors"),
        trace=read_json(trace) if trace.exists() else None,
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
