"""The memory of a denoise loop at its worst moment, told before it starts.

The transformer is asked itself: with one block of each stream it is built on the meta device, where tensors have shapes
and no numbers, and called once, while the bytes that live are counted. The schedule then tells what is kept for reuse
while which branch is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..broadcast import ScheduleTable
from ..broadcast.cache import make_store
from ..broadcast.host_cache import HostCache
from ..checkpoints import SAMPLERS, Sampler
from ..denoising import DENOISERS, Task
from ..errors import PabError
from ..models.fp8 import Fp8Linear, large_linears, replace_linears
from ..models.layers import Branch
from ..models.registry import ARCHITECTURES, ModelSpec, TransformerConfig
from ..offload import Mode, packed_bytes, tensors_of, transformer_blocks
from ..pipeline import Pipeline
from ..text import TextEmbedding
from .live_bytes import LiveBytes

Kept = Literal["plain", "fp8", "host"]
_SAMPLER_CALLS = 24  # after which a sampler carries all that it ever will: PNDM starts with 12 of another kind


@dataclass(frozen=True)
class Peak:
    """Bytes on the device at the worst moment of a denoise loop; what other modules have there is not counted.

    A library's own working memory, such as that of a matrix product, is not seen: keep a tenth more free.
    """

    weights: int  # of the transformer, or of the part of it that is there
    kept: int  # for reuse
    activations: int
    text: int
    latents: int
    step: int  # at which it comes

    @property
    def working(self) -> int:
        """Beside the weights."""
        return self.kept + self.activations + self.text + self.latents

    @property
    def total(self) -> int:
        return self.weights + self.working

    def to_json(self) -> dict[str, int]:
        return asdict(self) | {"total": self.total}


def predicted_peak(
    spec: ModelSpec,
    config: TransformerConfig,
    table: ScheduleTable,
    *,
    num_frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    guidance: float | None = None,
    tokens: int | None = None,
    sampler: Sampler | None = None,
    storage: Literal["fp8"] | None = None,
    mode: Mode | None = None,
    kept: Kept = "plain",
) -> Peak:
    """What `Pipeline.denoise` takes at its worst moment.

    Args:
        config: of the transformer, `pipe.transformer.config`.
        table: of the run.
        num_frames, height, width: of the clip, pixels.
        dtype: of the arithmetic, and of the weights where `storage` is None.
        guidance: default: the model's; at 1 the model is called without its second half.
        tokens: of the prompt; default: as many as the model reads.
        sampler: default: the authors'.
        storage: "fp8": large weights in eight bits.
        mode: in which the pipeline is offloaded, if it is.
        kept: how updates wait for their reuse: as they are, in eight bits, or on the host.

    Raises:
        PabError: the table reuses attention scores, whose size is another.
    """
    if table.scores:
        raise PabError(
            f"The memory of a run with {table.policy} is not predicted: it keeps attention scores, a matrix for each "
            "head. Take a policy that reuses results, such as pab246."
        )
    with torch.device("meta"):
        model = ARCHITECTURES[spec.family].build(_shallow(config)).to(dtype).eval()
    if storage == "fp8":
        replace_linears(model, large_linears(model))
    task = _task(spec, config, table, num_frames, height, width, dtype, guidance, tokens)
    text = sum(tensor.nbytes for tensor in (task.text.tokens, task.text.negative) if tensor is not None)
    costs = _measure(spec, model, sampler or SAMPLERS[spec.family], task, "fp8" if kept == "fp8" else "plain")
    slots = HostCache.device_bytes(max(cost.held for cost in costs.branches.values())) if kept == "host" else None
    most, held, step = _worst(table, costs, slots)
    return Peak(
        weights=_weights(model, config.depth, mode),
        kept=held,
        activations=most - held,
        text=text,
        latents=task.noise.nbytes + costs.sampler,
        step=step,
    )


def peak_of(
    pipe: Pipeline,
    table: ScheduleTable,
    text: TextEmbedding,
    *,
    num_frames: int,
    height: int,
    width: int,
    guidance: float | None = None,
    mode: Mode | None = None,
    kept: Kept = "plain",
) -> Peak:
    """`predicted_peak` of a pipeline as it is, but for `mode`, and of a text."""
    fp8 = any(isinstance(part, Fp8Linear) for part in pipe.transformer.modules())
    return predicted_peak(
        pipe.spec,
        pipe.transformer.config,
        table,
        num_frames=num_frames,
        height=height,
        width=width,
        # Weights in eight bits do not tell it.
        dtype=next(p.dtype for p in pipe.transformer.parameters() if p.is_floating_point()),
        guidance=guidance,
        tokens=text.tokens.shape[1],
        sampler=pipe.sampler,
        storage="fp8" if fp8 else None,
        mode=mode,
        kept=kept,
    )


@dataclass(frozen=True)
class _Cost:
    """Of a branch, bytes alive beside what is kept and what the run was given."""

    compute: int
    keep: int  # as compute, where its update is kept
    reuse: int
    held: int  # by its update, where it is kept


@dataclass(frozen=True)
class _Costs:
    head: int  # before the first branch
    branches: dict[tuple[str, str], _Cost]  # by stream and kind
    tail: int  # after the last branch
    sampler: int  # that it carries from step to step


def _worst(table: ScheduleTable, costs: _Costs, slots: int | None) -> tuple[int, int, int]:
    """The most bytes alive at once, how many of them are kept, and the first step at which that is.

    slots: bytes on the device, from the first update on, where updates are kept on the host.
    """
    keepers = set(table.keepers)
    # Where the run decides what is reused, the sum of all updates is kept from the first step on.
    held = 0 if table.decide is None else slots or max(cost.held for cost in costs.branches.values())
    worst = (costs.head + held, held, 0)
    for step in range(table.steps):
        moments = [(held + costs.head, held)]
        for branch in table.branches:
            cost = costs.branches[branch.stream, branch.kind]
            source = table.source[branch][step]
            last = table.last_use.get((branch, source))
            mine = cost.held if branch in keepers and slots is None else 0
            if source != step:
                moments.append((held + cost.reuse, held))
                held -= mine * len(table.freed(branch, step))
            elif last is not None:
                held = held if slots is None else slots
                moments.append((held + cost.keep, held))
                held += mine
            else:
                moments.append((held + cost.compute, held))
        moments.append((held + costs.tail, held))
        worst = max(worst, max((*moment, step) for moment in moments), key=lambda moment: moment[0])
    return worst


def _measure(spec: ModelSpec, model: nn.Module, sampler: Sampler, task: Task, store: str) -> _Costs:
    watch = _Watch(store)
    model.register_forward_pre_hook(watch.enter)
    model.register_forward_hook(watch.leave)
    try:
        with torch.no_grad(), _OnMeta(), watch.live:
            run: Any = watch
            DENOISERS[spec.family](model, sampler, task, run, lambda *_: None)
    except _Enough:
        pass
    return _Costs(watch.head, {key: watch.cost(key) for key in watch.alone}, watch.tail, watch.grown)


class _Enough(Exception):
    """Nothing new comes in further steps."""


class _Watch:
    """A seam that has each branch computed, kept and taken once, and reads what lives meanwhile."""

    def __init__(self, store: str) -> None:
        self.live = LiveBytes()
        self.step = 0  # the denoise loop sets it, as a run's
        self.lane = "both"
        self.store = make_store(store)
        self.head = self.tail = 0
        self.alone: dict[tuple[str, str], int] = {}  # bytes alive at the most while the branch is computed
        self.keeping: dict[tuple[str, str], int] = {}
        self.reusing: dict[tuple[str, str], int] = {}
        self.adding: dict[tuple[str, str], int] = {}
        self.held: dict[tuple[str, str], int] = {}
        self.grown = 0  # bytes alive at the start of a call beside those of the first call
        self._last: tuple[str, str] | None = None
        self._calls = self._entry = 0

    def begin(self, model: Any) -> None:
        """As a run's; here nothing is decided."""

    def __call__(self, branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        key, live = (branch.stream, branch.kind), self.live
        self._pass()
        self._last = key
        start = live.peak = live.now
        value = update(x, cond)
        self.alone[key] = live.peak
        # What a store makes of it, and what it takes to get it back.
        name: Hashable = (self.lane, branch, 0)
        before = live.peak = live.now
        self.store.keep(name, value)
        self.keeping[key] = live.peak
        self.held[key] = self.store.held_bytes
        live.peak = kept = live.now
        taken = self.store.take(name)
        new, getting = live.now - kept, live.peak - kept
        self.reusing[key] = start + max(getting, new + taken.nbytes)  # at the end the sum, as large as the update
        del taken
        self.store.drop(name)
        assert live.now == before
        live.peak = live.now
        return value

    def enter(self, model: Any, _: Any) -> None:
        if self._calls == 0:
            self._entry = self.live.now
        self.grown = max(self.grown, self.live.now - self._entry)
        self._calls += 1
        if self._calls > _SAMPLER_CALLS:
            raise _Enough

    def leave(self, model: Any, _: Any, out: Tensor) -> None:
        """The first call has told all of the model: from now on it is only what the sampler makes of its results."""
        if self._calls == 1:
            self._pass()
            shape = out.shape
            model.forward = lambda *_, **__: torch.empty(shape, device="meta")

    def cost(self, key: tuple[str, str]) -> _Cost:
        compute = max(self.alone[key], self.adding[key])
        return _Cost(compute, max(compute, self.keeping[key]), self.reusing[key], self.held[key])

    def _pass(self) -> None:
        """What lived since the last branch: its update added to x."""
        if self._last is None:
            self.head = self.live.peak
        else:
            self.adding[self._last] = self.tail = self.live.peak


class _OnMeta(TorchFunctionMode):
    """What tensors without numbers cannot do by themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            # The kernels that are used elsewhere make no matrix of scores; their results are laid out so.
            batch, heads, length, dim = args[0].shape
            return args[0].new_empty(batch, length, heads, dim).transpose(1, 2)
        if func is Tensor.to and args[0].is_meta and "cpu" in args[1:]:
            return func(torch.zeros(args[0].shape, dtype=args[0].dtype, device="cpu"), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _task(
    spec: ModelSpec,
    config: TransformerConfig,
    table: ScheduleTable,
    num_frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    guidance: float | None,
    tokens: int | None,
) -> Task:
    latents = (spec.latent_frames(num_frames), height // spec.space_factor, width // spec.space_factor)
    length = spec.max_tokens if tokens is None else tokens
    states = torch.empty(1, length, config.caption_channels, dtype=dtype, device="meta")
    negative = None if spec.family == "stdit3" else torch.empty_like(states)
    # The mask is read, not only computed with, so it has numbers.
    text = TextEmbedding(states, torch.ones(1, length, dtype=torch.bool), negative=negative)
    noise = torch.empty(1, config.in_channels, *latents, device="meta")
    scale = spec.guidance if guidance is None else guidance
    return Task(noise, text, table, table.steps, scale, num_frames, height, width, spec.fps)


def _shallow(config: Any) -> Any:
    """The config of a model of one block a stream."""
    names = {field.name for field in fields(config)}
    return replace(config, **{"depth" if "depth" in names else "num_layers": 1})


def _weights(model: nn.Module, depth: int, mode: Mode | None) -> int:
    """Of a model of `depth` blocks a stream, given that of one."""
    blocks = transformer_blocks(model)
    inside = sum(tensor.nbytes for block in blocks for tensor in tensors_of(block))
    outside = sum(tensor.nbytes for tensor in tensors_of(model)) - inside
    if mode == "blocks":
        return outside + 2 * max(packed_bytes(tensors_of(block)) for block in blocks)
    return outside + depth * inside
