"""One and two GPUs at released size, random weights: `PYTHONPATH=. python tests/gpu/parallel_2gpu.py`.

Open-Sora 1.2 XL/2, 51 frames of 480x854, guidance, 30 steps, bf16, the denoise loop. First equality: a few steps of one
rank and of all ranks in bf16, both against one rank in float32, with which the ranks should agree equally well. Then
time: each method and policy after one warm-up loop, medians; the table comes last. With --links, what the links give.
On a CPU, `--tiny` rehearses all of it with gloo. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from pab_core.acceleration.run import ATTENTION, FusedRun
from pab_core.broadcast import BroadcastRun, ScheduleTable
from pab_core.models.registry import ARCHITECTURES, model_spec
from pab_core.models.stdit3 import STDiT3Config
from pab_core.parallel import attach
from pab_core.pipeline import Pipeline
from pab_core.sampling import RectifiedFlow
from pab_core.text import TextEmbedding

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = STDiT3Config(hidden_size=64, depth=2, num_heads=4, caption_channels=32, model_max_length=16)
KINDS: dict[str, Any] = {"plain": BroadcastRun, "fused": FusedRun}
BOUND = timedelta(seconds=300)  # of a wait; the first loop in float32 is slow


class Bench:
    """One rank's model and what it is given; the same on all ranks."""

    def __init__(self, given: argparse.Namespace, rank: int):
        self.given, self.rank = given, rank
        self.device = torch.device("cpu") if given.tiny else torch.device("cuda", rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        config = TINY if given.tiny else STDiT3Config()
        torch.manual_seed(0)
        with self.device:
            model = ARCHITECTURES["stdit3"].build(config).to(torch.bfloat16).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name != "rope.freqs":
                torch.nn.init.normal_(parameter, std=0.02)
        for parameter in model.parameters():
            dist.broadcast(parameter.data, 0)
        spec = model_spec("open-sora")
        self.pipe = Pipeline(spec, model, None, None, RectifiedFlow())
        generator = torch.Generator().manual_seed(1)
        shape = (1, 4, 15, 8, 12) if given.tiny else (1, 4, 15, 60, 106)
        self.noise = torch.randn(shape, generator=generator)
        length = min(given.tokens, config.model_max_length)
        tokens = torch.randn(1, length, config.caption_channels, generator=generator)
        self.text = TextEmbedding(tokens, torch.ones(1, length, dtype=torch.bool))

    def attention(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.given.tiny else sdpa_kernel(ATTENTION, set_priority=True)

    def table(self, policy: str, steps: int) -> ScheduleTable:
        return self.pipe.schedule(policy, steps=steps)

    def loop(self, pipe: Pipeline, table: ScheduleTable, kind: str) -> Tensor:
        with self.attention():
            return pipe.denoise(self.noise, self.text, table, steps=table.steps, run=KINDS[kind](table))

    def say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of the slowest rank; all start together."""
        dist.barrier()
        begin = time.perf_counter()
        work()
        self.finish()
        took = torch.tensor([time.perf_counter() - begin], device=self.device)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        return took.item()

    def equality(self, shared: dict[str, Pipeline]) -> None:
        """A few steps; with a policy the steps are fewer than the paper's, so its windows hold other ones."""
        exact = copy.copy(self.pipe)
        exact.transformer = copy.deepcopy(self.pipe.transformer).float()
        for policy in self.given.policies.split(","):
            table = self.table(policy, self.given.check_steps)
            reference = self.loop(exact, table, "plain")
            moved = (reference - self.noise.to(self.device)).norm()
            for kind in self.given.runs.split(","):
                for name, pipe in {"one rank": self.pipe, **shared}.items():
                    error = float((self.loop(pipe, table, kind) - reference).norm() / moved)
                    self.say(f"{policy:8} {kind:6} {name:14} relative difference from float32: {error:.3e}")

    def times(self, shared: dict[str, Pipeline]) -> list[dict[str, Any]]:
        rows = []
        for policy in self.given.policies.split(","):
            table = self.table(policy, self.given.steps)
            for kind in self.given.runs.split(","):
                base = 0.0
                for name, pipe in {"one rank": self.pipe, **shared}.items():
                    traffic: Any = getattr(pipe, "traffic", None)
                    once = partial(self.loop, pipe, table, kind)
                    first = self.seconds(once)
                    if traffic is not None:
                        traffic.clear()
                    if self.device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    found = [self.seconds(once) for _ in range(self.given.repeat)]
                    peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
                    median = statistics.median(found)
                    base = base or median
                    sent = 0 if traffic is None else sum(row.sent for row in traffic.rows.values()) / len(found)
                    row = {"policy": policy, "run": kind, "method": name, "first": first, "seconds": found}
                    rows.append(row | {"median": median, "speedup": base / median, "sent_gb": sent / 1e9, "gib": peak})
                    self.say(json.dumps(rows[-1]))
        return rows

    def links(self) -> None:
        """All-to-all of what a temporal attention of 480p exchanges, and of nearly nothing."""
        for name, size in (("22 MB", 11 * 2**20), ("110 MB", 55 * 2**20), ("2 kB", 2**10)):
            send = torch.zeros(size, dtype=torch.bfloat16, device=self.device)
            received = torch.empty_like(send)
            dist.all_to_all_single(received, send)
            count = 3 if self.given.tiny else 50

            def work(received: Tensor = received, send: Tensor = send, count: int = count) -> None:
                for _ in range(count):
                    dist.all_to_all_single(received, send)

            each = self.seconds(work) / count
            away = send.nbytes * (dist.get_world_size() - 1) / dist.get_world_size()
            self.say(f"all-to-all of {name}: {each * 1e6:.0f} us, {away / each / 1e9:.1f} GB/s sent by each")


def rank_main(given: argparse.Namespace, rank: int) -> None:
    store = dist.FileStore(str(Path(given.folder) / "meeting"), given.ranks)  # pyright: ignore[reportPrivateImportUsage]
    backend = "gloo" if given.tiny else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=given.ranks, timeout=BOUND)
    if given.tiny:
        torch.set_num_threads(1)
    bench = Bench(given, rank)
    if given.links:
        bench.links()
    shared = {name: attach(bench.pipe, name, timeout=BOUND.total_seconds()) for name in given.methods.split(",")}
    with torch.no_grad():
        if given.check_steps:
            bench.equality(shared)
        rows = bench.times(shared) if given.repeat else []
    name = "CPU" if given.tiny else torch.cuda.get_device_name()
    bench.say(f"\n{given.ranks} x {name}, torch {torch.__version__}, {given.steps} steps")
    bench.say("policy   run     method         median s  speed-up  first s  sent GB  peak GiB")
    for row in rows:
        bench.say(
            f"{row['policy']:8} {row['run']:7} {row['method']:14} {row['median']:8.2f} {row['speedup']:8.2f}x "
            f"{row['first']:8.1f} {row['sent_gb']:8.2f} {row['gib']:9.1f}"
        )
    dist.barrier()
    dist.destroy_process_group()


def start(arguments: list[str], ranks: int) -> int:
    """One process a rank; the first that fails ends the others."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    # NVLink's multicast is of no use to an all-to-all, and some hosts do not stand it.
    environment.setdefault("NCCL_NVLS_ENABLE", "0")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *arguments, "--folder", folder]
        processes = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(ranks)]
        try:
            while all(process.poll() in (None, 0) for process in processes):
                if all(process.poll() == 0 for process in processes):
                    return 0
                time.sleep(0.2)
            return 1
        finally:
            for process in processes:
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--methods", default="dsp,ulysses,megatron,cfg")
    parser.add_argument("--policies", default="off,pab246")
    parser.add_argument("--runs", default="plain,fused", help="fused needs Triton")
    parser.add_argument("--repeat", type=int, default=2, help="0: no times")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--check-steps", type=int, default=8, help="of the comparison with float32; 0: none")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is None:
        sys.exit(start(sys.argv[1:], given.ranks))
    rank_main(given, given.rank)


if __name__ == "__main__":
    main()
