"""Time and memory of the denoise loop at released size, random weights, on one GPU: `python tests/gpu/speed_480p.py`.

Open-Sora 1.2 XL/2, 51 frames of 480x854 (latents 15x60x106) or what `--latents` says, guidance (batch 2), 30 steps,
bf16. Plain and fused runs in one process, each timed after one warm-up loop; medians. Not collected by pytest: it needs
a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

from pab_core.acceleration.fp8_products import use_fp8_products
from pab_core.acceleration.recorded_run import RecordedRun
from pab_core.acceleration.run import ATTENTION, FusedRun
from pab_core.broadcast import BroadcastRun
from pab_core.broadcast.cache import make_store
from pab_core.evaluate.random_weights import quantise_linears
from pab_core.models.registry import ARCHITECTURES, model_spec
from pab_core.models.stdit3 import STDiT3Config
from pab_core.sampling import RectifiedFlow
from pab_core.settings import schedule_for

GIB = 2**30
RUNS = {"plain": BroadcastRun, "fused": FusedRun, "recorded": RecordedRun}
# A kernel's share of a run is told under the first of these that its name holds.
GROUPS = {
    "attention along time": ("attend_in_time",),
    "attention": ("cudnn_generated", "flash", "fmha", "attention", "sdpa", "fprop"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "cublas"),
    "own kernels": ("residual", "rows_in_fp8", "norm_heads"),
    "other": ("",),
}


def build(device: torch.device) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        model = ARCHITECTURES["stdit3"].build(STDiT3Config()).to(torch.bfloat16).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name != "rope.freqs":
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@torch.no_grad()
def check(model: Any, noise: torch.Tensor, y: torch.Tensor) -> None:
    """One call of two blocks' depth: bf16 runs, plain and fused, against float32."""
    spec, steps = model_spec("open-sora"), 1
    small = copy.deepcopy(model)
    small.spatial_blocks, small.temporal_blocks = small.spatial_blocks[:2], small.temporal_blocks[:2]
    table = schedule_for(spec, "off")
    found = {kind.__name__: loop(small, kind(table), table, noise, y, steps) for kind in (BroadcastRun, FusedRun)}
    exact = loop(small.float(), BroadcastRun(table), table, noise, y.float(), steps) - noise
    for name, latents in found.items():
        print(f"{name} in bf16 against float32: {float((latents - noise - exact).norm() / exact.norm()):.2e}")


def in_eight_bits(model: Any) -> Any:
    """The same model with the weights of its large layers in eight bits, and products of eight bits."""
    model = copy.deepcopy(model)
    quantise_linears(model, torch.device("cuda"))
    use_fp8_products(model)
    return model


@torch.no_grad()
def loop(model: Any, run: Any, table: Any, noise: torch.Tensor, y: torch.Tensor, steps: int | None) -> torch.Tensor:
    device = noise.device
    height, width = (8.0 * n for n in noise.shape[-2:])
    size = {
        "fps": torch.tensor([24.0], device=device),
        "height": torch.tensor([height]),
        "width": torch.tensor([width]),
    }

    def velocity(z: torch.Tensor, t: torch.Tensor, step: int, x_mask: torch.Tensor | None) -> torch.Tensor:
        run.step = step
        out = model(z.repeat(2, 1, 1, 1, 1), t.repeat(2), y, None, seam=run, **size)[:, : z.shape[1]]
        cond, uncond = out.chunk(2)
        return uncond + 7.0 * (cond - uncond)

    with sdpa_kernel(ATTENTION, set_priority=True):
        return RectifiedFlow().sample(velocity, noise, torch.tensor(table.timesteps[:steps]))


def profile(run: Callable[[], Any]) -> None:
    """Prints where the GPU's time goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in found.key_averages() if event.self_device_time_total > 0]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    whole = sum(event.self_device_time_total for event in kernels)
    groups: Counter[str] = Counter()
    for event in kernels:
        name = next(name for name, parts in GROUPS.items() if any(part in event.key for part in parts))
        groups[name] += event.self_device_time_total
    print(f"{whole / 1e3:.0f} ms of kernels: " + ", ".join(f"{k} {v / whole:.1%}" for k, v in groups.most_common()))
    for event in kernels[:28]:
        each = event.self_device_time_total / event.count
        print(
            f"{event.self_device_time_total / 1e3:9.1f} ms {event.self_device_time_total / whole:6.1%} "
            f"{event.count:6d} x {each / 1e3:7.3f} ms  {event.key[:110]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--policies", default="off,pab246,pab579")
    parser.add_argument(
        "--runs", default="plain,fused", help="plain, fused or recorded, then +fp8 and +fp8cache as wanted"
    )
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=300, help="of the text")
    parser.add_argument(
        "--latents", default="15x60x106", metavar="TxHxW", help="such as 30x60x106, 4 s; 15x90x160, 720p"
    )
    parser.add_argument("--steps", type=int, help="only the first of them, for a quick look")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda")
    models, spec = {False: build(device)}, model_spec("open-sora")
    if "+fp8" in given.runs.replace("+fp8cache", ""):
        with torch.no_grad():
            models[True] = in_eight_bits(models[False])
    noise = torch.randn(1, 4, *map(int, given.latents.split("x")), device=device)
    y = torch.randn(2, 1, given.tokens, 4096, device=device, dtype=torch.bfloat16)
    check(models[False], noise, y)
    rows = []
    for policy in given.policies.split(","):
        table = schedule_for(spec, policy)
        results: dict[str, torch.Tensor] = {}
        for kind in given.runs.split(","):

            def once(kind: str = kind, table: Any = table) -> torch.Tensor:
                way, *more = kind.split("+")
                store = make_store("fp8" if "fp8cache" in more else "plain")
                run = RUNS[way](table, store)
                return loop(models["fp8" in more], run, table, noise, y, given.steps)

            begin = time.perf_counter()
            results[kind] = once()
            torch.cuda.synchronize()
            first = time.perf_counter() - begin
            torch.cuda.reset_peak_memory_stats()
            seconds = []
            for _ in range(given.repeat):
                begin = time.perf_counter()
                once()
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begin)
            peak = torch.cuda.max_memory_allocated() / GIB
            rows.append({"policy": policy, "run": kind, "first": first, "seconds": seconds, "peak_gib": peak})
            print(json.dumps(rows[-1]), flush=True)
            if given.profile:
                profile(once)
        base = next(iter(results))
        for kind, latents in results.items():
            if kind != base:
                difference = float((latents - results[base]).norm() / results[base].norm())
                print(f"{policy}: relative difference of {kind} from {base} {difference:.2e}", flush=True)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; latents {given.latents}")
    print("policy   run                median s  first s  peak GiB")
    for row in rows:
        median = statistics.median(row["seconds"])
        print(f"{row['policy']:8} {row['run']:18} {median:8.2f} {row['first']:8.1f} {row['peak_gib']:9.1f}")


if __name__ == "__main__":
    main()
