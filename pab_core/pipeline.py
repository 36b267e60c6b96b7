"""Prompt -> text embedding -> denoise loop -> latents -> frames -> file: the stages, in order, and their one owner."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .acceleration.choice import Speed, choose_speed, make_run, transformer_dtype, use_speed_in_decoding
from .acceleration.fp8_products import use_fp8_products
from .broadcast import AnyPolicy, BroadcastRun, ScheduleTable
from .broadcast.cache import make_store
from .checkpoints import Checkpoint, Sampler, default_dtype, find_model, load_text_encoder, load_transformer, load_vae
from .conditioning import apply_given
from .denoising import DENOISERS, Task
from .devices import check_device, free_bytes
from .embedding_cache import CachedTextEncoder, EmbeddingCache
from .errors import PabError
from .models.registry import ModelSpec
from .noise_sampling import NoiseSampler
from .pixels import to_uint8
from .prompt_scores import PromptScores
from .results import Generation, Progress, ProgressCallback, metadata_of, part_of, timed
from .settings import check_guidance, check_seed, check_table, clip_size, schedule_for
from .sizes import size_warning
from .tasks import Given, make_plan
from .text import TextEmbedding

if TYPE_CHECKING:  # diffusers takes a second to import, and not everything here decodes
    from .autoencoders import Tiling, VideoVAE

WARM_UP_STEPS = 4  # of the run that goes before timed ones: kernels are chosen, memory is claimed; PNDM makes no less


@dataclass
class Pipeline:
    """The modules of one checkpoint. It holds no state of any run.

    `vae` and `text_encoder` are None where the checkpoint has none; what needs them says so.
    """

    spec: ModelSpec
    transformer: Any  # the family's nn.Module, with its `config`
    vae: "VideoVAE | None"
    text_encoder: CachedTextEncoder | None
    sampler: Sampler
    preview_matrix: Tensor | None = None  # [C + 1, 3], latents and 1 -> RGB
    speed: "Speed" = "exact"  # how runs compute: see acceleration.choice
    notes: tuple[str, ...] = ()  # what the user should know of how it was loaded

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    # ------------------------------------------------------------------------------------------------- loading

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        storage: Literal["fp8"] | None = None,
        speed: str = "auto",
        cache: EmbeddingCache | None = None,
    ) -> "Pipeline":
        """Loads a model by name, or from a folder or file.

        Args:
            model: "demo", or a folder that holds transformer/, vae/, text_encoder/ and tokenizer/, or a transformer's
                own folder or safetensors file; see `checkpoints.find_model`.
            vae, text_encoder, tokenizer: folders or safetensors files to take instead of the model's own.
            device: default: the GPU if there is one, else the CPU.
            dtype: of weights and arithmetic; default: `checkpoints.default_dtype`.
            storage: "fp8" keeps the transformer's large weights in eight bits; see models/fp8.py.
            speed: "exact", "fast", "fp8" (weights in eight bits, too) or "auto"; see acceleration.choice. What this
                machine cannot do is left out, which `notes` says.
            cache: of text embeddings; default: in memory, for this pipeline.

        Raises:
            PabError: unknown name, or files missing, broken or not fitting together.
        """
        found = find_model(model, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        found.check_complete()
        return cls.from_checkpoint(found, device=device, dtype=dtype, storage=storage, speed=speed, cache=cache)

    @classmethod
    def from_checkpoint(
        cls,
        found: Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        storage: Literal["fp8"] | None = None,
        speed: str = "auto",
        cache: EmbeddingCache | None = None,
    ) -> "Pipeline":
        """As `load`, of what `checkpoints.find_model` found."""
        device = check_device(device)
        dtype = dtype or default_dtype(found.spec, device)
        chosen, note = choose_speed(speed, device, dtype, trying=True)
        # Small files first: what does not fit together is told before gigabytes are read.
        text_encoder = load_text_encoder(found, dtype, device, cache)
        vae, preview_matrix = load_vae(found, dtype, device)
        use_speed_in_decoding(chosen, device, vae)
        own = transformer_dtype(chosen, device, dtype)
        transformer = load_transformer(found, own, device, "fp8" if chosen == "fp8" else storage)
        if chosen == "fp8":
            use_fp8_products(transformer)
        notes = (note,) if note else ()
        return cls(found.spec, transformer, vae, text_encoder, found.sampler, preview_matrix, chosen, notes)

    # -------------------------------------------------------------------------------------------------- stages

    def encode_prompt(
        self, prompt: str, negative: str | None = None, scores: PromptScores | None = None
    ) -> TextEmbedding:
        """The prompt as the transformer takes it, with the negative prompt where the model is guided by one.

        scores: of look and motion, for models trained with them; None: the authors' usual ones.

        PabError if the prompt is empty; `warning` of the result says where an over-long one was cut.
        """
        if self.text_encoder is None:
            raise PabError(
                f"{self.spec.title} was loaded without a text encoder: give the folder or file of its T5 encoder, such "
                "as t5xxl_fp16.safetensors."
            )
        if isinstance(self.sampler, NoiseSampler):
            return self.text_encoder.encode_pair(self._scored(prompt, scores), negative or "")
        if negative:
            raise PabError(
                f"{self.spec.title} takes no negative prompt: it was trained with a learned empty text in its place."
            )
        return self.text_encoder.encode(self._scored(prompt, scores))

    def has_encoded(self, prompt: str, negative: str | None = None, scores: PromptScores | None = None) -> bool:
        """Whether `encode_prompt` has its answer ready, without the encoder's weights."""
        pair = (negative or "") if isinstance(self.sampler, NoiseSampler) else None
        encoder = self.text_encoder
        return encoder is not None and encoder.find(self._scored(prompt, scores), pair) is not None

    def _scored(self, prompt: str, scores: PromptScores | None) -> str:
        return (scores or PromptScores()).add_to(prompt) if self.spec.prompt_scores else prompt

    def prepare_latents(
        self, seed: int, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Tensor:
        """Start noise [1, C, T, h, w], float32, drawn on the CPU so that a seed means the same everywhere."""
        num_frames, height, width = clip_size(self.spec, num_frames, height, width)
        shape = (height // self.spec.space_factor, width // self.spec.space_factor)
        generator = torch.Generator("cpu").manual_seed(check_seed(seed))
        channels, latent_frames = self.transformer.config.in_channels, self.spec.latent_frames(num_frames)
        return torch.randn(1, channels, latent_frames, *shape, generator=generator)

    def schedule(
        self,
        policy: str | AnyPolicy = "off",
        *,
        steps: int | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> ScheduleTable:
        """The table that a run with these settings will follow."""
        return schedule_for(self.spec, policy, self.sampler, steps, num_frames, height, width)

    def new_run(self, table: ScheduleTable, kept: str = "plain", *, recorded: bool = True) -> BroadcastRun:
        """The state of one run of `denoise`. `kept`: where updates wait, one of broadcast.cache's storages; `recorded`:
        see acceleration.choice.make_run."""
        return make_run(self.speed, self.device, table, make_store(kept), recorded)

    @torch.no_grad()
    def denoise(
        self,
        latents: Tensor,
        text: TextEmbedding,
        table: ScheduleTable,
        *,
        steps: int | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance: float | None = None,
        fps: int | None = None,
        cond_mask: Tensor | None = None,
        seed: int | None = None,
        run: BroadcastRun | None = None,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """Noise [B, C, T, h, w] -> clean latents of the same shape, float32, on the model's device.

        Args:
            table: from `schedule` with the same steps and size.
            cond_mask: [B, T], 0 = a latent frame that is given in `latents`, 1 = free; see `RectifiedFlow.sample`.
            seed: of noise that is drawn on the way, which only some samplers and given frames need.
            run: a fresh one of the table, to keep its updates elsewhere or to look at it afterwards; None: made here.
            progress: called after each step; what it raises ends the run and reaches the caller, and nothing of the run
                stays behind.

        Raises:
            PabError: the table is for other steps or another size.
        """
        num_frames, height, width = clip_size(self.spec, num_frames, height, width)
        steps = table.sampler_steps or (self.spec.steps if steps is None else steps)
        check_table(table, self.sampler, steps)
        device = self.device
        task = Task(
            latents.to(device, torch.float32),
            text.to(device),
            table,
            steps,
            self.spec.guidance if guidance is None else guidance,
            num_frames,
            height,
            width,
            self.spec.fps_of(num_frames) if fps is None else fps,
            None if cond_mask is None else cond_mask.to(device),
            None if seed is None else torch.Generator("cpu").manual_seed(seed),
        )

        def on_step(step: int, total: int, clean: Tensor) -> None:
            if progress is not None:
                progress(Progress("denoise", step + 1, total, clean))

        run = self.new_run(table) if run is None else run
        return DENOISERS[self.spec.family](self.transformer, self.sampler, task, run, on_step)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        num_frames: int | None = None,
        *,
        tiling: "Tiling | Literal['fit'] | None" = "fit",
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """Clean latents [1, C, T, h, w] -> frames uint8 [num_frames, H, W, 3] on the CPU.

        tiling: None decodes whole frames; "fit": as the authors do, or in tiles that fit in the device's free memory.
        """
        from .autoencoders import choose_tiling

        num_frames = self.spec.num_frames if num_frames is None else num_frames

        def on_batch(done: int, total: int) -> None:
            if progress is not None:
                progress(Progress("decode", done, total))

        vae = self._vae()
        weight = next(vae.parameters())
        if tiling == "fit":
            height, width = (side * vae.spatial_factor for side in latents.shape[3:])
            tiling = choose_tiling(vae, num_frames, height, width, weight.dtype, free_bytes(weight.device))
        video = vae.decode(latents.to(weight.device, weight.dtype), num_frames, on_batch, tiling)
        return to_uint8(video[0].permute(1, 2, 3, 0))

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video [1, 3, T, H, W] in [-1, 1] -> latents [1, C, T', h, w], float32."""
        vae = self._vae()
        weight = next(vae.parameters())
        return vae.encode(video.to(weight.device, weight.dtype), tiling=vae.authors_tiling).float()

    def _vae(self) -> "VideoVAE":
        if self.vae is None:
            raise PabError(f"{self.spec.title} was loaded without a VAE: give its folder or safetensors file.")
        return self.vae

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
        negative: str | None = None,
        policy: str | AnyPolicy = "off",
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        given: Given | None = None,
        total_frames: int | None = None,
        scores: PromptScores | None = None,
        kept: str = "plain",
        progress: ProgressCallback | None = None,
    ) -> Generation:
        """All stages; None stands for the model's default (seed: a random one).

        Args:
            given: pictures or a video to start from, for models that take them.
            total_frames: of a video longer than the model makes at once, which becomes a chain of clips of num_frames.
                Its prompt may say what comes when: "|0| a calm sea |2| a storm".
            kept: where updates wait for their reuse: "plain": as they are, on the device, "fp8": in eight bits, "host":
                in the host's memory.

        Raises:
            PabError: a setting that the model cannot take. What `progress` raises (to cancel) passes through.
        """
        num_frames, height, width = clip_size(self.spec, num_frames, height, width)
        size = {"num_frames": num_frames, "height": height, "width": width}
        guidance = check_guidance(self.spec.guidance if guidance is None else guidance)
        seed = secrets.randbelow(2**32) if seed is None else check_seed(seed)
        settings: dict[str, Any] = {"steps": steps, "guidance": guidance, **size}
        table = self.schedule(policy, steps=steps, **size)
        plan = make_plan(self.spec, prompt, given or Given(), total_frames=total_frames, **size)
        seconds: dict[str, float] = {"text": 0.0, "denoise": 0.0, "decode": 0.0}
        clips: list[Tensor] = []
        taken = table
        warnings = [*self.notes, size_warning(self.spec, **size)]
        for segment, text_of in zip(plan.segments, plan.prompts, strict=True):
            tell = part_of(progress, segment.index, len(plan.segments))
            with timed(seconds, "text"):
                text = self.encode_prompt(text_of, negative, scores)
            warnings.append(text.warning)
            with timed(seconds, "denoise"):
                # Each clip of a chain has noise of its own.
                own_seed = (seed + segment.index) % 2**64
                frames = plan.frames_for(segment, self.encode, clips)
                run = self.new_run(table, kept)
                z, cond_mask = apply_given(self.prepare_latents(own_seed, **size), frames)
                latents = self.denoise(
                    z, text, table, cond_mask=cond_mask, seed=own_seed, run=run, progress=tell, **settings
                )
            taken = run.taken
            with timed(seconds, "decode"):
                clips.append(self.decode(latents, num_frames, progress=tell))
        video = plan.finish(clips)
        about = {"prompt": prompt, "negative": negative, "seed": seed, "clips": len(clips), **settings}
        metadata = metadata_of(self.spec, self.sampler, taken, **about)
        told = tuple(dict.fromkeys(warning for warning in warnings if warning))
        return Generation(video, self.spec.fps, taken, seconds, metadata, told)
