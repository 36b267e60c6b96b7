"""The seam of a clip that lies on several ranks: between the model and its run, for one call of the model.

Broadcast decides first, as ever, whether a branch is computed; only a temporal attention that is computed lets the
ranks exchange anything. What a run keeps is this rank's part of an update.

    model -> FrameSeam.run_blocks -> block -> FrameSeam -> BroadcastRun -> the method -> the block's own update
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..broadcast import BroadcastRun
from ..models.layers import Branch
from .collectives import PREDICTION, Collectives
from .layout import Layout

BlockUpdate = Callable[[Any, Tensor, Any], Tensor]


class SequenceMethod(Protocol):
    """How temporal attention is computed where each rank holds some of the frames."""

    takes_any_attention: bool  # whether the attention core may be any; False: only PyTorch's is met

    def attend(self, layout: Layout, block: Any, update: BlockUpdate, x: Tensor) -> Tensor:
        """The update of temporal attention for this rank's frames.

        Args:
            update: what computes it, given the block, x [B, T, S, D] and the conditioning of the same frames.
            x: this rank's frames, [B, T / N, S, D]; the update has the same shape.
        """
        ...


class FrameSeam:
    """A seam that takes whole blocks, to cut x along time before the first and to put it back after the last.

    Between blocks, models may add to x what is another for each frame, once, before the first temporal block: they are
    given x with all frames there too, of which only this rank's are real.
    """

    def __init__(self, run: BroadcastRun, model: Any, method: SequenceMethod, collectives: Collectives):
        self.run = run
        self.method = method
        self.collectives = collectives
        self.last: Branch = model.branches[-1]
        self.layout: Layout | None = None
        self.block: Any = None

    def run_blocks(self, blocks: Sequence[Any], start: Callable[[], Tensor], cond: Any) -> Tensor:
        first = self.layout is None
        x = start()
        if self.layout is None:
            # A run that decides itself looks at all frames.
            if (self.run.step, self.run.lane) != self.run._place:
                self.run._enter(x, cond)
            self.layout = Layout.of(x, cond, self.collectives.rank, self.collectives.size)
        x, cond = self.layout.take(x), self.layout.own
        # A run in fused operations takes whole blocks, and comes back for temporal attention.
        whole = getattr(self.run, "run_shared_blocks", None)
        if whole is not None:
            x = whole(blocks, x, cond, self)
        else:
            for block in blocks:
                self.enter(block)
                x = block(x, cond, self)
        return self.layout.put(x) if first or blocks[-1].branches[-1] == self.last else x

    @property
    def num_frames(self) -> int:
        """Latent frames of the clip, over which temporal attention goes, here as on any rank."""
        assert self.layout is not None
        return sum(self.layout.frames)

    def enter(self, block: Any) -> None:
        """The next branches are this block's."""
        self.block = block

    def __call__(self, branch: Branch, update: Any, x: Tensor, cond: Any) -> Tensor:
        return self.run(branch, self.shared(branch, update), x, cond)

    def shared(self, branch: Branch, update: Any) -> Any:
        """A block's update as the ranks compute it together: another for temporal attention only."""
        if branch.kind != "temporal":
            return update
        assert self.layout is not None
        layout, block = self.layout, self.block
        return lambda x, cond: self.method.attend(layout, block, update.__func__, x)

    def shares_gated(self, branch: Branch) -> bool:
        """Whether `gated` is to compute a branch; if not, `shared` must where it differs from the block's own."""
        return branch.kind == "temporal" and self.method.takes_any_attention

    def gated(self, update: Any, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Temporal attention by an update that leaves the gate to whoever adds it.

        Args:
            update: (block, x, cond) -> gate [B, 1 or T, 1, D] or None, and what it multiplies, [B, T, S, D].
            x: this rank's frames, as in both results.
        """
        assert self.layout is not None
        gates: list[Tensor | None] = []

        def ungated(block: Any, x: Tensor, cond: Any) -> Tensor:
            gate, h = update(block, x, cond)
            gates.append(gate)
            return h

        h = self.method.attend(self.layout, self.block, ungated, x)
        (gate,) = gates
        return gate if gate is None or gate.shape[1] == 1 else self.layout.take(gate), h

    def gather(self, out: Tensor) -> Tensor:
        """The model's output [B, C, T, H, W], of which this rank's frames are real -> all of it."""
        assert self.layout is not None
        layout, frames = self.layout, out.shape[2]
        # A token may be of several latent frames, of which the last token's are maybe not all there.
        patch = -(-frames // sum(layout.frames))
        starts = [sum(layout.frames[:rank]) * patch for rank in range(self.collectives.size)]
        sizes = [min(start + count * patch, frames) - start for start, count in zip(starts, layout.frames, strict=True)]
        own = starts[layout.rank]
        return self.collectives.gather(out[:, :, own : own + sizes[layout.rank]], 2, sizes, PREDICTION)
