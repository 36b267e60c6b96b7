"""Recorded runs beside fused ones, which start each kernel by itself: `python tests/gpu/recorded.py`.

Random weights of the released sizes, a small clip of Open-Sora and the default one of Latte and Open-Sora-Plan; the
seconds of the denoise loop in turn, medians, how far the latents differ, and the peak of memory. Then a clip for whose
records there is no room. Not collected by pytest: it needs a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch

from pab_core.acceleration.recorded_run import RecordedRun
from pab_core.acceleration.run import FusedRun
from pab_core.broadcast.cache import make_store
from pab_core.evaluate.random_weights import random_pipe, random_text
from pab_core.pipeline import Pipeline

GIB = 2**30
CLIPS = {  # frames, height, width, steps, text tokens
    "open-sora": (51, 144, 256, 30, 300),
    "latte": (16, 512, 512, 50, 120),
    "open-sora-plan": (65, 512, 512, 30, 120),
}


def once(pipe: Pipeline, kind: type[FusedRun], policy: str, kept: str) -> tuple[torch.Tensor, float, float]:
    """-> latents, seconds, GiB at the most"""
    frames, height, width, steps, tokens = CLIPS[pipe.spec.name]
    size: dict[str, Any] = {"num_frames": frames, "height": height, "width": width}
    table = pipe.schedule(policy, steps=steps, **size)
    noise = pipe.prepare_latents(0, **size).to(pipe.device)
    text = random_text(pipe, tokens)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run = kind(table, make_store(kept))
    latents = pipe.denoise(noise, text, table, steps=steps, seed=0, run=run, **size)
    torch.cuda.synchronize()
    return latents, time.perf_counter() - start, torch.cuda.max_memory_allocated() / GIB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(CLIPS))
    parser.add_argument("--speeds", default="fast,fp8")
    parser.add_argument("--policies", default="off,pab246")
    parser.add_argument("--kept", default="plain")
    parser.add_argument("--repeat", type=int, default=2)
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("model           speed policy            fused s  recorded s  ratio  difference   GiB fused  recorded")
    for model in given.models.split(","):
        for speed in given.speeds.split(","):
            pipe = random_pipe(model, torch.device("cuda"), speed=speed)
            for policy in given.policies.split(","):
                found: dict[type[FusedRun], list[Any]] = {kind: [] for kind in (FusedRun, RecordedRun)}
                for _ in range(1 + given.repeat):
                    for kind, made in found.items():
                        made.append(once(pipe, kind, policy, given.kept))
                fused, recorded = found.values()
                seconds = [statistics.median(one[1] for one in made[1:]) for made in (fused, recorded)]
                worst = max(float((one[0] - fused[0][0]).norm() / fused[0][0].norm()) for one in recorded)
                print(
                    f"{model:15} {speed:5} {policy:16} {seconds[0]:8.3f} {seconds[1]:11.3f} "
                    f"{seconds[0] / seconds[1]:6.2f} {worst:11.1e} {fused[-1][2]:11.2f} {recorded[-1][2]:9.2f}",
                    flush=True,
                )
            del pipe
            torch.cuda.empty_cache()
    no_room()


def no_room() -> None:
    """What a fused run takes, and hardly more: a record gives up, and the clip is made as ever."""
    pipe = random_pipe("open-sora", torch.device("cuda"), speed="fast")
    once(pipe, FusedRun, "off", "plain")
    expected, *_ = once(pipe, FusedRun, "off", "plain")
    held = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    _, whole = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 64 * 2**20) / whole))
    with warnings.catch_warnings(record=True) as said:
        latents, seconds, peak = once(pipe, RecordedRun, "off", "plain")
    again, *_ = once(pipe, FusedRun, "off", "plain")
    torch.cuda.set_per_process_memory_fraction(1.0)
    after, fast, _ = once(pipe, RecordedRun, "off", "plain")
    equal = [float((one - expected).norm() / expected.norm()) for one in (latents, again, after)]
    print(
        f"no room: {seconds:.2f} s, {peak:.2f} GiB of {held / GIB:.2f} and 64 MiB; with room {fast:.2f} s; differences "
        f"{equal}; {[str(warning.message) for warning in said]}"
    )


if __name__ == "__main__":
    main()
