"""Kernels compiled for clips of ten sizes and lengths, and the time that takes: `python tests/gpu/compilations.py`.

Open-Sora's width and depth 1, random weights, a whole run of pab222 each. Not collected by pytest: it needs a GPU.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from pab_core.acceleration.fused import kernels
from pab_core.acceleration.run import FusedRun
from pab_core.models.registry import ARCHITECTURES, model_spec
from pab_core.models.stdit3 import STDiT3Config
from pab_core.settings import schedule_for

SIZES = (  # latent frames, height and width, text tokens
    (15, 60, 106, 300),
    (15, 60, 106, 77),
    (30, 60, 106, 300),
    (15, 90, 160, 120),
    (5, 45, 80, 31),
    (1, 60, 106, 300),
    (15, 32, 32, 18),
    (60, 18, 32, 200),
    (20, 64, 36, 5),
    (13, 53, 71, 299),
)


def compiled() -> int:
    """Kernels in this process's caches, which those from the disk are in as well."""
    functions = (value for value in vars(kernels).values() if hasattr(value, "device_caches"))
    return sum(len(cache[0]) for function in functions for cache in function.device_caches.values())


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = STDiT3Config(depth=1)
        model: Any = ARCHITECTURES["stdit3"].build(config).to(torch.bfloat16).eval().requires_grad_(False)
        one = torch.ones(1)
    spec = model_spec("open-sora")
    table = schedule_for(spec, "pab222")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\nlatents, text tokens     new kernels  seconds")
    for frames, height, width, tokens in SIZES:
        before, begin = compiled(), time.perf_counter()
        z = torch.randn(2, 4, frames, height, width, device="cuda")
        y = torch.randn(2, 1, tokens, config.caption_channels, device="cuda", dtype=torch.bfloat16)
        size = {"fps": 24 * one, "height": torch.ones(1) * 8 * height, "width": torch.ones(1) * 8 * width}
        run = FusedRun(table)
        for step in range(table.steps):
            run.step = step
            model(z, torch.full((2,), 500.0, device="cuda"), y, None, seam=run, **size)
        torch.cuda.synchronize()
        shape = f"{frames} x {height} x {width}, {tokens}"
        print(f"{shape:24} {compiled() - before:11}  {time.perf_counter() - begin:7.2f}", flush=True)
    print(f"{compiled()} kernels for {len(SIZES)} sizes")


if __name__ == "__main__":
    main()
