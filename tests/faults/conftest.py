"""Processes that can be found again: each pool's workers carry a mark of its own in their environment."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leftovers import HERE

from pab_core.parallel.pool.watching import Patience

# Short waits: what is silent for so long on a busy test machine is taken for dead.
PATIENCE = Patience(beat=6.0, start=120.0, join=60.0, load=90.0, step=8.0, factor=30.0, settle=10.0)


@pytest.fixture
def mark() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def pool_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The private folders that pools have left; of this test alone, since it has a temporary folder of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return lambda: [path.name for path in tmp_path.glob("pab-pool-*")]


@pytest.fixture
def faulty(tmp_path: Path, mark: str) -> Callable[..., dict[str, Any]]:
    """Arguments of a WorkerPool whose workers are faulty_worker.py's; its orders go to tmp_path / "faults"."""
    orders = tmp_path / "faults"
    orders.mkdir()

    def arguments(pace: float = 0.0, **more: str) -> dict[str, Any]:
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            "PYTHONPATH": path,
            "PAB_FAULTS": str(orders),
            "PAB_PACE": str(pace),
            "PAB_MARK": mark,
            "OMP_NUM_THREADS": "1",
            **more,
        }
        return {"module": "faulty_worker", "environment": environment, "patience": PATIENCE}

    return arguments
