"""A worker to whom bad things happen on demand: `<kind>-<rank>` in the folder $PAB_FAULTS strikes once, in the
transformer's next call on that rank.

memory: an allocation that no machine has room for; bug: an exception; stuck: it waits for ever, its threads go on;
print: it writes to stdout, where messages go. $PAB_PACE: seconds that each call takes longer.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pab_core.models.stdit3 import STDiT3
from pab_core.parallel.pool import worker

FAULTS = Path(os.environ["PAB_FAULTS"])
PACE = float(os.environ.get("PAB_PACE", "0"))
_forward = STDiT3.forward


def strike(kind: str) -> None:
    if kind == "memory":
        torch.empty(2**60, dtype=torch.uint8)
    elif kind == "bug":
        raise ZeroDivisionError("struck")
    elif kind == "stuck":
        time.sleep(3600)
    elif kind == "print":
        print("PABPOOL1 is not for prints", flush=True)
        os.write(1, b"not even for those that go around Python\n")


def forward(self: STDiT3, *args: Any, **kwargs: Any) -> Any:
    rank = dist.get_rank() if dist.is_initialized() else 0
    for kind in ("memory", "bug", "stuck", "print"):
        order = FAULTS / f"{kind}-{rank}"
        if order.exists():
            order.unlink()
            strike(kind)
    time.sleep(PACE)
    return _forward(self, *args, **kwargs)


if __name__ == "__main__":
    STDiT3.forward = forward
    worker.main()
