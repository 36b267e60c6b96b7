"""The denoise loop of each family: what its transformer is given beside latents and timestep, and how it is guided.

The samplers know nothing of text, the transformers nothing of guidance; here they meet. The seam comes from outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .broadcast import BroadcastRun, ScheduleTable
from .errors import PabError
from .models.stdit3 import STDiT3
from .noise_sampling import NoiseSampler
from .sampling import RectifiedFlow
from .text import TextEmbedding

OnStep = Callable[[int, int, Tensor], None]  # (step, steps, the clean latents that the model expects)


@dataclass(frozen=True)
class Task:
    """What one run of a model is to do; tensors are on the model's device."""

    noise: Tensor  # [B, C, T, h, w] float32; where cond_mask is below 1, the clean latents given
    text: TextEmbedding
    table: ScheduleTable
    steps: int  # asked of the sampler, which may call the model more often
    guidance: float
    num_frames: int
    height: int  # pixels
    width: int
    fps: int
    cond_mask: Tensor | None = None  # [B, T], see RectifiedFlow.sample
    generator: torch.Generator | None = None  # for noise drawn on the way


def denoise_by_velocity(model: Any, sampler: Any, task: Task, run: BroadcastRun, on_step: OnStep) -> Tensor:
    """STDiT3 along a rectified flow, guided against its learned null text."""
    assert isinstance(model, STDiT3)
    assert isinstance(sampler, RectifiedFlow)
    run.begin(model)
    tokens, device = task.text.tokens, task.noise.device
    guided = task.guidance != 1
    # [2B, 1, L, D]: with the prompts, then without; both see as many tokens as the prompt has.
    null = model.y_embedder.y_embedding[None, : tokens.shape[1]].to(tokens.dtype).expand_as(tokens)
    y = (torch.cat([tokens, null]) if guided else tokens)[:, None]
    copies = 2 if guided else 1
    mask = None if task.text.mask.all() else task.text.mask.repeat(copies, 1)
    size = {
        "fps": torch.tensor([float(task.fps)], device=device),
        "height": torch.tensor([float(task.height)]),
        "width": torch.tensor([float(task.width)]),
    }

    def velocity(z: Tensor, t: Tensor, step: int, x_mask: Tensor | None) -> Tensor:
        run.step = step
        x_mask = None if x_mask is None else x_mask.repeat(copies, 1)
        out = model(z.repeat(copies, 1, 1, 1, 1), t.repeat(copies), y, mask, x_mask=x_mask, seam=run, **size)
        out = out[:, : z.shape[1]]
        if not guided:
            return out
        cond, uncond = out.chunk(2)
        return uncond + task.guidance * (cond - uncond)

    def step_noise(step: int) -> Tensor:
        # Drawn on the generator's own device: a seed then means the same everywhere.
        return torch.randn(task.noise.shape, generator=task.generator).to(device)

    return sampler.sample(
        velocity,
        task.noise,
        torch.tensor(task.table.timesteps),
        cond_mask=task.cond_mask,
        step_noise=step_noise if task.generator is not None else None,
        on_step=lambda state: on_step(state.step, state.steps, state.clean),
    )


def denoise_by_noise(model: Any, sampler: Any, task: Task, run: BroadcastRun, on_step: OnStep) -> Tensor:
    """Latte and Open-Sora-Plan on one of diffusers' schedulers, guided against a negative prompt."""
    assert isinstance(sampler, NoiseSampler)
    if task.cond_mask is not None:
        raise PabError("This model makes videos from text only; given pictures or clips are for Open-Sora.")
    run.begin(model)
    text, mask = task.text.tokens, task.text.mask
    if task.guidance > 1:
        if task.text.negative is None:
            raise PabError("This model is guided by a negative prompt, and the text has none: encode it anew.")
        text, mask = torch.cat([task.text.negative, text]), mask.repeat(2, 1)
    # Prompts of one length need no mask, as with the authors; the negative one is as long as its prompt.
    seen = None if mask.all() else mask

    def predict(x: Tensor, t: Tensor, step: int) -> Tensor:
        run.step = step
        return model(x, t, text, seen, seam=run)

    return sampler.sample(
        predict,
        task.noise,
        task.table.sampler_steps or task.steps,
        guidance=task.guidance,
        generator=task.generator,
        on_step=lambda state: on_step(state.step, state.steps, state.clean),
    )


DENOISERS: dict[str, Callable[[Any, Any, Task, BroadcastRun, OnStep], Tensor]] = {
    "stdit3": denoise_by_velocity,
    "latte": denoise_by_noise,
    "open-sora-plan": denoise_by_noise,
}
