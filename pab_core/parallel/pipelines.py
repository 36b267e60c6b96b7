"""A pipeline whose clips lie on several ranks: `attach`.

dist.init_process_group("nccl", timeout=timedelta(seconds=60))
pipe = attach(Pipeline.load(model, device=f"cuda:{rank}"), "dsp")
video = pipe.generate(prompt, seed=1)  # on every rank, and the same on every rank
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..errors import PabError
from ..pipeline import Pipeline
from ..text import TextEmbedding
from .attachment import Attachment, agree_on
from .collectives import Collectives, Traffic
from .methods import Sizes, check_sizes, find_method, heads_of


def attach(pipe: Pipeline, method: str, group: dist.ProcessGroup | None = None, *, timeout: float = 60.0) -> Pipeline:
    """The same pipeline with its denoise loop shared out among the ranks of a group.

    Every rank calls this with the same arguments, then what needs the ranks (denoise, generate) with the same
    arguments, and gets the same result, that of one device but for rounding. A rank that raises alone leaves the others
    waiting until the group's timeout.

    Args:
        pipe: on this rank's device; it is shared, and stays as it was.
        method: one of methods.METHODS.
        group: None: the default group, which must have been initialised.
        timeout: seconds that a wait in the groups of a method with halves may take.

    Returns:
        `pipe` itself for "none" and for a group of one rank.

    Raises:
        PabError: there is no such method, or it cannot use so many ranks, whatever the clip.
    """
    parts = find_method(method)
    group = group_or_default(group)
    ranks = dist.get_world_size(group)
    heads = heads_of(pipe.transformer.config)
    # How many frames and tokens there are, the clip will say.
    check_sizes(method, ranks, Sizes(frames=ranks, tokens=ranks, heads=heads))
    if ranks == 1:
        return pipe
    if parts.sequence == "megatron" and next(pipe.transformer.parameters()).device != pipe.device:
        raise PabError(
            "The method megatron keeps parts of the weights on each device, which low memory's offloading does not: "
            "choose dsp or ulysses, or leave the weights on the device."
        )
    attachment = Attachment(pipe.transformer, method, group, timeout)
    return ParallelPipeline(**fields_of(pipe), whole=pipe, ranks=attachment.all, attachment=attachment)


@dataclass
class RankPipeline(Pipeline):
    """One rank's pipeline, around another that does all the rest."""

    whole: Pipeline = field(kw_only=True)
    ranks: Collectives = field(kw_only=True)

    @property
    def device(self) -> torch.device:
        return self.whole.device

    @property
    def traffic(self) -> Traffic:
        """What this rank told the others."""
        return self.ranks.traffic

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so; all ranks must ask. To stop a run on all ranks at the same step, for example."""
        return self.ranks.any(flag, self.device)

    def inner(self) -> Pipeline:
        """The pipeline around which this one is, with the modules and settings that this one has now."""
        return replace(self.whole, **fields_of(self))

    def new_run(self, table: ScheduleTable, kept: str = "plain", *, recorded: bool = True) -> BroadcastRun:
        return self.inner().new_run(table, kept, recorded=recorded)

    def denoise(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner().denoise(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner().decode(*args, **kwargs)

    def encode(self, video: Tensor) -> Tensor:
        return self.inner().encode(video)


@dataclass
class ParallelPipeline(RankPipeline):
    """See `attach`."""

    attachment: Attachment = field(kw_only=True)

    def denoise(
        self,
        latents: Tensor,
        text: TextEmbedding,
        table: ScheduleTable,
        *,
        run: BroadcastRun | None = None,
        **settings: Any,
    ) -> Tensor:
        """As Pipeline.denoise, on every rank. What a run keeps is this rank's part.

        Raises:
            PabError: the clip has too few frames, tokens or heads for so many ranks; as from Pipeline.denoise.
        """
        sizes = Sizes.of_latents(self.transformer.config, tuple(latents.shape))
        check_sizes(self.attachment.method, self.ranks.size, sizes)
        run = self.new_run(table) if run is None else run
        agree_on(run, self.attachment, self.device)
        with self.attachment.around(self.transformer, run):
            return self.inner().denoise(latents, text, table, run=run, **settings)


def group_or_default(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    assert group is not None or dist.is_initialized(), "torch.distributed has no default group yet"
    group = group or dist.group.WORLD
    assert group is not None
    return group


def fields_of(pipe: Pipeline) -> dict[str, Any]:
    """What makes a pipeline, whatever is around it."""
    return {f.name: getattr(pipe, f.name) for f in fields(Pipeline)}
