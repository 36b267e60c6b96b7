"""TeaCache of many clips made together against each made alone, in plain and in fused runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import LATTE, PLAN, random_pipe
from torch import Tensor

from pab_core.acceleration.run import FusedRun
from pab_core.broadcast import BroadcastRun, ScheduleTable
from pab_core.broadcast.cache import make_store
from pab_core.broadcast.teacache import TeaCache
from pab_core.evaluate import deciding
from pab_core.evaluate.deciding import run_apart
from pab_core.pipeline import Pipeline
from pab_core.text import TextEmbedding

STDIT = {"hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 16, "model_max_length": 12, "qk_norm": True}
CONFIGS: dict[str, dict[str, Any]] = {"stdit3": STDIT, "latte": LATTE, "open-sora-plan": PLAN}
FRAMES = {"stdit3": 17, "latte": 3, "open-sora-plan": 9}
CLIPS = 3


def denoise(pipe: Pipeline, run: BroadcastRun, clips: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens, negative = torch.randn(2, CLIPS, 5, 16, generator=generator)[:, clips]
    text = TextEmbedding(tokens, torch.ones(len(clips), 5, dtype=torch.bool), negative=negative)
    latents = torch.cat([pipe.prepare_latents(clip) * (1 + clip) for clip in clips])
    return pipe.denoise(latents, text, run.table, seed=None, run=run)


def apart_by(table: ScheduleTable, threshold: float) -> ScheduleTable:
    assert isinstance(table.decide, TeaCache)
    return TeaCache(threshold, (1.0, 0.0)).resolve(table.timesteps, table.branches)


@pytest.mark.parametrize(("family", "kept"), [*((family, "plain") for family in CONFIGS), ("stdit3", "fp8")])
def test_each_clip_is_decided_as_if_it_were_alone(family: str, kept: str, monkeypatch: pytest.MonkeyPatch):
    pipe = random_pipe(family, CONFIGS[family], num_frames=FRAMES[family], height=32, width=32, steps=6)
    first = pipe.schedule(TeaCache(1.0, (1.0, 0.0)))
    for threshold in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8):
        table = apart_by(first, threshold)
        alone = [pipe.new_run(table, kept) for _ in range(CLIPS)]
        latents = [denoise(pipe, run, [clip]) for clip, run in enumerate(alone)]
        shares = [run.taken.reused_share() for run in alone]
        if len(set(shares)) > 1:
            break
    else:
        pytest.fail("All clips reuse alike at every threshold: the test says nothing.")
    for kind in (BroadcastRun, FusedRun):
        monkeypatch.setattr(Pipeline, "new_run", lambda self, table, kept, kind=kind: kind(table, make_store(kept)))
        together = run_apart(pipe, table, kept, CLIPS)
        assert isinstance(together, kind)
        found = denoise(pipe, together, list(range(CLIPS)))
        assert together.reused_shares() == pytest.approx(shares)
        for clip, wanted in enumerate(latents):
            assert float((found[clip] - wanted[0]).norm() / wanted[0].norm()) < 1e-4


def test_eight_bits_too(pipe: Pipeline):
    table = pipe.schedule(TeaCache(50, (1e-9, 0.0)))
    run = run_apart(pipe, table, "fp8", 2)
    assert isinstance(run, deciding.RunApart)
    latents = torch.cat([pipe.prepare_latents(seed) for seed in (1, 2)])
    text = pipe.encode_prompt("a red ball")
    text = TextEmbedding(text.tokens.repeat(2, 1, 1), text.mask.repeat(2, 1))
    assert bool(pipe.denoise(latents, text, table, run=run).isfinite().all())
    assert run.reused_shares() == pytest.approx([0.8, 0.8])
