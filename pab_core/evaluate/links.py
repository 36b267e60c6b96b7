"""How long a video takes on many GPUs, extrapolated from figures of one GPU and of the links between them.

A model of what is counted in comm.py: every GPU computes its share of the one-GPU time, that of the largest shard, and
waits for its exchanges; nothing overlaps. It says what to expect where nobody has measured yet, and which method scales
at all; a measurement replaces it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..models.registry import model_spec
from ..parallel.layout import shares
from ..parallel.methods import Sizes, find_method, most_ranks
from ..settings import schedule_for

MODEL = "open-sora"  # of which the one-GPU times are
GPUS = (8, 16, 64)
GPUS_OF_A_NODE = 8
METHODS = ("dsp", "ulysses", "megatron", "cfg+dsp", "cfg+ulysses", "cfg+megatron")
WIDTH, ITEM = 1152, 2  # of the released model in bfloat16
OUT_CHANNELS = 8  # of a prediction, in float32


@dataclass(frozen=True)
class Figure:
    """A number that the extrapolation stands on."""

    name: str
    value: float
    unit: str
    measured: bool
    source: str


# Measured by `pab bench scaling` on four H200 of one machine.
_OURS = "our own on one H200 (bench scaling, --speed fast), 480p, 51 frames, 30 steps"
ONE_GPU = {
    "off": Figure("denoising on one GPU, off", 7.07, "s", True, _OURS),
    "pab246": Figure("denoising on one GPU, pab246", 5.62, "s", True, _OURS),
}
IN_NODE = Figure("all-to-all in a node, for each GPU", 282, "GB/s", True, "four H200, NVLink 4, NCCL")
BETWEEN_NODES = Figure("between nodes, for each GPU", 45, "GB/s", False, "InfiniBand of 400 Gb/s")
START = Figure("start of a collective", 47, "microseconds", True, "four H200, NVLink 4, NCCL")
FIGURES = (*ONE_GPU.values(), IN_NODE, BETWEEN_NODES, START)


@dataclass(frozen=True)
class LatencyRow:
    """One way to make one video. `used`: GPUs that have work; seconds of the denoise loop."""

    gpus: int
    nodes: int
    method: str
    used: int
    policy: str
    seconds: float
    exchange: float  # seconds of it
    speedup: float  # over one GPU with the same policy


def extrapolate(gpus: int, method: str, policy: str) -> LatencyRow:
    """policy: one of ONE_GPU."""
    spec, one = model_spec(MODEL), ONE_GPU[policy].value
    sizes = Sizes.of_clip(spec)
    halves = 2 if find_method(method).halves else 1
    inner = min(gpus, most_ranks(method, sizes)) // halves  # ranks that share the frames
    frames = shares(sizes.frames, inner)
    share = max(frames) / sizes.frames / halves

    table = schedule_for(spec, policy)
    passes = sum(
        not table.reuses(branch, step)
        for branch in table.branches
        if branch.kind == "temporal"
        for step in range(table.steps)
    )
    m = 2 / halves * sizes.frames * sizes.tokens * WIDTH * ITEM
    sent, calls = exchange_bytes(method, m, frames)
    latents = sizes.frames * (spec.height // spec.space_factor) * (spec.width // spec.space_factor)
    prediction = 2 * OUT_CHANNELS * latents * 4
    seconds = passes * (_transfer(sent, inner) + calls * START.value / 1e6) if inner > 1 else 0.0
    # Predictions go between all GPUs of the video, in one step or two.
    seconds += table.steps * (_transfer(prediction, inner * halves) + halves * START.value / 1e6)
    total = one * share + seconds
    return LatencyRow(gpus, -(-gpus // GPUS_OF_A_NODE), method, inner * halves, policy, total, seconds, one / total)


def exchange_bytes(method: str, m: float, frames: list[int]) -> tuple[float, int]:
    """The most bytes that a rank sends in one temporal attention, and the number of collectives.

    m: size of x in bytes, of all frames; frames: of each rank.
    """
    ranks = len(frames)
    away = (ranks - 1) / ranks
    largest = max(frames) / sum(frames) * m
    if method.endswith("megatron"):
        return largest * (ranks - 1) + m * (1 - min(frames) / sum(frames)), 2
    volumes = 4 if method.endswith("ulysses") else 2
    return volumes * largest * away, volumes


def extrapolate_all() -> tuple[LatencyRow, ...]:
    return tuple(extrapolate(gpus, method, policy) for gpus in GPUS for method in METHODS for policy in ONE_GPU)


def latency_to_json() -> dict[str, Any]:
    return {
        "latency": [asdict(row) for row in extrapolate_all()],
        "figures": [asdict(figure) for figure in FIGURES],
        "assumptions": list(ASSUMPTIONS),
    }


ASSUMPTIONS = (
    "a GPU computes the share of the one-GPU time that its frames are of all, and the GPU with the most frames decides",
    "nothing is computed during an exchange, and the text encoder and the VAE are left out",
    f"nodes have {GPUS_OF_A_NODE} GPUs and are filled one after the other, each half of cfg for itself",
    "GPUs that one video has no work for are left to other videos",
    "of an exchange over several nodes the slower part decides, inside the node or between nodes",
)


def describe_latency() -> str:
    lines = [
        f"{model_spec(MODEL).title}, extrapolated to many GPUs, one video\n",
        "GPUs  nodes  method        used  policy   seconds  of them exchange  speed-up",
    ]
    for row in extrapolate_all():
        lines.append(
            f"{row.gpus:4} {row.nodes:6}  {row.method:13} {row.used:4}  {row.policy:7} {row.seconds:8.2f}"
            f" {row.exchange:17.2f} {row.speedup:8.1f}x"
        )
    lines.append("\nFrom these figures:")
    for figure in FIGURES:
        how = "measured" if figure.measured else "ASSUMED, not measured"
        lines.append(f"- {figure.name}: {figure.value:g} {figure.unit} ({figure.source}; {how})")
    lines.append("and on these assumptions:")
    lines += [f"- {text}" for text in ASSUMPTIONS]
    return "\n".join(lines)


def _transfer(sent: float, ranks: int) -> float:
    """Seconds until a rank has sent so many bytes, evenly to all the others, some of them in other nodes."""
    if ranks == 1:
        return 0.0
    # The nodes that the ranks need, filled one after the other: the last has the fewest of its own.
    here = ranks % GPUS_OF_A_NODE or min(ranks, GPUS_OF_A_NODE)
    away = (ranks - here) / (ranks - 1)
    return max(sent * (1 - away) / IN_NODE.value, sent * away / BETWEEN_NODES.value) / 1e9
