"""Trains the demo model's transformer and text encoder, together, on latents of rendered clips."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from .scenes import Scenes

WORDINGS = 4  # captions for each clip of the bank


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
    """A seam for training: attention over 10 latent frames is too short for the fused kernels to pay."""
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
def encode_bank(vae: OpenSoraVAE, source: ClipSource, clips: int, tokenizer: Path, *, fit_scale: bool) -> Bank:
    """Renders and encodes `clips` clips; `fit_scale` sets the autoencoder's scale and shift from the first of them."""
    scenes = source.scenes(clips)
    captions = tokenize_captions(scenes.describe(), tokenizer, seed=0)
    raw = torch.cat([_encode(vae, source, scenes[i : i + source.chunk]) for i in range(0, clips, source.chunk)])
    if fit_scale:
        sample = raw[:1024].float()
        vae.shift = sample.mean(dim=(0, 2, 3, 4)).view(1, -1, 1, 1, 1)
        vae.scale = sample.std(dim=(0, 2, 3, 4)).view(1, -1, 1, 1, 1)
    for part in raw.split(1024):
        part.copy_(vae.normalize(part.float()))
    return Bank(raw, captions.to(raw.device))


def _encode(vae: OpenSoraVAE, source: ClipSource, scenes: Scenes) -> Tensor:
    video, _ = source.render(scenes)
    with torch.autocast(video.device.type, torch.bfloat16, enabled=video.is_cuda):
        mean, _ = vae.posterior(chunks(video))
    return torch.cat(mean.chunk(2), dim=2).half()


def flow_loss(model: nn.Module, flow: RectifiedFlow, z: Tensor, tokens: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
    noise = torch.randn_like(z)
    velocity = model(flow.add_noise(z, noise, t), t, tokens, **kwargs)
    return F.mse_loss(velocity.float(), z - noise)


def draw(bank: Bank, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> latents, token ids, timesteps of random clips; timesteps logit-normal, a tenth of them uniform."""
    device = bank.latents.device
    rows = torch.randint(len(bank.latents), (batch,), device=device)
    wording = torch.randint(WORDINGS, (batch,), device=device)
    t = torch.sigmoid(torch.randn(batch, device=device))
    t = torch.where(torch.rand(batch, device=device) < 0.1, torch.rand(batch, device=device), t) * 1000
    return bank.latents[rows].float(), bank.captions[rows, wording].long(), t


@torch.no_grad()
def validation_loss(model: nn.Module, flow: RectifiedFlow, bank: Bank) -> float:
    """Mean over even timesteps of clips never trained on, always with the same noise."""
    device = bank.latents.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        losses = [
            flow_loss(model, flow, z.float(), tokens[:, 0].long(), (torch.rand(len(z), device=device)) * 1000)
            for z, tokens in zip(bank.latents.split(64), bank.captions.split(64), strict=True)
        ]
    return float(torch.stack(losses).mean())


def train_dit(
    settings: DitSettings, bank: Bank, check: Bank, folder: Path, *, compiled: bool = True, log_every: int = 200
) -> tuple[TextToLatents, list[dict[str, float]]]:
    """-> the averaged model and its loss curve; folder/dit.safetensors is rewritten every minute."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    device = bank.latents.device
    model = TextToLatents().to(device).train()
    average = Average(model, 0.999)
    flow = RectifiedFlow()
    optimisers = make_optimisers(
        model, settings.muon_rate, settings.learning_rate, lambda name: "_blocks." in name and "table" not in name
    )
    working = WorkingCopy(model, torch.bfloat16)
    if compiled:
        transformer = working.module.transformer
        for block in (*transformer.spatial_blocks, *transformer.temporal_blocks):
            block.compile(dynamic=False)
    math_temporal = compiled and _math_is_faster(working.module, flow, bank, settings.batch)
    curve: list[dict[str, float]] = []
    start = saved = time.perf_counter()
    step = 0
    while True:
        loss = flow_loss(working.module, flow, *draw(bank, settings.batch), math_temporal=math_temporal)
        loss.backward()
        working.hand_over_gradients()
        done = (time.perf_counter() - start) / settings.seconds
        step_all(optimisers, model, cosine_rate(done))
        working.refresh()
        average.update(model, step)
        if step % log_every == 0 or done >= 1:
            point = {"step": step, "seconds": time.perf_counter() - start, "loss": float(loss.detach())}
            if step % (5 * log_every) == 0 or done >= 1:
                point["validation"] = validation_loss(average.module, flow, check)
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


def _math_is_faster(model: nn.Module, flow: RectifiedFlow, bank: Bank, batch: int) -> bool:
    """Times both ways of attention over time, which also compiles them."""
    seconds: list[float] = []
    for math_temporal in (False, True):
        begin = time.perf_counter()
        for repeat in range(8):
            if repeat == 3:
                torch.cuda.synchronize()
                begin = time.perf_counter()
            flow_loss(model, flow, *draw(bank, batch), math_temporal=math_temporal).backward()
            model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begin) / 5)
    print(f"dit: forward and backward {seconds[0]:.3f} s fused, {seconds[1]:.3f} s with plain math in time", flush=True)
    return seconds[1] < seconds[0]
