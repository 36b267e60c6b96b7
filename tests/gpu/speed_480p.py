"""Time and memory of the denoise loop at released size, random weights, on one GPU: `python tests/gpu/speed_480p.py`.

Open-Sora 1.2 XL/2, 51 frames of 480x854 (latents 15x60x106), guidance (batch 2), 30 steps, bf16. Plain and compiled
runs in one process, each timed after one warm-up loop; medians. Not collected by pytest: it needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab_core.acceleration.compiled import CompiledRun
from pab_core.broadcast import BroadcastRun
from pab_core.models.registry import ARCHITECTURES, model_spec
from pab_core.models.stdit3 import STDiT3Config
from pab_core.pipeline import schedule_for
from pab_core.sampling import RectifiedFlow

BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def build(device: torch.device) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        model = ARCHITECTURES["stdit3"].build(STDiT3Config()).to(torch.bfloat16).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name != "rope.freqs":
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@torch.no_grad()
def loop(model: Any, run: Any, table: Any, noise: torch.Tensor, y: torch.Tensor, steps: int | None) -> torch.Tensor:
    device = noise.device
    size = {"fps": torch.tensor([24.0], device=device), "height": torch.tensor([480.0]), "width": torch.tensor([854.0])}

    def velocity(z: torch.Tensor, t: torch.Tensor, step: int, x_mask: torch.Tensor | None) -> torch.Tensor:
        run.step = step
        out = model(z.repeat(2, 1, 1, 1, 1), t.repeat(2), y, None, seam=run, **size)[:, : z.shape[1]]
        cond, uncond = out.chunk(2)
        return uncond + 7.0 * (cond - uncond)

    with sdpa_kernel(BACKENDS, set_priority=True):
        return RectifiedFlow().sample(velocity, noise, torch.tensor(table.timesteps[:steps]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policies", default="off,pab246,pab579")
    parser.add_argument("--runs", default="plain,compiled")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--steps", type=int, help="only the first of them, for a quick look")
    given = parser.parse_args()
    device = torch.device("cuda")
    model, spec = build(device), model_spec("open-sora")
    noise = torch.randn(1, 4, 15, 60, 106, device=device)
    y = torch.randn(2, 1, given.tokens, 4096, device=device, dtype=torch.bfloat16)
    kinds: dict[str, Any] = {"plain": BroadcastRun, "compiled": CompiledRun}
    rows = []
    for policy in given.policies.split(","):
        table = schedule_for(spec, policy)
        results: dict[str, torch.Tensor] = {}
        for kind in given.runs.split(","):
            begin = time.perf_counter()
            results[kind] = loop(model, kinds[kind](table), table, noise, y, given.steps)
            torch.cuda.synchronize()
            first = time.perf_counter() - begin
            torch.cuda.reset_peak_memory_stats()
            seconds = []
            for _ in range(given.repeat):
                begin = time.perf_counter()
                loop(model, kinds[kind](table), table, noise, y, given.steps)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begin)
            peak = torch.cuda.max_memory_allocated() / 2**30
            rows.append({"policy": policy, "run": kind, "first": first, "seconds": seconds, "peak_gib": peak})
            print(json.dumps(rows[-1]), flush=True)
        if len(results) == 2:
            a, b = results.values()
            print(f"{policy}: relative difference {float((a - b).norm() / a.norm()):.2e}", flush=True)
    print(
        f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}\npolicy   run       median s  first s  peak GiB"
    )
    for row in rows:
        median = statistics.median(row["seconds"])
        print(f"{row['policy']:8} {row['run']:9} {median:8.2f} {row['first']:8.1f} {row['peak_gib']:9.1f}")


if __name__ == "__main__":
    main()
