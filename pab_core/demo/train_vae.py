"""Trains the demo model's video autoencoder on freshly rendered clips; every clip is seen once."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..autoencoders.open_sora import OpenSoraVAE
from .architecture import VAE
from .render import render, trace_frames
from .scenes import Scenes, sample_scenes

FRAMES, HEIGHT, WIDTH = 34, 128, 192


@dataclass(frozen=True)
class VaeSettings:
    seconds: float  # wall time, compilation not counted
    clips: int = 16  # a batch; each gives two chunks of 17 frames
    crop: int = 96  # side in pixels of the windows trained on, most of them around the object
    crop_share: float = 0.92  # of the time; the rest sees whole frames
    learning_rate: float = 1.5e-3
    kl_weight: float = 3e-4
    object_weight: float = 4.0  # extra weight of the object's pixels and their surroundings
    edge_weight: float = 1.0


class ClipSource:
    """Random training clips, rendered on the device."""

    def __init__(self, device: torch.device, seed: int, *, compiled: bool, split: str = "train", chunk: int = 16):
        self.device, self.split, self.chunk = device, split, chunk
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.trace = torch.compile(trace_frames, dynamic=False) if compiled else None

    def scenes(self, count: int) -> Scenes:
        return sample_scenes(count, self.generator, self.device, split=self.split)

    @torch.no_grad()
    def render(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """-> video [B, 3, T, H, W] in [-1, 1], object mask [B, T, H, W]."""
        return render(scenes, FRAMES, HEIGHT, WIDTH, chunk=self.chunk, trace=self.trace)

    def batches(self, clips: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.render(self.scenes(clips))


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.module.parameters()), [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def cosine_rate(done: float, warm_up: float = 0.03, floor: float = 0.02) -> float:
    """Learning-rate factor for the share of the time that is over, 0..1."""
    if done < warm_up:
        return done / warm_up + 1e-3
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min((done - warm_up) / (1 - warm_up), 1.0)))


def chunks(video: Tensor) -> Tensor:
    """[B, C, 34, H, W] -> [2B, C, 17, H, W], as the autoencoder cuts it."""
    return torch.cat(video.split(17, dim=2))


def object_windows(video: Tensor, mask: Tensor, side: int, random_share: float = 0.25) -> tuple[Tensor, Tensor]:
    """Cuts a window of side x side pixels out of each chunk, near its object or (a share of them) anywhere.

    video [N, 3, T, H, W], mask [N, 1, T, H, W] -> both cut, contiguous.
    """
    count, height, width = len(video), *video.shape[3:]
    seen = mask.sum(dim=(1, 2))  # [N, H, W]

    def starts(size: int, weight: Tensor) -> Tensor:
        places = torch.arange(size, device=video.device)
        centre = (weight * places).sum(1) / weight.sum(1).clamp(min=1e-3)
        around = centre - side / 2 + (torch.rand(count, device=video.device) - 0.5) * side * 0.6
        anywhere = torch.rand(count, device=video.device) * (size - side)
        chosen = torch.where(torch.rand(count, device=video.device) < random_share, anywhere, around)
        return chosen.round().clamp(0, size - side).long()[:, None] + torch.arange(side, device=video.device)

    rows, columns = starts(height, seen.sum(2)), starts(width, seen.sum(1))  # each [N, side]
    samples = torch.arange(count, device=video.device)[:, None, None]

    def cut(x: Tensor) -> Tensor:
        windows = x.movedim(0, 2).flatten(0, 1)  # [C T, N, H, W]
        windows = windows[:, samples, rows[:, :, None], columns[:, None, :]]  # [C T, N, side, side]
        return windows.unflatten(0, x.shape[1:3]).movedim(2, 0).contiguous()

    return cut(video), cut(mask)


def near_object(mask: Tensor) -> Tensor:
    """Object mask [N, 1, T, H, W], widened by 4 pixels."""
    return F.max_pool2d(mask.flatten(0, 2)[:, None], 9, stride=1, padding=4).view(mask.shape)


def reconstruction_loss(output: Tensor, video: Tensor, near: Tensor, settings: VaeSettings) -> Tensor:
    """Absolute and squared error of colours, and absolute error of their differences to the neighbours (edges), with
    more weight where `near` is 1. output, video [N, 3, T, H, W]; near [N, 1, T, H, W]."""
    weight = 1 + settings.object_weight * near
    error = output - video
    loss = (weight * (error.abs() + 2 * error.square())).mean()
    across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
    return loss + settings.edge_weight * (across + down)


def psnr(error: Tensor, weight: Tensor) -> float:
    """Weighted PSNR in dB of errors of videos in [-1, 1]."""
    mse = (error.square() * weight).sum() / (weight.sum() * error.shape[1]).clamp(min=1)
    return float(10 * torch.log10(4 / mse.clamp(min=1e-10)))


@torch.no_grad()
def evaluate_vae(vae: OpenSoraVAE, video: Tensor, mask: Tensor) -> dict[str, float]:
    """PSNR of reconstructions from the latents' means: over all pixels, and over those of the object."""
    mean, _ = vae.posterior(chunks(video))
    output = vae.decode_raw(mean, 17).clamp(-1, 1)
    error, weight = output - chunks(video), chunks(mask[:, None])
    return {"psnr": psnr(error, torch.ones_like(weight)), "object_psnr": psnr(error, weight)}


def compile_residual_blocks(vae: OpenSoraVAE) -> None:
    """Compiles the blocks in which the time goes, each shape once: a third of the wait for the whole model."""
    torch._dynamo.config.recompile_limit = 32
    for module in vae.spatial_vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.compile(dynamic=False)


def train_vae(
    settings: VaeSettings, folder: Path, device: torch.device, *, compiled: bool = True, log_every: int = 100
) -> tuple[OpenSoraVAE, list[dict[str, float]]]:
    """-> the averaged model and its loss curve. folder/vae.safetensors is rewritten every minute."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vae = OpenSoraVAE.from_config(VAE).to(device)
    vae.spatial_vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = Average(vae, 0.999)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.01, fused=compiled)
    source = ClipSource(device, seed=1, compiled=compiled, chunk=settings.clips)
    check_source = ClipSource(device, seed=99, compiled=False, split="held_out")
    check_video, check_mask = check_source.render(check_source.scenes(max(settings.clips // 2, 1)))

    def step_loss(video: Tensor, near: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, logvar = vae.posterior(video)
            mean, logvar = mean.float(), logvar.float()
            output = vae.decode_raw(mean + (0.5 * logvar).exp() * noise, 17)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(output.float(), video, near, settings)
        return loss + settings.kl_weight * kl, kl

    if compiled:
        compile_residual_blocks(vae)
    curve: list[dict[str, float]] = []
    start = saved = time.perf_counter()
    done = 0.0
    for step, (video, mask) in enumerate(source.batches(settings.clips)):
        cropping = done < settings.crop_share
        video, mask = chunks(video), chunks(mask[:, None])
        if cropping:
            video, mask = object_windows(video, mask, settings.crop)
        else:  # too short a time to compile again for this size; half of the batch, or memory would not do
            video, mask = video[::2], mask[::2]
            torch.compiler.set_stance("force_eager")
        size = vae.latent_size(17, *video.shape[3:])
        noise = torch.randn(len(video), vae.latent_channels, *size, device=device)
        loss, kl = step_loss(video, near_object(mask), noise)
        loss.backward()
        if step == 2:
            start = saved = time.perf_counter()  # everything is compiled now
        done = (time.perf_counter() - start) / settings.seconds if step > 2 else 0.0
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine_rate(done)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(vae, step)
        if step % log_every == 0 or done >= 1:
            point = {"step": step, "seconds": time.perf_counter() - start, "loss": float(loss.detach()), "kl": float(kl.detach())}
            if step % (5 * log_every) == 0 or done >= 1:
                point |= evaluate_vae(average.module, check_video, check_mask)
            curve.append(point)
            print("vae", {k: round(v, 4) for k, v in point.items()}, flush=True)
        if time.perf_counter() - saved > 60 or done >= 1:
            saved = time.perf_counter()
            weights = {key: value.contiguous() for key, value in average.module.state_dict().items()}
            save_file(weights, folder / "vae.safetensors")
        if done >= 1:
            break
    torch.compiler.set_stance("default")
    return average.module, curve
