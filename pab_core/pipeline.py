"""Prompt -> text embedding -> denoise loop -> latents -> frames -> file: the stages, in order, and their one owner."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .broadcast import BroadcastRun, Policy, ScheduleTable, preset, resolve
from .checkpoints import (
    SAMPLERS,
    Sampler,
    check_fit,
    default_dtype,
    find_model,
    load_text_encoder,
    load_vae,
    read_flow,
)
from .errors import PabError
from .loading import load_weights, read_config
from .models.registry import ModelSpec
from .models.stdit3 import STDiT3, STDiT3Config
from .sampling import FlowStep, RectifiedFlow
from .text import TextEmbedding, TextEncoder

if TYPE_CHECKING:  # diffusers takes a second to import, and not everything here decodes
    from .autoencoders.open_sora import OpenSoraVAE


@dataclass(frozen=True)
class Progress:
    """One event of a run. `latents` is the model's present idea of the clean latents, for a preview."""

    stage: str  # "denoise" or "decode"
    done: int
    total: int
    latents: Tensor | None = None  # [1, C, T, h, w]


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Generation:
    """A finished video and how it was made."""

    frames: Tensor  # uint8 [T, H, W, 3]
    fps: int
    table: ScheduleTable
    seconds: dict[str, float]  # by stage
    metadata: dict[str, Any]  # prompt, seed and all settings
    warnings: tuple[str, ...] = ()

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Writes an H.264 mp4 that carries the metadata. PabError where the file exists already, unless `force`."""
        from .video_io import write_mp4

        return write_mp4(path, self.frames, self.fps, self.metadata, force=force)


@dataclass
class Pipeline:
    """The modules of one checkpoint. It holds no state of any run."""

    spec: ModelSpec
    transformer: STDiT3
    vae: "OpenSoraVAE"
    text_encoder: TextEncoder
    flow: RectifiedFlow = field(default_factory=RectifiedFlow)
    preview_matrix: Tensor | None = None  # [C + 1, 3], latents and 1 -> RGB

    @property
    def device(self) -> torch.device:
        return self.transformer.final_layer.linear.weight.device

    # ------------------------------------------------------------------------------------------------- loading

    @classmethod
    def load(
        cls, model: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Pipeline":
        """Loads a model by name, or from the folder of a checkpoint.

        Args:
            model: "demo", or a folder that holds transformer/, vae/, text_encoder/ and tokenizer/.
            device: default: the GPU if there is one, else the CPU.
            dtype: of weights and arithmetic; default: `checkpoints.default_dtype`.

        Raises:
            PabError: unknown name, or files missing, broken or not fitting together.
        """
        spec, folder = find_model(model)
        device = check_device(device)
        dtype = dtype or default_dtype(spec, device)
        config = STDiT3Config.from_dict(read_config(folder / "transformer"))
        with torch.device("meta"):
            transformer = STDiT3(config)
        load_weights(transformer, folder / "transformer", dtype, device)
        vae, preview_matrix = load_vae(folder / "vae", dtype, device)
        flow = read_flow(folder)
        text_encoder = load_text_encoder(folder, config, dtype, device)
        check_fit("vae", vae.latent_channels, "in_channels", config.in_channels)
        return cls(
            spec=replace(spec, depth=config.depth),
            transformer=transformer.eval(),
            vae=vae.eval(),
            text_encoder=text_encoder.eval(),
            flow=flow,
            preview_matrix=preview_matrix,
        )

    # -------------------------------------------------------------------------------------------------- stages

    def encode_prompt(self, prompt: str) -> TextEmbedding:
        """PabError if the prompt is empty; `warning` of the result says where an over-long one was cut."""
        return self.text_encoder.encode(prompt)

    def prepare_latents(
        self, seed: int, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Tensor:
        """Start noise [1, C, T, h, w], float32, drawn on the CPU so that a seed means the same everywhere."""
        num_frames, height, width = self._size(num_frames, height, width)
        latent_frames = self.spec.latent_frames(num_frames)
        shape = (height // self.spec.space_factor, width // self.spec.space_factor)
        generator = torch.Generator("cpu").manual_seed(check_seed(seed))
        channels = self.transformer.config.in_channels
        return torch.randn(1, channels, latent_frames, *shape, generator=generator)

    def schedule(
        self,
        policy: str | Policy = "off",
        *,
        steps: int | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> ScheduleTable:
        """The table that a run with these settings will follow."""
        return schedule_for(self.spec, policy, self.flow, steps, num_frames, height, width)

    @torch.no_grad()
    def denoise(
        self,
        latents: Tensor,
        text: TextEmbedding,
        table: ScheduleTable,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance: float | None = None,
        fps: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """Noise [B, C, T, h, w] -> clean latents of the same shape, float32, on the model's device.

        `progress` is called after each step; what it raises ends the run and reaches the caller, and nothing of the
        run stays behind.
        """
        model, device = self.transformer, self.device
        num_frames, height, width = self._size(num_frames, height, width)
        guidance = self.spec.guidance if guidance is None else guidance
        null = model.y_embedder.y_embedding[None, : text.tokens.shape[1]]
        tokens = text.tokens.to(device)
        # [2B, 1, L, D]: with the prompts, then without; both see as many tokens as the prompt has.
        y = torch.cat([tokens, null.to(tokens.dtype).expand_as(tokens)])[:, None]
        mask = None if text.mask.all() else text.mask.to(device).repeat(2, 1)
        size = {
            "fps": torch.tensor([float(fps or self.spec.fps)], device=device),
            "height": torch.tensor([float(height)]),
            "width": torch.tensor([float(width)]),
        }
        run = BroadcastRun(table)

        def velocity(z: Tensor, t: Tensor, step: int, x_mask: Tensor | None) -> Tensor:
            run.step = step
            x_mask = None if x_mask is None else x_mask.repeat(2, 1)
            out = model(z.repeat(2, 1, 1, 1, 1), t.repeat(2), y, mask, x_mask=x_mask, seam=run, **size)
            cond, uncond = out[:, : z.shape[1]].chunk(2)
            return uncond + guidance * (cond - uncond)

        def on_step(state: FlowStep) -> None:
            if progress is not None:
                progress(Progress("denoise", state.step + 1, state.steps, state.clean))

        z = latents.to(device, torch.float32)
        return self.flow.sample(velocity, z, torch.tensor(table.timesteps), on_step=on_step)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, num_frames: int | None = None, *, progress: ProgressCallback | None = None
    ) -> Tensor:
        """Clean latents [1, C, T, h, w] -> frames uint8 [num_frames, H, W, 3] on the CPU."""
        num_frames = self.spec.num_frames if num_frames is None else num_frames

        def on_batch(done: int, total: int) -> None:
            if progress is not None:
                progress(Progress("decode", done, total))

        weight = next(self.vae.parameters())
        video = self.vae.decode(latents.to(weight.device, weight.dtype), num_frames, on_batch)
        return to_uint8(video[0].permute(1, 2, 3, 0))

    def preview(self, latents: Tensor) -> Tensor:
        """A rough picture of latents [1, C, T, h, w] without the VAE -> uint8 [T, h, w, 3]."""
        z = latents[0].float().cpu().permute(1, 2, 3, 0)
        if self.preview_matrix is None:
            return to_uint8(z[..., :3] / 2)
        return to_uint8(z @ self.preview_matrix[:-1] + self.preview_matrix[-1])

    # -------------------------------------------------------------------------------------------------- whole

    def generate(
        self,
        prompt: str,
        *,
        policy: str | Policy = "off",
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Generation:
        """All stages; None stands for the model's default (seed: a random one).

        Raises:
            PabError: a setting that the model cannot take. What `progress` raises (to cancel) passes through.
        """
        num_frames, height, width = self._size(num_frames, height, width)
        guidance = check_guidance(self.spec.guidance if guidance is None else guidance)
        seed = secrets.randbelow(2**32) if seed is None else check_seed(seed)
        table = self.schedule(policy, steps=steps, num_frames=num_frames, height=height, width=width)
        seconds: dict[str, float] = {}
        with _timed(seconds, "text"):
            text = self.encode_prompt(prompt)
        with _timed(seconds, "denoise"):
            latents = self.denoise(
                self.prepare_latents(seed, num_frames, height, width),
                text,
                table,
                num_frames=num_frames,
                height=height,
                width=width,
                guidance=guidance,
                progress=progress,
            )
        with _timed(seconds, "decode"):
            frames = self.decode(latents, num_frames, progress=progress)
        metadata = {
            "prompt": prompt,
            "model": self.spec.name,
            "policy": table.policy,
            "seed": seed,
            "steps": table.steps,
            "guidance": guidance,
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "fps": self.spec.fps,
            "reused": {kind: round(table.reused_share(kind), 4) for kind in table.kinds},
        }
        warnings = (text.warning,) if text.warning else ()
        return Generation(frames, self.spec.fps, table, seconds, metadata, warnings)

    def _size(self, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
        return clip_size(self.spec, num_frames, height, width)


def clip_size(spec: ModelSpec, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
    """The clip's size with the model's defaults filled in; PabError where the model cannot take it."""
    size = (
        spec.num_frames if num_frames is None else num_frames,
        spec.height if height is None else height,
        spec.width if width is None else width,
    )
    spec.check_size(*size)
    return size


def schedule_for(
    spec: ModelSpec,
    policy: str | Policy,
    sampler: Sampler | None = None,
    steps: int | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> ScheduleTable:
    """The table of a run, from what is known of a model without its weights; None stands for the model's default.

    Its steps are calls of the model, of which some samplers make more than the `steps` asked for.
    """
    if isinstance(policy, str):
        policy = preset(policy, spec.family, spec.depth)
    size = clip_size(spec, num_frames, height, width)
    sampler = sampler or SAMPLERS[spec.family]
    timesteps = sampler.timesteps(spec.steps if steps is None else steps, *size)
    return resolve(policy, timesteps.tolist(), spec.branches)


def check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise PabError(f"The seed must be a whole number from 0 to {2**64 - 1}, not {seed!r}.")
    return seed


def check_guidance(guidance: float) -> float:
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance <= 100:
        raise PabError(f"The guidance must be a number from 0 to 100, not {guidance!r}.")
    return float(guidance)


def check_device(device: str | torch.device | None) -> torch.device:
    """None: the GPU if there is one, else the CPU. PabError where there is no such device."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PabError(f"The device '{device}' cannot be used ({reason}); choose another, such as cpu.") from None
    return found


def to_uint8(video: Tensor) -> Tensor:
    """[-1, 1], any shape -> uint8 0..255 on the CPU."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[stage] = time.perf_counter() - start
