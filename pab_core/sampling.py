"""Rectified flow (arXiv 2209.03003) with Open-Sora 1.2's timestep transform."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PabError


@dataclass(frozen=True)
class FlowStep:
    """Where a sampling loop stands after a step."""

    step: int
    steps: int
    model_input: Tensor  # [B, C, T, h, w], what the model was given
    latents: Tensor  # [B, C, T, h, w], after the step
    velocity: Tensor  # [B, C, T, h, w]
    timestep: float  # 0..1000

    @property
    def clean(self) -> Tensor:
        """The clean latents that the model expects at this step."""
        return self.model_input + self.velocity * (self.timestep / 1000)


Velocity = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path from noise (timestep 1000) to clean latents (0), walked in Euler steps.

    Longer and larger videos need more of their steps at high noise: the transform shifts the timesteps by the square
    root of tokens against one 512x512 frame.
    """

    num_timesteps: int = 1000
    use_timestep_transform: bool = True
    transform_scale: float = 1.0

    def timesteps(self, steps: int, num_frames: int, height: int, width: int) -> Tensor:
        """-> float32 [steps], descending from 1000. Sizes in pixels.

        In float32 throughout, as the authors compute it: their windows compare the integer part.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise PabError(f"The number of steps must be a whole number, 1 or more, not {steps!r}.")
        if steps > self.num_timesteps:
            raise PabError(f"The number of steps must be {self.num_timesteps} at most, not {steps}.")
        t = torch.tensor([(1.0 - i / steps) * self.num_timesteps for i in range(steps)])
        return self.shift(t, num_frames, height, width) if self.use_timestep_transform else t

    def shift(self, t: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        """The resolution- and length-dependent transform of timesteps t (any shape, 0..1000)."""
        size = torch.tensor([float(height) * float(width), float(_reduced_frames(num_frames))])
        space, time = (size / torch.tensor([512.0 * 512.0, 1.0])).sqrt()
        ratio = space * time * self.transform_scale
        t = t / self.num_timesteps
        return ratio * t / (1 + (ratio - 1) * t) * self.num_timesteps

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] on the path at timesteps t [B]."""
        share = (1 - t.float() / self.num_timesteps).view(-1, 1, 1, 1, 1)
        return share * clean + (1 - share) * noise

    def sample(
        self,
        velocity: Velocity,
        z: Tensor,
        timesteps: Tensor,
        *,
        cond_mask: Tensor | None = None,
        step_noise: Callable[[int], Tensor] | None = None,
        on_step: Callable[[FlowStep], None] | None = None,
    ) -> Tensor:
        """Walks from noise to clean latents.

        Args:
            velocity: (z [B, C, T, h, w], t [B], step, x_mask or None) -> velocity [B, C, T, h, w].
            z: start, noise [B, C, T, h, w]; where cond_mask is below 1, the clean latents given.
            timesteps: [steps], descending.
            cond_mask: [B, T], 0 = a given frame, 1 = free, between = given but edited from that share of the way on.
            step_noise: step -> noise shaped like z, for frames that start to be edited at that step; drawn if None.
            on_step: called after each step; what it raises ends the run.
        """
        noised = None if cond_mask is None else cond_mask == 1
        times, ends = timesteps.tolist(), torch.cat([timesteps, timesteps.new_zeros(1)])
        # All on the device before the first step: a copy in the loop would wait for what the device has still to do.
        shares, ends = ((ends[:-1] - ends[1:]) / self.num_timesteps).to(z.device), ends.to(z.device)
        for step, time in enumerate(times):
            batch_t = ends[step].expand(z.shape[0])
            given, x_mask = z, None
            if cond_mask is not None and noised is not None:
                x_mask = cond_mask * self.num_timesteps >= batch_t[:, None]
                noise = step_noise(step) if step_noise is not None else torch.randn_like(z)
                starts = (x_mask & ~noised)[:, None, :, None, None]
                z = torch.where(starts, self.add_noise(z, noise, batch_t), z)
                noised = x_mask
            v = velocity(z, batch_t, step, x_mask)
            moved = z + v * shares[step]
            if x_mask is not None:
                moved = torch.where(x_mask[:, None, :, None, None], moved, given)
            if on_step is not None:
                on_step(FlowStep(step, len(times), z, moved, v, time))
            z = moved
        return z


def _reduced_frames(num_frames: int) -> int:
    """Latent frames as the transform counts them: 5 for each whole 17 frames (hpcaitech/Open-Sora)."""
    if num_frames == 1:
        return 1
    return int(num_frames) // 17 * 5 or -(-int(num_frames) // 4)
