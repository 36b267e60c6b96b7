"""A host of its own process, to be killed: it keeps a pool busy and says so. Arguments: checkpoint, devices."""

from __future__ import annotations

import sys
import time

from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.pool import WorkerPool

if __name__ == "__main__":
    folder, devices = sys.argv[1:]
    pool = WorkerPool(devices, method="dsp" if "*" in devices else "none")
    job = Job(model=ModelSource.of(folder), prompt="a ball", seed=1, steps=1000)
    pool.start()
    print("started", flush=True)
    while True:
        handle = pool.submit(job)
        while not handle.wait(0.05):
            if handle.place is not None and handle.place.stage == "denoise":
                print("running", flush=True)
                time.sleep(1)
