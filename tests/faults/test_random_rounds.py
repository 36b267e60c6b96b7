"""Fifty faults at random moments: no job is lost or mixed up with another, no process or folder is left.

The seed is printed; PAB_FAULT_SEED repeats a run, as far as the machine lets it.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leftovers import HERE, ROOT, marked, until
from torch import Tensor

from pab_core.parallel.pool.failures import JobCancelled, WorkerError
from pab_core.parallel.pool.folder import sweep
from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.pool import Handle, WorkerPool
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"
ROUNDS = {"kill": 12, "stop": 4, "memory": 15, "cancel": 15, "host": 4}
LONGEST = 0.8  # seconds from handing the jobs in to the fault; they take about as long
STEPS = (40, 10, 10)  # of a round's jobs


class Hosts:
    """Other hosts with workers of their own, one ready while the last is being killed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._command = [sys.executable, str(HERE / "lonely_host.py"), str(folder), "cpu"]
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self._marks: list[str] = []
        self._next = self._start()

    def _start(self) -> subprocess.Popen[str]:
        self._marks.append(secrets.token_hex(8))
        return subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**self._environment, "PAB_MARK": self._marks[-1]},
        )

    def kill(self, more: bool) -> None:
        """The host alone; its workers must follow by themselves."""
        host, mark = self._next, self._marks[-1]
        assert host.stdout is not None
        host.stdout.readline()  # "started"
        until(lambda: len(marked(mark)) == 2, 60, "for a host's worker")
        host.kill()
        host.wait()
        host.stdout.close()
        until(lambda: not marked(mark), 10, "for the end of a dead host's worker")
        if more:
            self._next = self._start()


def outcome(handle: Handle, expected: Callable[[], Tensor]) -> str:
    """ "right", or how the job failed; never another's video."""
    try:
        frames = handle.result(90).frames
    except (WorkerError, JobCancelled) as error:
        return type(error).__name__
    assert frames is not None
    assert int((frames.int() - expected().int()).abs().max()) <= 1, "another video"
    return "right"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no processes and kills them otherwise")
def test_fifty_rounds(
    folder: Path, pipe: Pipeline, faulty: Callable[..., dict[str, Any]], mark: str, pool_folders: Any, tmp_path: Path
):
    seed = int(os.environ.get("PAB_FAULT_SEED") or secrets.randbelow(2**32))
    print(f"\nPAB_FAULT_SEED={seed}")
    rng = random.Random(seed)
    rounds = [fault for fault, times in ROUNDS.items() for _ in range(times)]
    rng.shuffle(rounds)

    @functools.cache
    def alone(number: int, steps: int) -> Tensor:
        return pipe.generate(PROMPT, seed=number, steps=steps, policy="pab246").frames

    def workers(pool: WorkerPool) -> list[int]:
        return [row["pid"] for row in pool.status()["workers"]]

    source, began = ModelSource.of(folder), time.monotonic()
    hosts = Hosts(folder, {"PAB_FAULTS": str(tmp_path), "OMP_NUM_THREADS": "1"})
    with WorkerPool("cpu*2", method="dsp", **faulty(pace=0.005)) as pool:
        pool.submit(Job(model=source, task="load")).result(120)
        for index, fault in enumerate(rounds):
            numbers = rng.sample(range(6), 3)
            handles = [
                pool.submit(Job(model=source, prompt=PROMPT, seed=number, steps=steps, policy="pab246"))
                for number, steps in zip(numbers, STEPS, strict=True)
            ]
            rank, victim, moment = rng.randrange(2), rng.choice(handles), rng.uniform(0, LONGEST)
            start = time.monotonic()
            said = f"round {index}: {fault} of rank {rank} after {moment:.3f} s"
            time.sleep(moment)
            before = workers(pool)
            order = tmp_path / "faults" / f"memory-{rank}"
            if fault == "cancel":
                victim.cancel()
            elif fault == "memory":
                order.touch()
            elif fault == "host":
                hosts.kill(more="host" in rounds[index + 1 :])
            else:
                os.kill(before[rank], signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            found = [
                outcome(handle, functools.partial(alone, number, steps))
                for handle, number, steps in zip(handles, numbers, STEPS, strict=True)
            ]
            struck = fault != "memory" or not order.exists()
            order.unlink(missing_ok=True)
            wrong = [name for name in found if name != "right"]
            assert len(wrong) <= (fault != "host"), (said, found)
            assert not wrong or wrong == ["JobCancelled" if fault == "cancel" else "WorkerError"], (said, found)
            if fault == "memory" and struck:
                assert wrong, (said, found)
            if fault in ("memory", "cancel", "host"):
                assert workers(pool) == before, said
            else:
                until(lambda before=before, rank=rank: workers(pool)[rank] not in (None, before[rank]), 60, said)
            until(lambda: len(marked(mark)) == 2, 30, f"for two workers after {said}")
            print(f"{said}: {', '.join(found)} in {time.monotonic() - start:.1f} s")
    until(lambda: not marked(mark), 5, "for the end of the workers")
    sweep()
    assert pool_folders() == []
    print(f"{len(rounds)} rounds in {time.monotonic() - began:.0f} s")
