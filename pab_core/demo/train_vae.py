"""Trains the first demo model's video autoencoder on freshly rendered scenes, in three stages:

    frames   the image autoencoder alone, on windows of single frames, each of another scene
    time     the temporal autoencoder alone, on latents of the image autoencoder
    whole    both together on clips, judged by their pixels

Trained as a whole from nothing, the temporal part passes on so little at first that the image part hardly learns.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from torch import Tensor, nn

from ..autoencoders.open_sora import OpenSoraVAE, frames_to_video, video_to_frames
from .architecture import VAE
from .clip_source import HEIGHT, WIDTH, ClipSource, object_windows
from .optimisers import Average, cosine_rate, make_optimisers, step_all

LossOf = Callable[[Tensor, Tensor, float], Tensor]
V = TypeVar("V", bound=nn.Module)


@dataclass(frozen=True)
class VaeSettings:
    seconds: float  # wall time of all stages together, compilation not counted
    shares: tuple[float, ...] = (0.3, 0.3, 0.4)  # of the time, for each stage
    rates: tuple[float, ...] = (1.0, 1.0, 0.2)  # of the full learning rates
    clips: int = 4  # a batch of the last stage
    images: int = 136  # a batch of the first stage; as many as the last has, so that the compiled blocks serve both
    check_clips: int = 8
    crop: int = 96  # side in pixels of the windows trained on, most of them around the object
    whole_share: float = 0.1  # of the last stage, at its end: whole pictures instead of windows
    muon_rate: float = 4e-3
    adamw_rate: float = 2e-3
    kl_weight: float = 1e-4
    object_weight: float = 4.0  # extra weight of the object's pixels and their surroundings
    log_every: int = 100


@dataclass
class Training(Generic[V]):
    """What the stages share: the model, its average, the loss curve, and where checkpoints go."""

    vae: V
    folder: Path
    check: tuple[Tensor, Tensor]  # clips (or chunks of them) never trained on, and the object's masks
    reconstruct: Callable[[V, Tensor, str], Tensor]  # model, such clips, stage -> the same clips anew
    settings: VaeSettings
    curve: list[dict[str, float | str]] = field(default_factory=list)
    average: Average[V] | None = None

    def run(
        self,
        stage: str,
        seconds: float,
        rate: float,
        batches: Iterator[tuple[Tensor, Tensor]],
        loss_of: LossOf,
        takes_part: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Trains the parameters that take part for so long; loss_of gets a batch and the share of the time over."""
        for name, p in self.vae.named_parameters():
            p.requires_grad_(takes_part(name))
        settings = self.settings
        optimisers = make_optimisers(self.vae, rate * settings.muon_rate, rate * settings.adamw_rate)
        self.average = average = Average(self.vae, 0.998)
        device = self.check[0].device
        step, done = 0, 0.0
        start = saved = time.perf_counter()
        while done < 1:
            if step == 2:
                start = saved = time.perf_counter()  # everything is compiled now
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(*next(batches), done)
            loss.backward()
            done = (time.perf_counter() - start) / seconds if step > 2 else 0.0
            step_all(optimisers, self.vae, cosine_rate(done))
            average.update(self.vae, step)
            if step % settings.log_every == 0 or done >= 1:
                point = {"step": step, "seconds": time.perf_counter() - start, "loss": float(loss.detach())}
                if step % (5 * settings.log_every) == 0 or done >= 1:
                    point |= self.evaluate(average.module, stage)
                self.curve.append({"stage": stage, **point})
                print(f"vae {stage}", {k: round(v, 4) for k, v in point.items()}, flush=True)
            if time.perf_counter() - saved > 60 or done >= 1:
                saved = time.perf_counter()
                self.save()
            step += 1
        self.vae.load_state_dict(average.module.state_dict())

    @torch.no_grad()
    def evaluate(self, vae: V, stage: str) -> dict[str, float]:
        """PSNR of reconstructions from the latents' means: over all pixels, and over those of the object."""
        video, mask = self.check
        error = self.reconstruct(vae, video, stage).clamp(-1, 1) - video
        return {"psnr": psnr(error, torch.ones_like(mask)), "object_psnr": psnr(error, mask)}

    def save(self) -> None:
        assert self.average is not None
        weights = {key: value.contiguous() for key, value in self.average.module.state_dict().items()}
        save_file(weights, self.folder / "vae.safetensors")


def train_vae(
    settings: VaeSettings, folder: Path, device: torch.device, *, compiled: bool = True
) -> tuple[OpenSoraVAE, list[dict[str, float | str]]]:
    """-> the averaged model and its loss curve; folder/vae.safetensors is rewritten every minute."""
    torch.manual_seed(0)
    vae = new_vae().to(device)
    vae.spatial_vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    check_source = ClipSource(device, seed=99, compiled=False, split="held_out")
    training = Training(vae, folder, next(check_source.chunks(settings.check_clips)), reconstruct, settings)
    if compiled:
        compile_residual_blocks(vae)
    source = ClipSource(device, seed=1, compiled=compiled, chunk=settings.clips)
    latents = latent_batches(vae, source, settings.clips)
    stages = (
        ("frames", source.frames(settings.images), frame_loss(vae, settings), lambda name: "spatial_vae" in name),
        ("time", latents, latent_loss(vae, settings), lambda name: "temporal_vae" in name),
        ("whole", source.chunks(settings.clips), clip_loss(vae, settings), lambda name: True),
    )
    for (stage, batches, loss_of, takes_part), share, rate in zip(stages, settings.shares, settings.rates, strict=True):
        training.run(stage, share * settings.seconds, rate, batches, loss_of, takes_part)
    torch.compiler.set_stance("default")
    return vae.eval().requires_grad_(False), training.curve


def train_image_part(
    vae: OpenSoraVAE, settings: VaeSettings, folder: Path, device: torch.device, *, compiled: bool = True
) -> list[dict[str, float | str]]:
    """Trains the image autoencoder of a trained one further, for a use of its own; -> the loss curve.

    The last stage gave up some of its sharpness for what the temporal autoencoder can pass on.
    """
    torch.manual_seed(0)
    check_source = ClipSource(device, seed=99, compiled=False, split="held_out")
    training = Training(vae, folder, next(check_source.chunks(settings.check_clips)), reconstruct, settings)
    if compiled:
        compile_residual_blocks(vae)
    source = ClipSource(device, seed=1, compiled=compiled, chunk=settings.clips)
    batches, loss_of = source.frames(settings.images), frame_loss(vae, settings)
    training.run("frames", settings.seconds, 0.5, batches, loss_of, lambda name: "spatial_vae" in name)
    vae.eval().requires_grad_(False)
    return training.curve


def new_vae() -> OpenSoraVAE:
    """Random weights, but for the latents' noise: it starts small (standard deviation 0.08), or it drowns them."""
    vae = OpenSoraVAE.from_config(VAE)
    conv = vae.temporal_vae.quant_conv.conv
    with torch.no_grad():
        conv.weight[vae.latent_channels :].zero_()
        torch.nn.init.constant_(conv.bias[vae.latent_channels :], -5.0)  # pyright: ignore[reportOptionalSubscript]
    return vae


def compile_residual_blocks(vae: OpenSoraVAE) -> None:
    """Compiles the blocks in which the time goes, each shape once: a third of the wait for the whole model."""
    torch._dynamo.config.recompile_limit = 64
    for module in vae.spatial_vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.compile(dynamic=False)


def frame_loss(vae: OpenSoraVAE, settings: VaeSettings) -> LossOf:
    """Image [N, 3, 1, H, W] -> loss of the image autoencoder."""

    def loss_of(image: Tensor, mask: Tensor, done: float) -> Tensor:
        image, mask = object_windows(image, mask, settings.crop)
        mean, _ = vae.spatial_vae.encode(image[:, :, 0])
        return reconstruction_loss(vae.spatial_vae.decode(mean)[:, :, None], image, near_object(mask), settings)

    return loss_of


def latent_batches(
    vae: OpenSoraVAE, source: ClipSource, clips: int, pool_size: int = 64, steps_each: int = 4
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of image latents [2 * clips, C, 17, h, w] out of a pool that is renewed as it is used, and their standard
    deviations [C]."""
    pool: list[Tensor] = []
    clip_batches = source.chunks(clips)
    while True:
        chunk = next(clip_batches)[0]
        with (
            torch.no_grad(),
            torch.autocast(source.device.type, torch.bfloat16, enabled=source.device.type == "cuda"),
            torch.compiler.set_stance("force_eager"),  # whole pictures are another size than what was compiled for
        ):
            pool.append(frames_to_video(vae.spatial_vae.encode(video_to_frames(chunk))[0].float(), len(chunk)))
        if len(pool) > pool_size:
            pool.pop(0)
        spread = pool[0].std(dim=(0, 2, 3, 4))
        for _ in range(steps_each):
            yield pool[int(torch.randint(len(pool), ()))], spread


def latent_loss(vae: OpenSoraVAE, settings: VaeSettings) -> LossOf:
    """Image latents -> loss of the temporal autoencoder, every channel weighted by its spread."""

    def loss_of(latents: Tensor, spread: Tensor, done: float) -> Tensor:
        mean, logvar = (part.float() for part in vae.temporal_vae.encode(latents))
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        error = (vae.temporal_vae.decode(z, latents.shape[2]).float() - latents) / spread.view(1, -1, 1, 1, 1)
        return error.square().mean() + 0.5 * error.abs().mean() + settings.kl_weight * kl_divergence(mean, logvar)

    return loss_of


def clip_loss(vae: OpenSoraVAE, settings: VaeSettings) -> LossOf:
    """Chunks [N, 3, 17, H, W] -> loss of the whole autoencoder."""

    def loss_of(video: Tensor, mask: Tensor, done: float) -> Tensor:
        if done < 1 - settings.whole_share:
            video, mask = object_windows(video, mask, settings.crop)
        else:  # too short a time to compile again for this size; half of the batch, or memory would not do
            video, mask = video[::2], mask[::2]
            torch.compiler.set_stance("force_eager")
        mean, logvar = (part.float() for part in vae.posterior(video))
        output = vae.decode_raw(mean + (0.5 * logvar).exp() * torch.randn_like(mean), 17)
        loss = reconstruction_loss(output, video, near_object(mask), settings)
        return loss + settings.kl_weight * kl_divergence(mean, logvar)

    return loss_of


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """From the standard normal, in nats a latent."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def near_object(mask: Tensor) -> Tensor:
    """Object mask [N, 1, T, H, W], widened by 4 pixels."""
    return F.max_pool2d(mask.flatten(0, 2)[:, None], 9, stride=1, padding=4).view(mask.shape)


def reconstruction_loss(output: Tensor, video: Tensor, near: Tensor, settings: VaeSettings) -> Tensor:
    """Absolute and squared error of colours, and absolute error of their differences to the neighbours (edges), with
    more weight where `near` is 1. output, video [N, 3, T, H, W]; near [N, 1, T, H, W]."""
    weight = 1 + settings.object_weight * near
    error = output.float() - video
    loss = (weight * (error.abs() + 2 * error.square())).mean()
    across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
    return loss + across + down


def psnr(error: Tensor, weight: Tensor) -> float:
    """Weighted PSNR in dB of errors of videos in [-1, 1]."""
    mse = (error.square() * weight).sum() / (weight.sum() * error.shape[1]).clamp(min=1)
    return float(10 * torch.log10(4 / mse.clamp(min=1e-10)))


def reconstruct(vae: OpenSoraVAE, video: Tensor, stage: str) -> Tensor:
    """Chunks -> the same from the latents' means, of the image autoencoder alone in its own stage."""
    if stage == "frames":
        return vae.decode_spatial(vae.encode_spatial(video)[0])
    return vae.decode_raw(vae.posterior(video)[0], video.shape[2])


def latent_shape() -> tuple[int, int, int]:
    """(T', h, w) of a whole clip."""
    return 10, HEIGHT // 8, WIDTH // 8
