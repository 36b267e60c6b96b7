"""One rank of `pab bench scaling`: a process that scaling_world.py starts, with messages as of a pool's worker.

"meet"   joins the group of all ranks and makes one of the first ranks for each number of devices
"build"  the model with random weights, on the device; it takes the place of the one before
"link"   times exchanges between so many ranks
"cell"   runs a denoise loop on so many ranks; the others, as all who wait for a message, leave their GPUs idle

Each is answered with "done", or with "failed" and why.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..broadcast import ScheduleTable
from ..parallel import attach
from ..parallel.attachment import Attachment
from ..parallel.collectives import TEMPORAL, Traffic
from ..parallel.megatron import Megatron
from ..parallel.methods import find_method
from ..parallel.pipelines import ParallelPipeline, fields_of
from ..parallel.pool.protocol import Message, read_message
from ..parallel.pool.worker import die_with_parent, take_pipes
from ..pipeline import Pipeline
from .costs import now
from .machine import describe_machine
from .random_weights import random_pipe, random_text
from .scaling_cases import ALONE, Cell, Workload, config_of, find_workloads, text_tokens
from .scaling_steps import shorten

_EXCHANGES = 20  # of a size, timed together
_SMALL, _LARGE = 2**11, {"cuda": 2**26, "cpu": 2**18}  # bytes that a rank sends


_FEWEST = 4  # steps of a sampler that calls the model more often


class _Enough(Exception):
    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


class Rank:
    def __init__(self, device: torch.device):
        self.device = device
        self.bound = 0.0
        self.rank, self.ranks = 0, 1
        self.groups: dict[int, Any] = {}  # number of devices -> of the first so many ranks, where this is one of them
        self.pipe: Pipeline | None = None
        self.tiny = False
        self.halves: dict[tuple[str, int], Attachment] = {}  # by method and devices
        self.idle: set[tuple[str, int]] = set()  # of those, the ones that this rank has no part in
        self.alone: dict[tuple[Any, ...], Tensor] = {}  # rank 0: what one device made

    def answer(self, message: Message) -> dict[str, Any]:
        about = dict(message.about)
        if message.type == "meet":
            return self.meet(**about)
        if message.type == "build":
            return self.build(**about)
        if message.type == "link":
            return self.link(**about)
        assert message.type == "cell", message.type
        return self.cell(Cell(**about.pop("cell")), **about)

    def meet(
        self, rank: int, ranks: int, store: str, devices: list[int], seconds: float, folder: str
    ) -> dict[str, Any]:
        os.chdir(folder)  # the caller's: a policy may be the path of a file
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            torch.set_num_threads(1)
        self.rank, self.ranks, self.bound = rank, ranks, seconds
        if ranks > 1:
            bound = timedelta(seconds=seconds)
            meeting = dist.FileStore(store, ranks)  # pyright: ignore[reportPrivateImportUsage]
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=meeting, rank=rank, world_size=ranks, timeout=bound)
            for count in devices:
                if 1 < count < ranks:
                    # The others have a group, too: names of later ones are made of how many a rank is in.
                    parts = (list(range(count)), list(range(count, ranks)))
                    made = [dist.new_group(part, bound) for part in parts]
                    self.groups[count] = made[0]
            self.groups[ranks] = dist.group.WORLD
        return {"machine": describe_machine(str(self.device))}

    def build(self, model: str, tiny: bool, speed: str) -> dict[str, Any]:
        self.pipe, self.tiny = None, tiny
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.pipe = random_pipe(model, self.device, config_of(model, tiny), speed)
        return {"speed": self.pipe.speed, "notes": list(self.pipe.notes)}

    def link(self, devices: int) -> dict[str, Any]:
        """Seconds of an all-to-all in which each rank sends so many bytes, its own part with them."""
        if self.rank >= devices:
            return {}
        group, seconds = self.groups[devices], {}
        for size in (_SMALL, _LARGE[self.device.type]):
            send = torch.zeros(size // devices * devices, dtype=torch.uint8, device=self.device)
            received = torch.empty_like(send)
            for count in (2, _EXCHANGES):
                self.wait_for_all(group)
                start = now(self.device)
                for _ in range(count):
                    dist.all_to_all_single(received, send, group=group)
                seconds[send.nbytes] = (now(self.device) - start) / count
        (_, start), (size, large) = seconds.items()
        away = size * (devices - 1) / devices
        return {"bytes": away, "start": start, "bandwidth": away / max(large - start, large / 2)}

    def wait_for_all(self, group: Any) -> None:
        dist.barrier(group, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def cell(
        self, cell: Cell, steps: list[int] | None, warm_up: list[int] | None, loops: int, seed: int = 1
    ) -> dict[str, Any]:
        """Args: steps, warm_up: those of the schedule that are run, None: all; loops: that are timed."""
        pipe = self._pipe_of(cell)
        if self.rank >= cell.devices:
            return {}
        (workload,) = find_workloads([cell.workload])
        whole = workload.table(cell.policy, self.tiny)
        group = self.groups.get(cell.devices) if cell.devices > 1 else None
        inputs = self._inputs(pipe, workload, seed)
        traffic = getattr(pipe, "traffic", None) or Traffic()

        def timed(chosen: list[int] | None) -> tuple[Tensor, list[float], list[list[int]], float]:
            table, asked = self._part(workload, whole, chosen)
            ticks: list[Any] = []
            told: list[list[int]] = []
            traffic.clear()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            if group is not None:
                self.wait_for_all(group)
            start = now(self.device)
            tick = self._clock(ticks)
            tick()

            def on_step(event: Any) -> None:
                tick()
                told.append(_bytes_of(traffic))
                if chosen is not None and len(told) == len(chosen):
                    raise _Enough(event.latents)

            clip = workload.clip(self.tiny)
            try:
                latents = pipe.denoise(*inputs, table, steps=asked, seed=seed, progress=on_step, **clip)
            except _Enough as enough:
                latents = enough.latents
            seconds = now(self.device) - start
            return latents, self._between(ticks), _growth(told), seconds

        taken = timed(warm_up)[-1]
        found = [timed(steps) for _ in range(loops)]
        latents = found[-1][0]
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return {
            "warm_up": taken,
            "loops": [seconds for *_, seconds in found],
            "steps": [each for _, each, *_ in found],
            "bytes": found[-1][2],
            "peak": peak,
            "difference": self._difference(cell, steps, latents),
        }

    def _pipe_of(self, cell: Cell) -> Pipeline:
        """The model, shared out. Groups of halves are kept, for they take long to make; weights of parts are not."""
        pipe, key = self.pipe, (cell.attached, cell.devices)
        assert pipe is not None
        if cell.method == ALONE:
            return pipe
        kept = self.halves.get(key)
        if kept is not None:
            return ParallelPipeline(**fields_of(pipe), whole=pipe, ranks=kept.all, attachment=kept)
        halves = find_method(cell.attached).halves
        if self.rank < cell.devices:
            made: Any = attach(pipe, cell.attached, self.groups[cell.devices], timeout=self.bound)
            if halves and not isinstance(made.attachment.sequence, Megatron):
                self.halves[key] = made.attachment
            return made
        if halves and key not in self.idle:
            # The ranks at work made two groups each: see `meet`.
            for _ in range(2):
                dist.new_group([self.rank], timedelta(seconds=self.bound), use_local_synchronization=True)
            if not cell.attached.endswith("megatron"):
                self.idle.add(key)
        return pipe

    def _inputs(self, pipe: Pipeline, workload: Workload, seed: int) -> tuple[Tensor, Any]:
        noise = pipe.prepare_latents(seed, **workload.clip(self.tiny))
        return noise, random_text(pipe, text_tokens(pipe.spec, self.tiny))

    def _part(self, workload: Workload, table: ScheduleTable, chosen: list[int] | None) -> tuple[ScheduleTable, int]:
        """-> the schedule of the chosen steps, and what the sampler is to be asked for."""
        spec, sampler = workload.spec(self.tiny), self._sampler
        asked = table.sampler_steps or spec.steps
        if chosen is None:
            return table, asked
        # Some samplers call the model more often than once a step, by a constant number, and then make some steps at
        # least; the rest of those is left out.
        more = table.steps - asked
        asked = max(len(chosen) - more, _FEWEST) if more else len(chosen)
        return shorten(table, chosen, sampler.timesteps(asked, **workload.clip(self.tiny)).tolist(), asked), asked

    @property
    def _sampler(self) -> Any:
        assert self.pipe is not None
        return self.pipe.sampler

    def _clock(self, ticks: list[Any]) -> Callable[[], None]:
        """Notes the time without waiting for the device."""
        if self.device.type != "cuda":
            return lambda: ticks.append(time.perf_counter())

        def tick() -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            ticks.append(event)

        return tick

    def _between(self, ticks: Sequence[Any]) -> list[float]:
        pairs = pairwise(ticks)
        if self.device.type != "cuda":
            return [after - before for before, after in pairs]
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def _difference(self, cell: Cell, steps: list[int] | None, latents: Tensor) -> float | None:
        """Relative distance from what one device made with the same steps; None where that is not known."""
        key = (cell.workload, cell.policy, None if steps is None else tuple(steps))
        if self.rank:
            return None
        if cell.devices == 1:
            self.alone[key] = latents.float().cpu()
        one = self.alone.get(key)
        if one is None or not bool(one.isfinite().all()):
            return None
        found = float((latents.float().cpu() - one).norm() / one.norm())
        return found if found < float("inf") else None


def _bytes_of(traffic: Traffic) -> list[int]:
    """Sent in all; then of temporal attention as the paper counts, and with shards padded; collectives."""
    rows = list(traffic.rows.items())
    temporal = [row for (_, purpose), row in rows if purpose == TEMPORAL]
    return [
        sum(row.sent for _, row in rows),
        sum(row.volume for row in temporal),
        sum(row.padded for row in temporal),
        sum(row.calls for _, row in rows),
    ]


def _growth(told: Sequence[Sequence[int]]) -> list[list[int]]:
    """What each step added."""
    before = [[0] * len(told[0]), *told]
    return [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(before)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="pab_core.evaluate.scaling_ranks")
    parser.add_argument("--device", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    inlet, outlet = take_pipes()
    rank = Rank(torch.device(options.device))
    while (message := read_message(inlet.read)) is not None:
        try:
            answer = Message("done", rank.answer(message))
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            lacking = isinstance(error, torch.cuda.OutOfMemoryError)
            if lacking:
                torch.cuda.empty_cache()
            said = str(error).strip().splitlines() or [""]
            answer = Message("failed", {"error": f"{type(error).__name__}: {said[0]}", "lacking": lacking})
        outlet.send(answer)
    os._exit(0)  # without goodbyes: a GPU's libraries may wait for ranks that have gone


if __name__ == "__main__":
    main()
