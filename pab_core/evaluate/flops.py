"""FLOPs of one video at the paper's settings: one call of the full model counted branch by branch, summed over a table.

Counted as 2 for each multiply-add, matrix products, convolutions and attention cores only. The model runs once on fake
tensors - those of the meta device, but with a device to claim, since some position embeddings are computed on the CPU -
so no weights and no memory are needed, and nothing here depends on a policy: the table alone says how often each
branch is computed.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..broadcast import AnyPolicy, ScheduleTable
from ..errors import PabError
from ..models.latte import LatteConfig, LatteT2V
from ..models.layers import Branch, Kind
from ..models.open_sora_plan import OpenSoraPlanConfig, OpenSoraPlanT2V
from ..models.registry import ModelSpec, model_spec
from ..models.stdit3 import STDiT3, STDiT3Config
from ..settings import schedule_for

Config = STDiT3Config | LatteConfig | OpenSoraPlanConfig


_TYPICAL_TOKENS = 20
_counting = threading.Lock()


@dataclass(frozen=True)
class PaperSetting:
    """How the authors' runs for the paper's tables (arXiv 2408.12588) went, as far as it shows in the FLOPs."""

    config: Config  # of the released model
    text_tokens: int  # real tokens of the prompt; guidance's null text is cut to as many
    most_text_tokens: int  # that the model reads
    text_encoder: float  # TFLOPs of T5 for a video: a call for the prompt and, but for Open-Sora, one for the null text
    decoder: float  # TFLOPs of the VAE; Open-Sora-Plan's decodes in tiles
    unseen_cores: tuple[Kind, ...] = ()  # ran in external attention kernels, which the paper's counter did not see
    embeds_padding: bool = False  # projected as many text tokens as the model reads, and cut off the padding afterwards
    text_per_frame: bool = False  # made the text's keys and values anew for each latent frame


# Tokens, text_encoder and decoder are fitted to the published figures of off and PAB, and meet them within 0.01 %.
PAPER = {
    "open-sora": PaperSetting(
        STDiT3Config(), 12, 300, 2.8, 246.3, unseen_cores=("spatial", "cross"), embeds_padding=True
    ),
    "latte": PaperSetting(LatteConfig(), 6, 120, 2 * 1.1, 48.7, text_per_frame=True),
    "open-sora-plan": PaperSetting(OpenSoraPlanConfig(), 6, 300, 2 * 2.8, 577.0, text_per_frame=True),
}


@dataclass(frozen=True)
class BranchFlops:
    """One branch in one call of the model."""

    linear: int  # linear layers over video tokens
    text: int  # linear layers over text tokens: keys and values of cross-attention
    core: int  # attention's scores, and their product with the values

    @property
    def total(self) -> int:
        return self.linear + self.text + self.core


@dataclass(frozen=True)
class CallFlops:
    """One call of the model, all samples of its batch together."""

    branches: Mapping[Branch, BranchFlops]
    text_embedding: int  # text states, to the model's width
    outside: int  # other embedders, final layer

    @property
    def total(self) -> int:
        return self.outside + self.text_embedding + sum(flops.total for flops in self.branches.values())

    def over(self, table: ScheduleTable) -> int:
        """A whole run: each branch at the steps that compute it, the rest at every step."""
        saved = sum(
            # Reused scores spare the product of queries and keys, half of the core, and nothing else.
            (flops.core // 2 if table.scores and branch.kind != "mlp" else flops.total)
            * sum(table.reuses(branch, step) for step in range(table.steps))
            for branch, flops in self.branches.items()
        )
        return table.steps * self.total - saved

    def without_cores(self, kinds: Iterable[Kind]) -> CallFlops:
        """The same without the attention cores of some kinds of branches."""
        unseen = frozenset(kinds)
        branches = {b: replace(f, core=0) if b.kind in unseen else f for b, f in self.branches.items()}
        return replace(self, branches=branches)


@dataclass(frozen=True)
class FlopsReport:
    """TFLOPs of one video, by both conventions, with a policy and with none."""

    model: str
    policy: str
    paper_tflops: float  # whole pipeline, but for the attention cores that the paper's counter did not see
    denoise_tflops: float  # denoising alone, all attention cores
    off_paper_tflops: float
    off_denoise_tflops: float

    def to_json(self) -> dict[str, Any]:
        numbers = ("paper_tflops", "denoise_tflops", "off_paper_tflops", "off_denoise_tflops")
        return {"model": self.model, "policy": self.policy, **{name: round(getattr(self, name), 4) for name in numbers}}


def video_flops(model: str, policies: Iterable[str | AnyPolicy], text_tokens: int | None = None) -> list[FlopsReport]:
    """The FLOPs of one video of a released model at the paper's settings, for each policy.

    Args:
        model: a key of PAPER.
        text_tokens: real tokens of the prompt, the end token among them; None: those of the paper's tables.

    Raises:
        PabError: the paper has no such model; unknown policy; a number of tokens that the model does not read.
    """
    spec, paper = model_spec(model), paper_setting(model)
    tokens = paper.text_tokens if text_tokens is None else text_tokens
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= paper.most_text_tokens:
        raise PabError(
            f"The number of text tokens must be a whole number from 1 to {paper.most_text_tokens}, not {tokens!r}."
        )
    tables = [schedule_for(spec, policy) for policy in ("off", *policies)]
    call = as_published(count_call(spec, paper.config, tokens), spec, paper, tokens)
    seen = call.without_cores(paper.unseen_cores)
    around = paper.text_encoder + paper.decoder
    both = [(around + seen.over(table) / 1e12, call.over(table) / 1e12) for table in tables]
    return [FlopsReport(model, table.policy, *own, *both[0]) for table, own in zip(tables[1:], both[1:], strict=True)]


def predicted_saving(spec: ModelSpec, config: Any, table: ScheduleTable, **size: int) -> float:
    """Share of the denoising's arithmetic that a schedule leaves out, 0..1; `size`: num_frames, height, width."""
    call = _typical_call(spec, config, **size)
    return 1 - call.over(table) / (table.steps * call.total)


@functools.lru_cache(maxsize=64)
def _typical_call(spec: ModelSpec, config: Any, **size: int) -> CallFlops:
    """A call with a prompt of usual length; counting takes half a second to three."""
    with _counting:  # what counts watches all of torch
        return count_call(spec, config, _TYPICAL_TOKENS, **size)


def describe_flops(report: FlopsReport, text_tokens: int | None = None) -> str:
    """The report for people, with what it counts."""
    spec, paper = model_spec(report.model), paper_setting(report.model)
    tokens = paper.text_tokens if text_tokens is None else text_tokens
    unseen = f", without the attention cores of {' and '.join(paper.unseen_cores)}" if paper.unseen_cores else ""

    def line(name: str, own: float, off: float, counted: str) -> str:
        return f"{name:8} {off:10.2f}  {own:10.2f}  {own / off - 1:+7.1%}  {counted}"

    return "\n".join(
        [
            f"{spec.title}, {report.policy}: TFLOPs of one video",
            f"{spec.num_frames} frames, {spec.width}x{spec.height}, {spec.steps} steps, {tokens} text tokens, guidance",
            "",
            f"{'':8} {'off':>10}  {report.policy:>10}",
            line("paper", report.paper_tflops, report.off_paper_tflops, f"the whole pipeline{unseen}"),
            line("denoise", report.denoise_tflops, report.off_denoise_tflops, "denoising, all attention cores"),
            "",
            f"The paper's row holds {paper.text_encoder:.1f} for T5 and {paper.decoder:.1f} for the VAE: not counted "
            "here, but fitted to the paper's figures.",
        ]
    )


def paper_setting(model: str) -> PaperSetting:
    """PabError where the paper has no figures for the model."""
    if model not in PAPER:
        raise PabError(f"The paper has no figures for {model_spec(model).title}; choose one of {', '.join(PAPER)}.")
    return PAPER[model]


def as_published(call: CallFlops, spec: ModelSpec, paper: PaperSetting, text_tokens: int) -> CallFlops:
    """What the authors' model takes for a call that was counted on ours, which does the same work on the text once."""
    frames = spec.latent_frames(spec.num_frames) if paper.text_per_frame else 1
    branches = {branch: replace(flops, text=flops.text * frames) for branch, flops in call.branches.items()}
    embedded = paper.most_text_tokens if paper.embeds_padding else text_tokens
    return replace(call, branches=branches, text_embedding=call.text_embedding // text_tokens * embedded)


def count_call(
    spec: ModelSpec,
    config: Config,
    text_tokens: int,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 2,
) -> CallFlops:
    """Counts one call of a model with this config; it is never given a mask, so all text tokens are real.

    Args:
        spec: how pixels become latents, and the size of the video where none is given.
        batch: 2 with classifier-free guidance, else 1.
    """
    height, width = height or spec.height, width or spec.width
    latents = (
        spec.latent_frames(num_frames or spec.num_frames),
        height // spec.space_factor,
        width // spec.space_factor,
    )
    counter, attention = FlopCounterMode(display=False), _AttentionCounter()
    counted: dict[Branch, BranchFlops] = {}

    def seam(branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        before = counter.get_total_flops(), attention.text, attention.core
        attention.states = cond.text
        value = update(x, cond)
        text, core = attention.text - before[1], attention.core - before[2]
        counted[branch] = BranchFlops(counter.get_total_flops() - before[0] - text, text, core)
        return value

    with torch.no_grad(), FakeTensorMode():
        model, embedder = _build(config)
        given = {"fps": spec.fps, "height": height, "width": width} if isinstance(model, STDiT3) else {}
        with counter, attention:
            model(
                torch.empty(batch, config.in_channels, *latents),
                torch.empty(batch),
                torch.empty(batch, text_tokens, config.caption_channels),
                seam=seam,
                **{name: torch.tensor([float(value)]) for name, value in given.items()},
            )
    text_embedding = sum(counter.get_flop_counts()[f"{type(model).__name__}.{embedder}"].values())
    inside = sum(flops.linear + flops.text for flops in counted.values())
    return CallFlops(counted, text_embedding, counter.get_total_flops() - inside - text_embedding)


def _build(config: Config) -> tuple[nn.Module, str]:
    """The model, and the name of its module that brings the text states to its width."""
    if isinstance(config, STDiT3Config):
        return STDiT3(config).eval(), "y_embedder"
    model = LatteT2V(config) if isinstance(config, LatteConfig) else OpenSoraPlanT2V(config)
    return model.eval(), "caption_projection"


class _AttentionCounter(TorchFunctionMode):
    """Counts attention cores itself, whichever kernel torch would choose, and keeps them from the counter of the rest;
    and notes how much of the rest goes into the text states of the call at hand."""

    def __init__(self):
        super().__init__()
        self.core = 0
        self.text = 0
        self.states: Tensor | None = None  # [B, L, D]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            self.core += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if func is F.linear and args[0] is self.states:
            self.text += 2 * args[0].numel() * args[1].shape[0]
        return func(*args, **(kwargs or {}))
