"""The memory of a denoise loop as it was said before and as it came: for policies, for ways to offload, and for places
where updates wait for their reuse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..broadcast import BroadcastRun
from ..broadcast.cache import Store, make_store
from ..broadcast.host_cache import HostCache
from ..errors import PabError
from ..offload import Mode, check_mode, offload, tensors_of
from ..pipeline import Pipeline
from ..results import Progress
from ..settings import clip_size
from ..text import TextEmbedding
from .live_bytes import LiveBytes
from .machine import describe_machine
from .peak import Kept, Peak, peak_of

PROMPT = "a red ball rolls left over a green floor"
KEPT: tuple[Kept, ...] = ("plain", "fp8", "host")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What to measure: a policy, a way to offload (None: all weights on the device), and a place for updates."""

    policy: str = "off"
    mode: Mode | None = None
    kept: Kept = "plain"

    def __post_init__(self) -> None:
        if self.mode is not None:
            check_mode(self.mode)
        if self.kept not in KEPT:
            raise PabError(f"There is no place for reused updates named '{self.kept}'. Known are {', '.join(KEPT)}.")


@dataclass(frozen=True)
class MemoryRow:
    case: Case
    said: Peak
    measured: int  # bytes: weights of the transformer and all else that the loop had on the device at once
    reserved: int | None  # bytes that torch held of the GPU for it; None where there is none

    def to_json(self) -> dict[str, Any]:
        case = {"policy": self.case.policy, "offload": self.case.mode, "kept": self.case.kept}
        return case | {"said": self.said.to_json(), "measured": self.measured, "reserved": self.reserved}


@dataclass(frozen=True)
class MemoryReport:
    model: str
    weights: str  # "trained" or "random"
    machine: dict[str, str | int]
    settings: dict[str, Any]
    rows: tuple[MemoryRow, ...]

    def to_json(self) -> dict[str, Any]:
        about = {"model": self.model, "weights": self.weights, "machine": self.machine, "settings": self.settings}
        return about | {"runs": [row.to_json() for row in self.rows]}


def usual_cases(policy: str, device: torch.device) -> list[Case]:
    """On the CPU those alone in which less than all is kept, since host and device are one there."""
    cases = [Case(), Case(policy), Case(policy, kept="fp8"), Case(mode="blocks")]
    if device.type == "cuda":
        cases += [Case(policy, kept="host"), Case(policy, "blocks", "fp8"), Case(policy, "blocks", "host")]
    return cases


def measure_memory(
    pipe: Pipeline,
    cases: Sequence[Case],
    *,
    text: TextEmbedding | None = None,
    seed: int = 1,
    steps: int | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> MemoryReport:
    """Runs each case as far as the step at which the peak was said to come, and one more, and reads the memory.

    On a GPU it is what tensors took there, on the CPU the bytes of the tensors alive; the other modules of the
    pipeline count nothing. Afterwards the transformer is on the device again.

    Args:
        text: default: that of a short prompt.
        on_run: (cases done, cases in all).
    """
    count, height, width = clip_size(pipe.spec, num_frames, height, width)
    size: dict[str, Any] = {"num_frames": count, "height": height, "width": width}
    text = pipe.encode_prompt(PROMPT) if text is None else text
    device = pipe.device
    rows = []
    for done, case in enumerate(cases):
        if on_run is not None:
            on_run(done, len(cases))
        rows.append(_measure(pipe, case, device, text, seed, steps, size))
    if on_run is not None:
        on_run(len(cases), len(cases))
    settings = {**size, "seed": seed, "steps": pipe.spec.steps if steps is None else steps}
    settings |= {"tokens": text.tokens.shape[1], "dtype": str(text.tokens.dtype).removeprefix("torch.")}
    weights = "trained" if pipe.spec.trained else "random"
    return MemoryReport(pipe.spec.name, weights, describe_machine(str(device)), settings, tuple(rows))


def describe_memory(report: MemoryReport) -> str:
    """A table, in MiB."""
    about = report.settings
    lines = [
        f"{report.model}, {report.weights} weights, {about['dtype']}; {about['num_frames']} frames, "
        f"{about['width']}x{about['height']}, {about['steps']} steps; "
        + ", ".join(f"{name} {value}" for name, value in report.machine.items()),
        "",
        "policy    offload  updates   weights     kept  working     said  measured  said/measured",
    ]
    for row in report.rows:
        said, case = row.said, row.case
        parts = (said.weights, said.kept, said.working - said.kept, said.total)
        numbers = "".join(f"{part / MIB:9.0f}" for part in parts)
        share = said.total / row.measured
        lines.append(
            f"{case.policy:9} {case.mode or '-':8} {case.kept:7}{numbers} {row.measured / MIB:9.0f} {share:14.3f}"
        )
    return "\n".join(lines)


class _Reached(Exception):
    """The peak is past."""


def _measure(
    pipe: Pipeline,
    case: Case,
    device: torch.device,
    text: TextEmbedding,
    seed: int,
    steps: int | None,
    size: dict[str, Any],
) -> MemoryRow:
    table = pipe.schedule(case.policy, steps=steps, **size)
    said = peak_of(pipe, table, text, **size, mode=case.mode, kept=case.kept)
    weights = sum(tensor.nbytes for tensor in tensors_of(pipe.transformer))
    chosen = pipe if case.mode is None else offload(pipe, case.mode, device)
    store: Store = HostCache() if case.kept == "host" else make_store(case.kept)
    noise = pipe.prepare_latents(seed, **size)

    def stop(event: Progress) -> None:
        if event.done > said.step + 1:
            raise _Reached

    def loop() -> None:
        with contextlib.suppress(_Reached):
            run = BroadcastRun(table, store)
            chosen.denoise(noise, text, table, steps=steps, seed=seed, run=run, progress=stop, **size)

    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            others = torch.cuda.memory_allocated(device) - (weights if case.mode is None else 0)
            loop()
            measured = torch.cuda.max_memory_allocated(device) - others
            return MemoryRow(case, said, measured, torch.cuda.max_memory_reserved(device))
        with LiveBytes() as live:
            loop()
        given = [noise, text.tokens, *([] if text.negative is None else [text.negative])]
        there = sum(tensor.nbytes for tensor in given) + (weights if case.mode is None else 0)
        return MemoryRow(case, said, live.peak + there, None)
    finally:
        pipe.transformer.to(device)
