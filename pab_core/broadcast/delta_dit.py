"""Delta-DiT (arXiv 2406.01125) as the paper of PAB compares it: early in the run, every other step reuses what the
first blocks together add to their input.

That residual is the sum of the updates of the blocks' branches, so reusing all branches of the range at once is the
same; the table says so and has them kept as one tensor. The baseline that the paper measured subtracted the residual
where it should have added it, which explains its low PSNR there (11.91 dB): its figures cannot be reproduced with a
right one, and are not.

Settings: the comparison's own (NUS-HPC-AI-Lab/VideoSys, branch exp/tgate_deltadit).
"""

from dataclasses import dataclass

from ..models.layers import Branch
from .schedule import ScheduleTable


@dataclass(frozen=True)
class DeltaDit:
    """Reuses the residual of the blocks before `depth_share` at steps 1, 3, ... before `until`."""

    depth_share: float  # of the blocks, from the first on
    until: float  # fraction of the run
    name: str = "delta-dit"
    steps: None = None

    def resolve(self, timesteps: tuple[float, ...], branches: tuple[Branch, ...]) -> ScheduleTable:
        steps = len(timesteps)
        depth = 1 + max(branch.block for branch in branches)
        # Half a block and half a step of room: the settings are whole numbers of both at the released size.
        count = max(1, int(self.depth_share * depth + 0.5))
        reused = [i % 2 == 1 and i + 0.5 < self.until * steps for i in range(steps)]
        row = tuple(i - 1 if reused[i] else i for i in range(steps))
        together = tuple(branch for branch in branches if branch.block < count)
        source = {branch: row if branch.block < count else tuple(range(steps)) for branch in branches}
        return ScheduleTable(self.name, timesteps, source, groups=(together,))


DELTA_DIT = {
    "stdit3": DeltaDit(6 / 28, 6 / 30),
    "latte": DeltaDit(2 / 28, 2 / 50),
    "open-sora-plan": DeltaDit(3 / 28, 2 / 159),
}
