"""What the ranks of a parallel method tell each other in one video: `pab bench comm`.

The collectives are counted where they run, in small runs with as many processes as ranks (comm_ranks.py), and scaled to
the released model: by the tokens of a frame, the width and the depth, and from float32 to bfloat16. The paper's table
(arXiv 2408.12588) counts, for each GPU, the whole of what it puts into an exchange or has after a gather, in temporal
attention alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..broadcast import ScheduleTable
from ..errors import PabError
from ..models.registry import ARCHITECTURES, ModelSpec, model_spec
from ..parallel.collectives import PREDICTION, TEMPORAL
from ..parallel.methods import SEQUENCE_METHODS, Sizes, check_sizes, find_method
from ..settings import schedule_for
from .comm_ranks import LATENT_ROWS, WIDTH, latent_columns

PAPER_METHODS = ("megatron", "ulysses", "dsp")  # in the order of the paper's table
PAPER_POLICIES = ("off", "pab246")
_DEPTH = 2  # blocks a stream that stand for all, where all have one schedule
_ITEM = 2  # bytes of a number, bfloat16; the small runs compute in float32
_ROOT = Path(__file__).resolve().parent.parent.parent  # the folder that holds pab_core


@dataclass(frozen=True)
class CommRow:
    """GB (1e9 bytes) of one GPU for one video."""

    method: str
    policy: str
    gigabytes: float  # as the paper counts
    gigabytes_padded: float  # with shards padded to the largest; so much has the rank with the largest shards to do


@dataclass(frozen=True)
class CommReport:
    model: str
    ranks: int
    rows: tuple[CommRow, ...]
    predictions: dict[str, float]  # GB of exchanged predictions in one video, by method; the paper leaves them out

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "ranks": self.ranks,
            "rows": [asdict(row) for row in self.rows],
            "predictions": self.predictions,
        }


def measure_comm(
    model: str = "open-sora",
    ranks: int = 8,
    methods: Sequence[str] = PAPER_METHODS,
    policies: Sequence[str] = PAPER_POLICIES,
    seconds: float = 300,
) -> CommReport:
    """Counts the collectives of a small run for each method and policy, with `ranks` processes.

    Args:
        model: open-sora, latte or open-sora-plan; its default clip.
        seconds: the longest that the small runs may take.

    Raises:
        PabError: unknown names, more ranks than a method can use, none at all; a policy that decides in the run.
    """
    spec = model_spec(model)
    for method in methods:
        if find_method(method).sequence is None:
            raise PabError(
                f"The method {method} exchanges nothing in temporal attention, which is what is counted here: choose "
                f"of {', '.join(SEQUENCE_METHODS)}, or one of them after cfg+."
            )
        check_sizes(method, ranks, Sizes.of_clip(spec))
    depth = max(_depth_for(spec, schedule_for(spec, policy), policy) for policy in policies)
    runs = [(method, policy) for method in methods for policy in policies]
    counts = _run_ranks(spec, ranks, depth, runs, seconds)
    rows = []
    predictions: dict[str, float] = {}
    scale = _scale(spec, ranks, depth) / 1e9
    latents = _latent_size(spec) / (LATENT_ROWS * latent_columns(ranks)) / 1e9
    for (method, policy), of_ranks in zip(runs, counts, strict=True):
        volume = sum(_sum(counted, TEMPORAL, "volume") for counted in of_ranks) / ranks
        padded = max(_sum(counted, TEMPORAL, "padded") for counted in of_ranks)
        rows.append(CommRow(method, policy, volume * scale, padded * scale))
        predictions[method] = max(_sum(counted, PREDICTION, "padded") for counted in of_ranks) * latents
    return CommReport(spec.name, ranks, tuple(rows), predictions)


def describe_comm(report: CommReport) -> str:
    spec = model_spec(report.model)
    lines = [
        f"{spec.title}, {spec.num_frames} frames of {spec.width}x{spec.height}, bfloat16, {report.ranks} ranks",
        "GB of one GPU for one video, in temporal attention; counted in small runs and scaled\n",
        "method      policy      GB, as the paper counts   padded shards",
    ]
    for row in report.rows:
        lines.append(f"{row.method:11} {row.policy:10} {row.gigabytes:24.2f} {row.gigabytes_padded:15.2f}")
    most = max(report.predictions.values(), default=0.0)
    lines.append(f"\nBeside these, the predictions of all calls: at most {most:.2f} GB.")
    return "\n".join(lines)


def _depth_for(spec: ModelSpec, table: ScheduleTable, policy: str) -> int:
    if table.decide is not None or table.scores:
        raise PabError(
            f"The policy {policy} "
            + (
                "decides while it runs, so what it exchanges"
                if table.decide
                else "runs all attentions: what it exchanges"
            )
            + " does not follow from a schedule: choose another, such as pab246."
        )
    rows = {row for branch, row in table.source.items() if branch.kind == "temporal"}
    return _DEPTH if len(rows) == 1 and not table.groups else spec.depth


def _scale(spec: ModelSpec, ranks: int, depth: int) -> float:
    """Bytes of the released model's run to one of the small run's."""
    small = LATENT_ROWS // 2 * (latent_columns(ranks) // 2)
    width = ARCHITECTURES[spec.family].read_config({}).hidden_size
    return Sizes.of_clip(spec).tokens / small * (width / WIDTH) * (_ITEM / 4) * (spec.depth / depth)


def _latent_size(spec: ModelSpec) -> int:
    return (spec.height // spec.space_factor) * (spec.width // spec.space_factor)


def _sum(rows: list[dict[str, Any]], purpose: str, field: str) -> int:
    return sum(row[field] for row in rows if row["purpose"] == purpose)


def _run_ranks(
    spec: ModelSpec, ranks: int, depth: int, runs: list[tuple[str, str]], seconds: float
) -> list[list[list[dict[str, Any]]]]:
    """-> for each run, for each rank, its rows of counts."""
    with tempfile.TemporaryDirectory(prefix="pab-comm-") as name:
        folder = Path(name)
        asked = {
            "model": spec.name,
            "ranks": ranks,
            "depth": depth,
            "seconds": seconds,
            "runs": [{"method": method, "policy": policy} for method, policy in runs],
        }
        (folder / "runs.json").write_text(json.dumps(asked), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        processes = []
        try:
            for rank in range(ranks):
                with (folder / f"log-{rank}.txt").open("wb") as log:
                    command = [sys.executable, "-m", f"{__package__}.comm_ranks", str(rank), name]
                    processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            _wait(processes, folder, seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        of_ranks = [json.loads((folder / f"counts-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    return [[counts[run] for counts in of_ranks] for run in range(len(runs))]


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, seconds: float) -> None:
    """Until all have ended; the first that fails ends the wait, for the others wait for it."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll()]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for rank, process in enumerate(processes):
        if process.poll() != 0:
            last = (folder / f"log-{rank}.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
            why = f"took more than {seconds:g} s" if process.poll() is None else f"failed:\n{last}"
            if process.poll() is None and any(other.poll() for other in processes):
                continue
            raise RuntimeError(f"Rank {rank} of the small runs {why}")
