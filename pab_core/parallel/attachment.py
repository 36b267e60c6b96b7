"""What one rank does around each call of a model whose clip lies on several ranks.

Two things can be shared out. The batch: with guidance, one half of the ranks has the half with the prompt, the other
the half without, and the predictions are exchanged once a call. The frames: see seam.py. Both together nest: the frames
of each half lie on its half of the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..broadcast import BroadcastRun
from ..broadcast.schedule import Decision, DynamicPolicy
from .collectives import PREDICTION, Collectives, Traffic
from .dsp import Dsp
from .megatron import Megatron
from .methods import find_method
from .seam import FrameSeam, SequenceMethod
from .ulysses import Ulysses

_SEQUENCE: dict[str, Any] = {"dsp": Dsp, "ulysses": Ulysses, "megatron": Megatron}


class Attachment:
    """A method between the ranks of a group, for one model.

    Making one is collective where the method has halves: it makes their groups, with `timeout` seconds for each wait.
    """

    def __init__(self, model: nn.Module, method: str, group: dist.ProcessGroup, timeout: float):
        parts = find_method(method)
        self.method = method
        self.traffic = Traffic()
        self.all = Collectives(group, self.traffic)
        self.halves: Collectives | None = None  # this rank and its counterpart in the other half
        self.frames: Collectives | None = None  # the ranks that share the frames
        within = group
        if parts.halves:
            ranks, size = dist.get_process_group_ranks(group), self.all.size // 2
            within = _own_group([ranks[:size], ranks[size:]], timeout)
            pairs = [list(pair) for pair in zip(ranks[:size], ranks[size:], strict=True)]
            self.halves = Collectives(_own_group(pairs, timeout), self.traffic)
        self.sequence: SequenceMethod | None = None
        if parts.sequence is not None:
            self.frames = Collectives(within, self.traffic)
            self.sequence = _SEQUENCE[parts.sequence](self.frames, model)

    @contextmanager
    def around(self, model: nn.Module, run: BroadcastRun) -> Iterator[None]:
        """Inside the `with`, the model's calls with this run as their seam are shared out; no other calls are."""

        def before(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("seam") is not run:
                return None
            call = Call(self, run, model)
            return call.cut(args), call.cut(kwargs) | {"seam": call}

        def after(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            call = kwargs.get("seam")
            return call.join(out) if isinstance(call, Call) and call.run is run else out

        hooks = (
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def agree(self, policy: DynamicPolicy, device: torch.device) -> Agreed:
        return Agreed(policy, self.all, device)


def _own_group(groups: list[list[int]], timeout: float) -> dist.ProcessGroup:
    """Makes groups of disjoint global ranks -> the one that this rank is in."""
    bound = timedelta(seconds=timeout)
    if sum(map(len, groups)) == dist.get_world_size():
        made = [dist.new_group(ranks, bound) for ranks in groups]  # all ranks make all
    else:
        mine = next(ranks for ranks in groups if dist.get_rank() in ranks)
        made = [dist.new_group(mine, bound, use_local_synchronization=True)]
    return next(group for group in made if isinstance(group, dist.ProcessGroup))


class Call:
    """One call of the model on this rank; the seam that the model is given."""

    def __init__(self, attachment: Attachment, run: BroadcastRun, model: Any):
        self.run = run
        self.halves = attachment.halves
        self.split = False  # whether this rank has one half of the batch
        self.batch = 0
        self.seam: Any = run
        if attachment.sequence is not None:
            assert attachment.frames is not None
            self.seam = FrameSeam(run, model, attachment.sequence, attachment.frames)
        whole = getattr(self.seam, "run_blocks", None)
        if whole is not None:
            self.run_blocks = whole

    def __call__(self, branch: Any, update: Any, x: Tensor, cond: Any) -> Tensor:
        return self.seam(branch, update, x, cond)

    def cut(self, args: Any) -> Any:
        """The model's arguments, positional (with the latents first) or by name, for this rank's half of the batch."""
        if isinstance(args, dict):
            return {name: self._half(value) for name, value in args.items()}
        self.batch = args[0].shape[0]
        # Without guidance the batch may be odd: then both halves of the ranks compute all of it.
        self.split = self.halves is not None and self.batch % 2 == 0
        return tuple(self._half(value) for value in args)

    def _half(self, value: Any) -> Any:
        if not self.split or not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != self.batch:
            return value
        assert self.halves is not None
        return value.chunk(2)[self.halves.rank]

    def join(self, out: Tensor) -> Tensor:
        """The prediction of this rank's part -> [B, C, T, H, W] of all."""
        if isinstance(self.seam, FrameSeam):
            out = self.seam.gather(out)
        if self.split:
            assert self.halves is not None
            out = self.halves.gather(out, 0, [self.batch // 2] * 2, PREDICTION)
        return out


@dataclass(frozen=True)
class Agreed:
    """A dynamic policy that decides on every rank as it does on the first."""

    policy: DynamicPolicy
    ranks: Collectives
    device: torch.device

    def begin(self, model: Any) -> Decision:
        return _AgreedDecision(self, self.policy.begin(model))


class _AgreedDecision:
    def __init__(self, policy: Agreed, decision: Decision):
        self.policy = policy
        self.decision = decision

    def reuse(self, step: int, steps: int, x: Tensor, cond: Any) -> bool:
        # All look at the same, but not all devices round alike.
        mine = self.decision.reuse(step, steps, x, cond)
        return self.policy.ranks.first(mine, self.policy.device)


def agree_on(run: BroadcastRun, attachment: Attachment, device: torch.device) -> None:
    """Has the run decide with the other ranks, where it decides anything."""
    decide = run.table.decide
    if decide is not None and not isinstance(decide, Agreed):
        run.table = replace(run.table, decide=attachment.agree(decide, device))
