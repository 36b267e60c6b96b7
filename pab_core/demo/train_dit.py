"""Trains a demo model's transformer on latents of rendered clips.

What is trained and by what loss is an Objective: here that of the first demo model, transformer and text encoder
together by rectified flow; noise_objective.py has that of the others.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..autoencoders.open_sora import OpenSoraVAE
from ..models.layers import Branch, compute
from ..models.stdit3 import STDiT3, STDiT3Config
from ..sampling import RectifiedFlow
from .architecture import MAX_TOKENS, TEXT_ENCODER, TRANSFORMER
from .captions import SceneFields, caption
from .clip_source import FPS, HEIGHT, WIDTH, ClipSource, chunks
from .optimisers import Average, WorkingCopy, cosine_rate, make_optimisers, step_all

WORDINGS = 4  # captions for each clip of the bank
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class DitSettings:
    seconds: float  # wall time, compilation not counted
    clips: int = 24576  # in the bank of latents
    batch: int = 256
    learning_rate: float = 1e-3  # of AdamW
    muon_rate: float = 2e-3


@dataclass
class Bank:
    """Clips as the transformer sees them."""

    latents: Tensor  # half [N, C, T, h, w], normalised
    captions: Tensor  # token ids uint8 [N, WORDINGS, MAX_TOKENS], padded with 0


class Objective(Protocol[M]):
    """A model to train, and its loss."""

    def build(self) -> M:
        """The model with the weights that the training starts from."""
        ...

    def blocks(self, model: M) -> Iterable[nn.Module]:
        """The parts to compile, each for itself."""
        ...

    def times(self, count: int, device: torch.device) -> Tensor:
        """Random timesteps [count] to train at."""
        ...

    def even_times(self, count: int, device: torch.device) -> Tensor:
        """Random timesteps [count], all alike often."""
        ...

    def loss(self, model: M, z: Tensor, tokens: Tensor, t: Tensor, math_temporal: bool = False) -> Tensor:
        """Of latents [B, C, T, h, w] at timesteps [B], with captions [B, L] (0 = padding)."""
        ...


class TextToLatents(nn.Module):
    """The two modules that are trained together, under one roof for optimiser and average."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import T5Config, T5EncoderModel

        self.text_encoder = T5EncoderModel(T5Config(**TEXT_ENCODER))
        self.transformer = STDiT3(STDiT3Config.from_dict(TRANSFORMER))
        self.transformer.init_weights()

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, math_temporal: bool = False) -> Tensor:
        """x [B, C, T, h, w], t [B], tokens [B, L] (0 = padding) -> velocity [B, C, T, h, w]."""
        mask = tokens != 0
        text = self.text_encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        size = {"height": torch.tensor([float(HEIGHT)]), "width": torch.tensor([float(WIDTH)])}
        fps = torch.full((1,), float(FPS), device=x.device)
        seam = plain_math_in_time if math_temporal else compute
        return self.transformer(x, t, text[:, None], mask, fps=fps, seam=seam, **size)


def plain_math_in_time(branch: Branch, update: Any, x: Tensor, cond: Any) -> Tensor:
    """A seam for training: attention over 8 to 16 latent frames is too short for the fused kernels to pay."""
    if branch.kind != "temporal":
        return update(x, cond)
    with sdpa_kernel(SDPBackend.MATH):
        return update(x, cond)


def tokenize_captions(fields: list[SceneFields], folder: Path, seed: int) -> Tensor:
    """WORDINGS captions for each scene -> uint8 [N, WORDINGS, MAX_TOKENS]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rng = random.Random(seed)
    texts = [caption(scene, rng) for scene in fields for _ in range(WORDINGS)]
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return torch.tensor(ids, dtype=torch.uint8).view(len(fields), WORDINGS, MAX_TOKENS)


@torch.no_grad()
def render_bank(encode: Callable[[Tensor], Tensor], source: ClipSource, clips: int, tokenizer: Path) -> Bank:
    """Renders and encodes `clips` clips; `encode`: video [B, 3, T, H, W] -> raw latents [B, C, T', h, w]."""
    scenes = source.scenes(clips)
    captions = tokenize_captions(scenes.describe(), tokenizer, seed=0)
    parts: list[Tensor] = []
    for i in range(0, clips, source.chunk):
        video, _ = source.render(scenes[i : i + source.chunk])
        with torch.autocast(video.device.type, torch.bfloat16, enabled=video.is_cuda):
            parts.append(encode(video).half())
    raw = torch.cat(parts)
    return Bank(raw, captions.to(raw.device))


def spread(bank: Bank, clips: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel [1, C, 1, 1, 1] in the first clips of a bank of raw latents."""
    sample = bank.latents[:clips].float()
    mean, std = sample.mean(dim=(0, 2, 3, 4)), sample.std(dim=(0, 2, 3, 4))
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def normalise(bank: Bank, shift: Tensor, scale: Tensor) -> None:
    """Raw latents -> (raw - shift) / scale, in place."""
    for part in bank.latents.split(1024):
        part.copy_((part.float() - shift) / scale)


def encode_bank(vae: OpenSoraVAE, source: ClipSource, clips: int, tokenizer: Path, *, fit_scale: bool) -> Bank:
    """The first demo model's bank; `fit_scale` sets the autoencoder's scale and shift from its first clips."""

    def encode(video: Tensor) -> Tensor:
        return torch.cat(vae.posterior(chunks(video))[0].chunk(2), dim=2)

    bank = render_bank(encode, source, clips, tokenizer)
    if fit_scale:
        vae.shift, vae.scale = spread(bank)
    normalise(bank, vae.shift, vae.scale)
    return bank


class FlowObjective:
    """The first demo model: its transformer and its text encoder, by rectified flow."""

    def __init__(self) -> None:
        self.flow = RectifiedFlow()

    def build(self) -> TextToLatents:
        return TextToLatents()

    def blocks(self, model: TextToLatents) -> Iterable[nn.Module]:
        return *model.transformer.spatial_blocks, *model.transformer.temporal_blocks

    def times(self, count: int, device: torch.device) -> Tensor:
        """Logit-normal, a tenth of them uniform."""
        t = torch.sigmoid(torch.randn(count, device=device))
        return torch.where(torch.rand(count, device=device) < 0.1, torch.rand(count, device=device), t) * 1000

    def even_times(self, count: int, device: torch.device) -> Tensor:
        return torch.rand(count, device=device) * 1000

    def loss(self, model: TextToLatents, z: Tensor, tokens: Tensor, t: Tensor, math_temporal: bool = False) -> Tensor:
        noise = torch.randn_like(z)
        velocity = model(self.flow.add_noise(z, noise, t), t, tokens, math_temporal=math_temporal)
        return F.mse_loss(velocity.float(), z - noise)


def draw(objective: Objective[Any], bank: Bank, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> latents, token ids, timesteps of random clips."""
    device = bank.latents.device
    rows = torch.randint(len(bank.latents), (batch,), device=device)
    wording = torch.randint(WORDINGS, (batch,), device=device)
    return bank.latents[rows].float(), bank.captions[rows, wording].long(), objective.times(batch, device)


@torch.no_grad()
def validation_loss(objective: Objective[M], model: M, bank: Bank) -> float:
    """Mean over even timesteps of clips never trained on, always with the same noise."""
    device = bank.latents.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        losses = [
            objective.loss(model, z.float(), tokens[:, 0].long(), objective.even_times(len(z), device))
            for z, tokens in zip(bank.latents.split(64), bank.captions.split(64), strict=True)
        ]
    return float(torch.stack(losses).mean())


def train_dit(
    objective: Objective[M],
    settings: DitSettings,
    bank: Bank,
    check: Bank,
    folder: Path,
    *,
    compiled: bool = True,
    log_every: int = 200,
) -> tuple[M, list[dict[str, float]]]:
    """-> the averaged model and its loss curve; folder/dit.safetensors is rewritten every minute."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    device = bank.latents.device
    model = objective.build().to(device).train()
    average = Average(model, 0.999)
    optimisers = make_optimisers(
        model, settings.muon_rate, settings.learning_rate, lambda name: "_blocks." in name and "table" not in name
    )
    working = WorkingCopy(model, torch.bfloat16)
    if compiled:
        for block in objective.blocks(working.module):
            block.compile(dynamic=False)
    math_temporal = compiled and _math_is_faster(objective, working.module, bank, settings.batch)
    curve: list[dict[str, float]] = []
    start = saved = time.perf_counter()
    step = 0
    while True:
        loss = objective.loss(working.module, *draw(objective, bank, settings.batch), math_temporal)
        loss.backward()
        working.hand_over_gradients()
        done = (time.perf_counter() - start) / settings.seconds
        step_all(optimisers, model, cosine_rate(done))
        working.refresh()
        average.update(model, step)
        if step % log_every == 0 or done >= 1:
            point = {"step": step, "seconds": time.perf_counter() - start, "loss": float(loss.detach())}
            if step % (5 * log_every) == 0 or done >= 1:
                point["validation"] = validation_loss(objective, average.module, check)
            curve.append(point)
            print("dit", {k: round(v, 4) for k, v in point.items()}, flush=True)
        if time.perf_counter() - saved > 60 or done >= 1:
            saved = time.perf_counter()
            weights = {key: value.half().contiguous() for key, value in average.module.named_parameters()}
            save_file(weights, folder / "dit.safetensors")
        if done >= 1:
            break
        step += 1
    return average.module, curve


def _math_is_faster(objective: Objective[M], model: M, bank: Bank, batch: int) -> bool:
    """Times both ways of attention over time, which also compiles them."""
    if bank.latents.device.type != "cuda":
        return False
    seconds: list[float] = []
    for math_temporal in (False, True):
        begin = time.perf_counter()
        for repeat in range(8):
            if repeat == 3:
                torch.cuda.synchronize()
                begin = time.perf_counter()
            objective.loss(model, *draw(objective, bank, batch), math_temporal).backward()
            model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begin) / 5)
    print(f"dit: forward and backward {seconds[0]:.3f} s fused, {seconds[1]:.3f} s with plain math in time", flush=True)
    return seconds[1] < seconds[0]
