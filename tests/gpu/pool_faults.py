"""The pool on real GPUs: results, memory that runs out, cancelling, and workers that die, over NCCL.

`python tests/gpu/pool_faults.py --devices 0,1` prints a line of JSON for each check; `--devices cpu*2` rehearses it
over gloo. Not collected by pytest: it needs two GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.pool import Handle, WorkerPool
from pab_core.parallel.pool.watching import Patience
from pab_core.pipeline import Pipeline

LEFT_BYTES = 64 * 2**20
PROMPT = "a red ball rolls left over a green floor"


def tell(check: str, start: float, **found: Any) -> None:
    print(json.dumps({"check": check, "seconds": round(time.monotonic() - start, 2), **found}), flush=True)


def difference(frames: Tensor | None, expected: Tensor) -> dict[str, float]:
    assert frames is not None
    gap = (frames.int() - expected.int()).abs()
    return {"most": int(gap.max()), "mean": round(float(gap.float().mean()), 4)}


def failing(handle: Handle) -> str:
    try:
        handle.result(120)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
    return "nothing failed"


def failing_for_memory(submit: Callable[[], Handle]) -> str:
    """How a job ends while the second GPU has next to nothing free."""
    free, _ = torch.cuda.mem_get_info(1)
    taken = torch.empty(free - LEFT_BYTES, dtype=torch.uint8, device="cuda:1")
    try:
        return failing(submit())
    finally:
        del taken
        torch.cuda.empty_cache()


def until(condition: Callable[[], Any], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", default="0,1")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--methods", default="dsp,ulysses,megatron,cfg,auto")
    options = parser.parse_args()
    job = Job(model=ModelSource.of(options.model), prompt=PROMPT, seed=1, policy="pab246")
    on_gpu = not options.devices.startswith("cpu")
    alone = Pipeline.load(options.model, device="cuda:0" if on_gpu else "cpu")
    expected = alone.generate(PROMPT, seed=1, policy="pab246").frames
    del alone
    torch.cuda.empty_cache()
    for method in options.methods.split(","):
        start = time.monotonic()
        with WorkerPool(options.devices, method=method) as pool:
            made = pool.submit(job).result(300)
            again = pool.submit(job).result(60)
            tell(method, start, **difference(made.frames, expected), denoise=again.seconds["denoise"],
                 warnings=made.warnings)  # fmt: skip

    with WorkerPool(options.devices, method="dsp", patience=Patience(beat=8.0)) as pool:

        def pids() -> list[int]:
            return [row["pid"] for row in pool.status()["workers"]]

        def works() -> dict[str, float]:
            return difference(pool.submit(job).result(300).frames, expected)

        def interrupted(strike: Callable[[Handle], None], **settings: Any) -> str:
            handle = pool.submit(job.model_copy(update={"steps": 900, "policy": "off", **settings}))
            until(lambda: handle.ended or (handle.place is not None and handle.place.done > 3))
            strike(handle)
            return failing(handle)

        start = time.monotonic()
        works()
        tell("ready", start)
        before, start = pids(), time.monotonic()
        said = interrupted(lambda handle: handle.cancel())
        tell("cancel", start, said=said, kept=pids() == before, **works())
        start = time.monotonic()
        if on_gpu:
            said = failing_for_memory(lambda: pool.submit(job.model_copy(update={"height": 4096, "width": 4096})))
            tell("memory", start, said=said, kept=pids() == before, **works())
        for rank in range(len(before)):
            for name in ("SIGKILL", "SIGSTOP"):
                victim, start = pids()[rank], time.monotonic()
                said = interrupted(lambda handle, victim=victim, name=name: os.kill(victim, getattr(signal, name)))
                tell(f"{name} of rank {rank}", start, said=said)
                start = time.monotonic()
                tell("works again", start, **works())
        start = time.monotonic()
        pool.release()
        until(lambda: pids() == [None] * len(before))
        free, total = torch.cuda.mem_get_info(1) if on_gpu else (0, 0)
        tell("release", start, used_mib=round((total - free) / 2**20))


if __name__ == "__main__":
    main()
