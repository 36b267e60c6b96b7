"""Sampling for models that predict the noise (arXiv 2006.11239), by diffusers' schedulers: DDIM, PNDM and others."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .errors import PabError

# Those of diffusers' schedulers that walk from noise to clean latents on predictions of the noise alone.
SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
)
# What people call them, beside the names of their classes.
SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "dpm++2s": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm2-a": "KDPM2AncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
_LEAST_STEPS = {"PNDMScheduler": 4}  # it starts with 4 Runge-Kutta steps


@dataclass(frozen=True)
class NoiseStep:
    """Where a sampling loop stands after a call of the model."""

    step: int
    steps: int  # calls of the model in this run
    model_input: Tensor  # [B, C, T, h, w], what the model was given
    latents: Tensor  # [B, C, T, h, w], after the step
    noise: Tensor  # [B, C, T, h, w], predicted, with guidance
    timestep: float  # 0..999
    signal: float  # share of the clean latents' variance in model_input, 0..1

    @property
    def clean(self) -> Tensor:
        """The clean latents that the model expects at this step."""
        return (self.model_input - self.noise * (1 - self.signal) ** 0.5) / self.signal**0.5


Predict = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class NoiseSampler:
    """One of diffusers' schedulers by name, with its settings.

    The schedulers carry the state of a run (position, earlier predictions), so each run and each question gets a fresh
    one; this object holds none.
    """

    scheduler: str = "DDIMScheduler"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise PabError(f"There is no sampler named '{self.scheduler}'. Known are {', '.join(SCHEDULERS)}.")
        if self.settings.get("prediction_type", "epsilon") != "epsilon":
            raise PabError(
                f"The scheduler's prediction_type is {self.settings['prediction_type']!r}, but these models predict "
                "the noise ('epsilon'): correct the checkpoint's scheduler_config.json."
            )
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSampler:
        """Reads a scheduler_config.json, as diffusers writes them.

        Raises:
            PabError: it names no scheduler that is known here.
        """
        settings = {name: value for name, value in config.items() if not name.startswith("_")}
        return cls(str(config.get("_class_name", "DDIMScheduler")), settings)

    def named(self, name: str) -> NoiseSampler:
        """The same noise schedule walked by another of diffusers' schedulers, by its class or short name.

        Raises:
            PabError: there is no such scheduler.
        """
        if name not in SHORT_NAMES and name not in SCHEDULERS:
            raise PabError(f"There is no sampler named '{name}'. Known are {', '.join(SHORT_NAMES)}.")
        return NoiseSampler(SHORT_NAMES.get(name, name), self.settings)

    def timesteps(
        self, steps: int, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Tensor:
        """-> [calls], the timestep of each call of the model in a run of `steps` steps, descending from the noise.

        Some schedulers call the model more often than once a step: PNDM 9 times more, those of second order nearly
        twice as often. The size of the video makes no difference here.
        """
        return self._fresh(steps).timesteps

    def sample(
        self,
        predict: Predict,
        noise: Tensor,
        steps: int,
        *,
        guidance: float = 1.0,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        on_step: Callable[[NoiseStep], None] | None = None,
    ) -> Tensor:
        """Walks from noise to clean latents.

        Args:
            predict: (x [2B, C, T, h, w], t [2B], step) -> [2B, C or more, T, h, w], the noise in the first C channels;
                the first half of the batch is without the prompt, the second with it. `step` counts the calls.
            noise: start, of variance 1, [B, C, T, h, w].
            steps: as in `timesteps`.
            guidance: scale of classifier-free guidance; at 1 or less there is none, and `predict` is given the half
                with the prompt only.
            eta: share of fresh noise, 0..1, for schedulers that take it (DDIM).
            generator: for schedulers that draw fresh noise.
            on_step: called after each call of the model; what it raises ends the run.
        """
        scheduler = self._fresh(steps)
        accepted = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
        copies = 2 if guidance > 1 else 1
        channels, timesteps = noise.shape[1], scheduler.timesteps
        # All on the device before the first step: a copy in the loop would wait for what the device has still to do.
        times = timesteps.to(noise.device)
        z = noise * scheduler.init_noise_sigma
        for step, t in enumerate(timesteps):
            x = scheduler.scale_model_input(z, t)
            batch_t = times[step].expand(copies * z.shape[0])
            predicted = predict(x.repeat(copies, *[1] * (x.ndim - 1)), batch_t, step)
            if copies == 2:
                uncond, cond = predicted.chunk(2)
                predicted = uncond + guidance * (cond - uncond)
            # Models with a learned variance predict it in the channels after the noise; no sampler here uses it.
            predicted = predicted[:, :channels]
            z = scheduler.step(predicted, t, z, return_dict=False, **extra)[0]
            if on_step is not None:
                signal = float(scheduler.alphas_cumprod[round(float(t))])
                on_step(NoiseStep(step, len(timesteps), x, z, predicted, float(t), signal))
        return z

    def _fresh(self, steps: int) -> Any:
        """A scheduler at the start of a run. It keeps its numbers on the CPU, so that no step waits for a GPU."""
        least = _LEAST_STEPS.get(self.scheduler, 1)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
            raise PabError(
                f"The number of steps must be a whole number, {least} or more for {self.scheduler}, not {steps!r}."
            )
        import diffusers  # noqa: F401 - takes a second, so only when a run or its timesteps are asked for

        # Diffusers puts another module in its place while it is imported: a thread that waited for the import of
        # another has the first, which is empty.
        kind = getattr(sys.modules["diffusers"], self.scheduler)
        known = inspect.signature(kind).parameters
        settings = {name: value for name, value in self.settings.items() if name in known}
        if str(settings.get("variance_type", "")).startswith("learned"):
            del settings["variance_type"]
        try:
            scheduler = kind(**settings)
        except (TypeError, ValueError, NotImplementedError, ImportError) as error:
            raise PabError(
                f"{self.scheduler} cannot be set up as the checkpoint's scheduler_config.json says ({error})."
            ) from None
        most = scheduler.config["num_train_timesteps"]
        try:
            if steps > most:
                raise ValueError(f"it knows {most} timesteps")
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise PabError(f"{self.scheduler} cannot make a run of {steps} steps ({error}); choose another.") from None
        return scheduler
