"""Trains the demo models of Latte's and Open-Sora-Plan's kind; `train.py --family` is their command.

Latte            the first demo model's image autoencoder    -> bank of latents -> transformer -> checkpoint folder
Open-Sora-Plan   causal video autoencoder on rendered clips  -> bank of latents -> transformer -> checkpoint folder
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..autoencoders import CausalVAE, LatteVAE, OpenSoraVAE
from ..autoencoders.open_sora_plan import LATENT_SCALE
from ..checkpoints import find_model, load_text_encoder, load_vae
from . import train_dit, train_vae
from .architecture import VAE
from .checkpoint_files import fit_preview, half, rounded, write_json, write_weights
from .clip_source import ClipSource
from .families import Family
from .noise_objective import FrozenText, NoiseModel, NoiseObjective
from .train_causal_vae import CLIPS, encode_raw, plan_vae_settings, train_causal_vae

Curves = dict[str, Any]
NoiseVAE = LatteVAE | CausalVAE
CHECK_BATCHES = 32  # of rendered clips, for the validation


@dataclass(frozen=True)
class NoiseSettings:
    """One training; seconds are wall time, compilation not counted."""

    dit_seconds: float
    vae_seconds: float
    clips: int = 24576  # in the bank of latents
    batch: int = 192
    muon_rate: float = 2e-3
    learning_rate: float = 1e-3  # of AdamW
    vae_weights: Path | None = None  # skip the autoencoder's training
    rehearse: bool = False  # uncompiled, and tiny batches

    @property
    def dit(self) -> train_dit.DitSettings:
        batch = 2 if self.rehearse else self.batch
        return train_dit.DitSettings(self.dit_seconds, self.clips, batch, self.learning_rate, self.muon_rate)


def train(family: Family, settings: NoiseSettings, first: Path, folder: Path, device: torch.device) -> Curves:
    """Writes a checkpoint to `folder`; -> the loss curves. `first`: the first demo model's checkpoint, trained."""
    curves: Curves = {}
    compiled, chunk = not settings.rehearse, 1 if settings.rehearse else CLIPS
    size: dict[str, Any] = {"num_frames": family.frames, "fps": family.fps, "chunk": chunk}
    vae = autoencoder(family, settings, first, folder, device, curves)
    bank = train_dit.render_bank(
        lambda video: raw_latents(vae, video),
        ClipSource(device, seed=2, compiled=compiled, **size),
        settings.clips,
        first / "tokenizer",
    )
    shift, scale = train_dit.spread(bank)
    train_dit.normalise(bank, shift, scale)
    fold_normalisation(vae, shift, scale)
    print("bank", tuple(bank.latents.shape), flush=True)
    preview = fit_preview(vae, ClipSource(device, seed=3, compiled=compiled, **size), chunk)
    check = train_dit.render_bank(
        lambda video: scaled_latents(vae, video),
        ClipSource(device, seed=4, compiled=compiled, split="held_out", **size),
        chunk * CHECK_BATCHES,
        first / "tokenizer",
    )
    objective = NoiseObjective(family, frozen_text(first, device), device)
    model, curves["dit"] = train_dit.train_dit(objective, settings.dit, bank, check, folder, compiled=compiled)
    export(folder, family, vae, model, preview)
    parameters = sum(p.numel() for p in (*model.parameters(), *vae.parameters()))
    print(f"exported {parameters / 1e6:.2f} M parameters to {folder}", flush=True)
    return curves


def warm_up(family: Family, settings: NoiseSettings, first: Path, folder: Path, device: torch.device) -> None:
    """Compiles the transformer's training step, on random latents: another process finds it in the compiler's cache."""
    latents = torch.randn(512, *family.latent_size, device=device).half()
    tokens = torch.randint(3, 200, (512, train_dit.WORDINGS, train_dit.MAX_TOKENS), device=device)
    bank = train_dit.Bank(latents, tokens.to(torch.uint8))
    objective = NoiseObjective(family, frozen_text(first, device), device)
    train_dit.train_dit(objective, replace(settings.dit, seconds=4), bank, bank, folder, log_every=20)


def autoencoder(
    family: Family, settings: NoiseSettings, first: Path, folder: Path, device: torch.device, curves: Curves
) -> NoiseVAE:
    """Trained, but its latents not yet of unit variance; its loss curve goes into `curves`."""
    compiled, causal = not settings.rehearse, family.name == "open-sora-plan"
    vae_settings = (plan_vae_settings if causal else train_vae.VaeSettings)(settings.vae_seconds)
    if settings.rehearse:
        vae_settings = replace(vae_settings, clips=1, images=4, check_clips=1, log_every=20)
    if not causal:
        whole = first_vae(settings.vae_weights or first, device)
        if settings.vae_seconds and not settings.vae_weights:
            curves["vae"] = train_vae.train_image_part(whole, vae_settings, folder, device, compiled=compiled)
        return image_autoencoder(family, whole)
    if settings.vae_weights:
        vae = CausalVAE.from_config(family.vae)
        vae.load_state_dict(load_file(settings.vae_weights))
        return vae.to(device).eval().requires_grad_(False)
    vae, curves["vae"] = train_causal_vae(vae_settings, folder, device, compiled=compiled)
    return vae


def first_vae(source: Path, device: torch.device) -> OpenSoraVAE:
    """The first demo model's autoencoder, from its checkpoint's folder or from what a training of it keeps."""
    if source.is_file():
        vae = OpenSoraVAE.from_config(VAE).to(device)
        latent_scale = {"scale": vae.scale, "shift": vae.shift}  # of its own latents, which are of no use here
        vae.load_state_dict(load_file(source, device=str(device)) | latent_scale)
        return vae.eval().requires_grad_(False)
    vae, _ = load_vae(find_model(source), torch.float32, device)
    assert isinstance(vae, OpenSoraVAE)
    return vae


def image_autoencoder(family: Family, whole: OpenSoraVAE) -> LatteVAE:
    """The one inside an autoencoder of Open-Sora's kind, by itself."""
    vae = LatteVAE.from_config(family.vae).to(next(whole.parameters()).device)
    vae.load_state_dict(whole.spatial_vae.module.state_dict())
    return vae.eval().requires_grad_(False)


def frozen_text(first: Path, device: torch.device) -> FrozenText:
    """The first demo model's text encoder."""
    cached = load_text_encoder(find_model(first), torch.float32, device)
    assert cached is not None
    return FrozenText(cached.encoder.model)


def latent_scale(vae: NoiseVAE) -> float:
    """Latents as the transformer sees them, in raw ones."""
    return LATENT_SCALE if isinstance(vae, CausalVAE) else vae.scale


def raw_latents(vae: NoiseVAE, video: Tensor) -> Tensor:
    """Video [B, 3, T, H, W] -> the mean of the raw latents [B, C, T', h, w]."""
    return encode_raw(vae, video) if isinstance(vae, CausalVAE) else whole_clip_moments(vae, video).chunk(2, dim=1)[0]


def whole_clip_moments(vae: LatteVAE, video: Tensor) -> Tensor:
    """As `encode_moments`, but all frames at once: one by one they would keep a GPU idle."""
    batch, frames = len(video), video.transpose(1, 2).flatten(0, 1)
    moments = vae.encode_moments(frames[:, :, None])[:, :, 0]
    return moments.unflatten(0, (batch, -1)).transpose(1, 2)


def scaled_latents(vae: NoiseVAE, video: Tensor) -> Tensor:
    """As the transformer sees them."""
    return raw_latents(vae, video) * latent_scale(vae)


@torch.no_grad()
def fold_normalisation(vae: NoiseVAE, shift: Tensor, scale: Tensor) -> None:
    """Changes the autoencoder so that its latents, as the transformer sees them, are (raw - shift) / scale.

    The released formats have a single number for it and none for the mean; so this goes into the 1x1 convolutions on
    both sides of the latents, and that number stays the released one. Reconstructions are the same. shift, scale
    [1, C, 1, 1, 1] are of the raw latents.
    """
    into, out = point_convolution(vae.quant_conv), point_convolution(vae.post_quant_conv)
    shift, factor = shift.flatten(), 1 / (scale.flatten() * latent_scale(vae))
    channels = len(shift)
    assert into.bias is not None
    assert out.bias is not None
    # The other way first: raw = latent / factor + shift.
    weight = out.weight.flatten(1)
    out.bias += weight @ shift
    out.weight.copy_((weight / factor).view(out.weight.shape))
    into.bias[:channels] = (into.bias[:channels] - shift) * factor
    into.weight[:channels] *= factor.view(-1, *[1] * (into.weight.ndim - 1))
    into.bias[channels:] += 2 * factor.log()  # of the logarithm of the variance


def point_convolution(module: nn.Module | None) -> nn.Conv2d | nn.Conv3d:
    conv = module if isinstance(module, nn.Conv2d) else getattr(module, "conv", None)
    assert isinstance(conv, (nn.Conv2d, nn.Conv3d))
    assert set(conv.kernel_size) == {1}
    return conv


def export(folder: Path, family: Family, vae: NoiseVAE, model: NoiseModel, preview: Tensor) -> None:
    """Writes a checkpoint in the released layout, at half precision; text encoder and tokenizer stay with the first."""
    write_json(folder / "transformer" / "config.json", family.transformer)
    write_json(folder / "vae" / "config.json", family.vae | {"preview_matrix": rounded(preview)})
    write_json(folder / "scheduler" / "scheduler_config.json", family.scheduler)
    write_json(folder / "pab.json", family.about)
    for name, module in (("transformer", model), ("vae", vae)):
        write_weights(folder / name, half(module))
