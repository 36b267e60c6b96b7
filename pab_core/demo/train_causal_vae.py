"""Trains the video autoencoder of Open-Sora-Plan's kind on freshly rendered scenes, in two stages:

frames   single frames, each of another scene: as images are encoded, and still scenes decoded
clips    whole clips, at the end as whole pictures
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoders.causal import FrameResidualBlock, ResidualBlock, TimeDownsample, TimeUpsample
from ..autoencoders.images import frames_to_video, video_to_frames
from ..autoencoders.open_sora_plan import CausalVAE
from .clip_source import ClipSource, object_windows
from .families import OPEN_SORA_PLAN
from .train_vae import LossOf, Training, VaeSettings, kl_divergence, near_object, reconstruction_loss

PLAN = OPEN_SORA_PLAN
CLIPS = 6  # of a batch; fewer scenes at once unsettle what the stage of frames has learnt


def plan_vae_settings(seconds: float) -> VaeSettings:
    """As many images as the clips have frames: all that are traced at once."""
    return VaeSettings(
        seconds,
        shares=(0.25, 0.75),
        rates=(1.0, 0.5),
        clips=CLIPS,
        images=CLIPS * PLAN.frames,
        check_clips=4,
        whole_share=0.12,
    )


def train_causal_vae(
    settings: VaeSettings, folder: Path, device: torch.device, *, compiled: bool = True
) -> tuple[CausalVAE, list[dict[str, float | str]]]:
    """-> the averaged model and its loss curve; folder/vae.safetensors is rewritten every minute."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the shapes of a stage are always the same
    vae = new_causal_vae().to(device)
    size: dict[str, Any] = {"num_frames": PLAN.frames, "fps": PLAN.fps}
    check_source = ClipSource(device, seed=99, compiled=False, split="held_out", **size)
    training = Training(vae, folder, next(check_source.clips(settings.check_clips)), reconstruct, settings)
    source = ClipSource(device, seed=1, compiled=compiled, chunk=settings.clips, **size)
    loss_of = clip_loss(vae, settings)
    if compiled:
        choose_layout(vae, loss_of, next(source.clips(settings.clips)))
        compile_residual_blocks(vae)
    stages = (("frames", source.frames(settings.images)), ("clips", source.clips(settings.clips)))
    for (stage, batches), share, rate in zip(stages, settings.shares, settings.rates, strict=True):
        training.run(stage, share * settings.seconds, rate, batches, loss_of)
    torch.compiler.set_stance("default")
    return vae.eval().requires_grad_(False), training.curve


def new_causal_vae() -> CausalVAE:
    """Random weights, but for the latents' noise, which starts small or it drowns them, and the resampling in time,
    which starts with an even mixture."""
    vae = CausalVAE.from_config(PLAN.vae)
    conv = vae.quant_conv.get_submodule("conv")
    assert isinstance(conv, nn.Conv3d)
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight[vae.latent_channels :].zero_()
        conv.bias[vae.latent_channels :].fill_(-5.0)
        for module in vae.modules():
            if isinstance(module, (TimeDownsample, TimeUpsample)):
                module.mix_factor.zero_()
    return vae


def compile_residual_blocks(vae: CausalVAE) -> None:
    """Compiles the blocks in which the time goes, each shape once."""
    torch._dynamo.config.recompile_limit = 64
    for module in vae.modules():
        if isinstance(module, (FrameResidualBlock, ResidualBlock)):
            module.compile(dynamic=False)


def choose_layout(vae: CausalVAE, loss_of: LossOf, batch: tuple[Tensor, Tensor]) -> None:
    """Puts the weights into the memory format with which a step is faster here; which that is differs by library.

    Before anything is compiled, or it would be for both.
    """
    if not batch[0].is_cuda:
        return
    seconds: dict[torch.memory_format, float] = {}
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        set_layout(vae, layout)
        begin = time.perf_counter()
        for repeat in range(6):
            if repeat == 3:
                torch.cuda.synchronize()
                begin = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                loss_of(*batch, 0.0).backward()
            vae.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds[layout] = (time.perf_counter() - begin) / 3
    best = min(seconds, key=seconds.__getitem__)
    set_layout(vae, best)
    print("vae: forward and backward", {str(k): round(v, 4) for k, v in seconds.items()}, flush=True)


def set_layout(vae: CausalVAE, layout: torch.memory_format) -> None:
    """contiguous_format or channels_last_3d; with the latter, 2D convolutions get channels_last."""
    flat = torch.contiguous_format if layout == torch.contiguous_format else torch.channels_last
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            fitting = layout if isinstance(module, nn.Conv3d) else flat
            module.weight.data = module.weight.data.contiguous(memory_format=fitting)


def clip_loss(vae: CausalVAE, settings: VaeSettings) -> LossOf:
    """Video [N, 3, T, H, W], T = 1 for images -> loss of the autoencoder."""

    def loss_of(video: Tensor, mask: Tensor, done: float) -> Tensor:
        if video.shape[2] == 1 or done < 1 - settings.whole_share:
            video, mask = object_windows(video, mask, settings.crop)
        else:  # too short a time to compile again for this size; half of the batch, or memory would not do
            video, mask = video[::2], mask[::2]
            torch.compiler.set_stance("force_eager")
        mean, logvar = (part.float() for part in vae.encode_moments(video).chunk(2, dim=1))
        output = decode_raw(vae, mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        loss = reconstruction_loss(output, video, near_object(mask), settings)
        return loss + settings.kl_weight * kl_divergence(mean, logvar)

    return loss_of


def decode_raw(vae: CausalVAE, z: Tensor) -> Tensor:
    """Raw latents, before the scale that the transformer sees -> video; unlike `decode`, with gradients."""
    return vae.decoder(vae.post_quant_conv(z))


def encode_raw(vae: CausalVAE, video: Tensor) -> Tensor:
    """Video -> the mean of its raw latents."""
    return vae.encode_moments(video).chunk(2, dim=1)[0]


def reconstruct(vae: CausalVAE, video: Tensor, stage: str) -> Tensor:
    """Clips -> the same from the latents' means; in the stage of frames, each frame as an image."""
    parts = [video_to_frames(clip[None])[:, :, None] if stage == "frames" else clip[None] for clip in video]
    made = [decode_raw(vae, encode_raw(vae, part)) for part in parts]
    return torch.cat([frames_to_video(clip[:, :, 0], 1) if stage == "frames" else clip for clip in made])
