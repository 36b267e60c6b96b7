"""Comparisons of several ranks with one, as a rank makes them: a model each, in memory, with random weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from tiny_checkpoint import VAE
from tiny_families import LATTE, LATTE_VAE, PLAN, PLAN_VAE, random_pipe
from torch import Tensor

from pab_core.autoencoders import Tiling, build_vae
from pab_core.broadcast import BroadcastRun
from pab_core.errors import PabError
from pab_core.models.layers import modulate
from pab_core.offload import offload
from pab_core.parallel import ParallelPipeline, attach, split_decode
from pab_core.parallel.seam import FrameSeam
from pab_core.pipeline import Pipeline
from pab_core.results import Progress, ProgressCallback
from pab_core.text import TextEmbedding

SIZE = {"num_frames": 17, "height": 48, "width": 48}  # 9 tokens a frame; 5 latent frames, for Latte below
# Five heads: none of these sizes can be divided by 2, 3 and 4.
CONFIGS: dict[str, dict[str, Any]] = {
    "stdit3": {
        "hidden_size": 40,
        "depth": 2,
        "num_heads": 5,
        "caption_channels": 16,
        "model_max_length": 12,
        "qk_norm": True,
    },
    "latte": LATTE | {"num_attention_heads": 5, "attention_head_dim": 8},
    "open-sora-plan": PLAN | {"num_attention_heads": 5, "attention_head_dim": 8},
}
FRAMES = {"stdit3": 17, "latte": 5, "open-sora-plan": 17}


@dataclass(frozen=True)
class Case:
    """One comparison of `ranks` ranks with one."""

    family: str
    method: str
    ranks: int
    policy: str = "off"
    steps: int = 6
    depth: int = 2
    given: bool = False  # some latent frames are given: modulation then has a row for each frame
    masked: bool = False  # prompts of two lengths
    guidance: float = 3.0
    kept: str = "plain"
    dtype: str = "float32"
    storage: str | None = None
    fused: bool = False  # the ranks' runs are
    interrupted: bool = False  # once, before
    offloaded: bool = False  # blocks come to the device one after another
    size: tuple[tuple[str, int], ...] = ()  # other than usual

    @property
    def name(self) -> str:
        told = [f"{name}={value}" for name, value in asdict(self).items() if value != getattr(Case, name, None)]
        return " ".join(told)


@dataclass(frozen=True)
class Decode:
    """One comparison of a decode on `ranks` ranks with one's."""

    family: str
    ranks: int
    num_frames: int
    temporal: bool = False  # Latte's decoder that looks at neighbouring frames
    pixels: int = 0  # of a tile; 0: none
    frames: int = 29  # of a tile
    method: str = "decode"


LATTE_TEMPORAL: dict[str, Any] = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "scaling_factor": 0.18215,
}


def case_of(values: dict[str, Any]) -> Case:
    values["size"] = tuple((name, value) for name, value in values["size"])
    return Case(**values)


def make_vae(case: Decode) -> Any:
    configs = {"stdit3": VAE, "latte": LATTE_TEMPORAL if case.temporal else LATTE_VAE, "open-sora-plan": PLAN_VAE}
    torch.manual_seed(1)
    return build_vae(case.family, configs[case.family]).eval()


def compare_decode(case: Decode, group: dist.ProcessGroup) -> dict[str, Any]:
    """Every rank decodes by itself too: it is the same on all."""
    whole = random_pipe(case.family, CONFIGS[case.family])
    whole.vae = vae = make_vae(case)
    z = torch.randn(1, 4, *vae.latent_size(case.num_frames, 48, 32), generator=torch.Generator().manual_seed(2))
    tiling = Tiling(case.pixels, case.frames, even=vae.authors_tiling is None) if case.pixels else None
    counted = {"decoded": 0}
    decoder = vae.spatial_vae.module.decoder if case.family == "stdit3" else vae.decoder
    # [N, C, h, w] of pictures, or [B, C, T, h, w]
    decoder.register_forward_pre_hook(lambda _, args: counted.update(decoded=counted["decoded"] + args[0].numel()))
    exact = vae.decode(z, case.num_frames, None, tiling)[0].permute(1, 2, 3, 0)
    alone, counted["decoded"] = counted["decoded"], 0
    # Before they become bytes, in which little shows.
    with patch("pab_core.pipeline.to_uint8", lambda video: video):
        video = split_decode(whole, group).decode(z, case.num_frames, tiling=tiling)
    error = float((video - exact).abs().max() / exact.abs().max())
    return {"error": error, "frames": len(video), "decoded": counted["decoded"], "whole": alone}


class GatedRun(BroadcastRun):
    """As a run in fused operations does it: whole blocks, and the gate is left to whoever adds the update."""

    def run_shared_block(self, block: Any, x: Tensor, cond: Any, shared: FrameSeam) -> Tensor:
        for branch, update in block.updates():
            source, last = self._source(branch)
            if source == self.step and shared.shares_gated(branch):
                gate, h = shared.gated(gated_stdit3, x)
                assert gate is not None
                if last is not None:
                    self._keep((self.lane, branch, self.step), gate * h)
                x = x + gate * h
            else:
                x = x + self(branch, shared.shared(branch, update), x, cond)
        return x


def gated_stdit3(block: Any, x: Tensor, cond: Any) -> tuple[Tensor | None, Tensor]:
    shift, scale, gate = block._modulation(cond, slice(0, 3))
    h = modulate(block.norm1(x), shift, scale).transpose(1, 2)
    return gate, block.attn(h.flatten(0, 1), cond.angles).unflatten(0, h.shape[:2]).transpose(1, 2)


def make(case: Case) -> Pipeline:
    config = CONFIGS[case.family] | {"depth": case.depth, "num_layers": case.depth}
    size = SIZE | {"num_frames": FRAMES[case.family]} | dict(case.size)
    pipe = random_pipe(case.family, config, getattr(torch, case.dtype), steps=case.steps, **size)
    if case.storage == "fp8":
        to_eight_bits(pipe.transformer)
    return pipe


def denoise(pipe: Pipeline, case: Case, progress: ProgressCallback | None = None) -> Tensor:
    """With whatever the case asks for, the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    batch = 2 if case.masked else 1
    tokens = torch.randn(batch, 7, 16, generator=generator)
    mask = torch.ones(batch, 7, dtype=torch.bool)
    if case.masked:
        mask[1, 4:] = False
    negative = None if case.family == "stdit3" else torch.randn(batch, 7, 16, generator=generator)
    text = TextEmbedding(tokens, mask, negative=negative)
    latents = pipe.prepare_latents(5).repeat(batch, 1, 1, 1, 1)
    cond_mask = None
    if case.given:
        cond_mask = torch.ones(batch, latents.shape[2])
        cond_mask[:, 0], cond_mask[:, -1] = 0.0, 0.6
    table = pipe.schedule(case.policy)
    fused = case.fused and isinstance(pipe, ParallelPipeline)
    run = GatedRun(table) if fused else pipe.new_run(table, case.kept)
    settings: Any = {"guidance": case.guidance, "cond_mask": cond_mask, "seed": 7, "run": run, "progress": progress}
    return pipe.denoise(latents, text, table, **settings)


def to_eight_bits(transformer: Any) -> None:
    """Every linear layer of the blocks, however small."""
    from pab_core.models.fp8 import Fp8Linear, Quantiser

    quantiser = Quantiser("cpu")
    for block in transformer.modules():
        if block is transformer or not hasattr(block, "branches"):
            continue
        for name, part in list(block.named_modules()):
            if type(part) is not torch.nn.Linear:
                continue
            layer = Fp8Linear(part.in_features, part.out_features, part.bias is not None, part.weight.dtype)
            quantiser.quantise(part.weight.data, layer.weight.data, layer.scale.data)
            if layer.bias is not None:
                layer.bias.data.copy_(part.bias.data)
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, layer)


@cache
def alone(case: Case) -> tuple[Pipeline, Tensor]:
    """One rank's model and what it makes; `case` without what is about ranks, so that many share it."""
    pipe = make(case)
    return pipe, denoise(pipe, case)


class Stop(Exception):
    pass


def interrupt(pipe: Any, case: Case) -> None:
    """Ends a run on all ranks at the third step, as one of them asks for it."""
    ranks = dist.get_world_size(pipe.ranks.group)

    def stop(event: Progress) -> None:
        if pipe.agree(event.done == 3 and pipe.ranks.rank == ranks - 1):
            raise Stop

    try:
        denoise(pipe, case, stop)
    except Stop:
        return
    raise AssertionError("the run was not stopped")


def refusal(pipe: Any, case: Case) -> dict[str, Any]:
    try:
        denoise(pipe, case)
    except PabError as error:
        return {"refused": str(error), "exchanged": len(pipe.traffic.rows)}
    raise AssertionError("a clip that is too short was not refused")


def compare(case: Case, group: dist.ProcessGroup) -> dict[str, Any]:
    pipe, reference = alone(replace(case, method="none", ranks=1, fused=False, interrupted=False, offloaded=False))
    whole = offload(make(case), "blocks", "cpu") if case.offloaded else pipe
    shared: Any = attach(whole, case.method, group)
    if case.size and dict(case.size).get("num_frames", 99) < case.ranks:
        return refusal(shared, case)
    if case.interrupted:
        interrupt(shared, case)
        shared.traffic.clear()
    found = denoise(shared, case)
    again = denoise(pipe, case) if case.interrupted else reference
    assert torch.equal(again, reference), "the pipeline that is shared out stays as it was"
    rows = {f"{kind}, {purpose}": asdict(count) for (kind, purpose), count in shared.traffic.rows.items()}
    error = float((found - reference).norm() / reference.norm())
    return {"error": error, "traffic": rows, "moved": float(reference.std())}
