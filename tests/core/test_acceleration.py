"""Fused runs give what plain runs give. Their kernels are run by Triton's interpreter, number by number, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import LATTE, PLAN, random_pipe
from torch import Tensor
from torch.nn import functional

from pab_core.acceleration import cpu
from pab_core.acceleration.choice import SPEEDS, choose_speed
from pab_core.acceleration.run import FusedRun
from pab_core.broadcast import BroadcastRun
from pab_core.broadcast.cache import make_store
from pab_core.broadcast.schedule_file import ModelId, Rule, ScheduleFile
from pab_core.broadcast.teacache import TeaCache
from pab_core.errors import PabError
from pab_core.evaluate.bench import at_speed
from pab_core.models.fp8 import Fp8Linear, Quantiser
from pab_core.pipeline import Pipeline
from pab_core.text import TextEmbedding

# Widths that are no powers of two: rows are read in two pieces.
CONFIGS: dict[str, dict[str, Any]] = {
    "stdit3": {
        "hidden_size": 24,
        "depth": 2,
        "num_heads": 2,
        "caption_channels": 16,
        "model_max_length": 12,
        "qk_norm": True,
    },
    "latte": LATTE | {"attention_head_dim": 12},
    "open-sora-plan": PLAN | {"attention_head_dim": 12},
}
SIZE: dict[str, Any] = {"height": 32, "width": 32, "steps": 6}
FRAMES = {"stdit3": 17, "latte": 3, "open-sora-plan": 9}


def tiny(family: str) -> Pipeline:
    return random_pipe(family, CONFIGS[family], num_frames=FRAMES[family], **SIZE)


def denoise(pipe: Pipeline, run: BroadcastRun, given: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens, negative = torch.randn(2, 1, 5, 16, generator=generator)
    text = TextEmbedding(tokens, torch.ones(1, 5, dtype=torch.bool), negative=negative)
    latents = pipe.prepare_latents(1)
    mask = torch.ones(1, latents.shape[2])
    mask[:, 0] = 0
    return pipe.denoise(latents, text, run.table, cond_mask=mask if given else None, seed=2, run=run)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("family", CONFIGS)
def test_fused_runs_give_the_plain_runs_results(family: str):
    pipe = tiny(family)
    table = pipe.schedule("pab234")
    assert table.reused_share() > 0.1
    plain, fused = BroadcastRun(table), FusedRun(table)
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 1e-5
    assert fused.kept_bytes == 0
    assert fused.peak_bytes == plain.peak_bytes > 0


def test_given_frames_are_modulated_apart():
    pipe = tiny("stdit3")
    table = pipe.schedule("pab222")
    assert distance(denoise(pipe, BroadcastRun(table), True), denoise(pipe, FusedRun(table), True)) < 1e-5


def test_a_single_frame():
    pipe = random_pipe("stdit3", CONFIGS["stdit3"], num_frames=1, height=32, width=32, steps=3)
    table = pipe.schedule("pab222")
    assert distance(denoise(pipe, BroadcastRun(table)), denoise(pipe, FusedRun(table))) < 1e-5


def test_updates_are_kept_in_eight_bits_as_the_store_does():
    pipe = tiny("stdit3")
    table = pipe.schedule("pab222")
    plain, fused = (kind(table, make_store("fp8")) for kind in (BroadcastRun, FusedRun))
    # Not to the bit: the interpreter rounds to eight bits in its own way.
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 0.1
    assert fused.peak_bytes == plain.peak_bytes > 0
    assert fused.kept_bytes == 0


def test_gelu_in_the_product_scales_its_rows_by_a_bound(monkeypatch: pytest.MonkeyPatch):
    from pab_core.acceleration import fused

    monkeypatch.setattr(fused, "GELU_TILE", (64, 32, 32))
    generator = torch.Generator().manual_seed(0)
    layer = Fp8Linear(48, 96, True, torch.float32)
    assert layer.bias is not None
    Quantiser("cpu").quantise(torch.randn(96, 48, generator=generator) / 7, layer.weight.data, layer.scale.data)
    layer.bias.data = torch.randn(96, generator=generator)
    rows = fused.rows_in_fp8(torch.randn(2, 3, 50, 48, generator=generator))  # no whole number of tiles
    x = rows.values.float() * rows.scales
    factor, term = layer.find_bound()
    assert (layer(x).abs() <= factor * x.abs().amax(-1, keepdim=True) + term).all()
    made = fused.gelu_product(rows, fused.Rows(layer.weight.view(fused.FP8), layer.scale), layer.bias, factor, term)
    expected = functional.gelu(layer(x), approximate="tanh")
    assert (expected.abs() <= 448 * made.scales).all()
    # Wider than rounding to eight bits, 2.6 %: the interpreter rounds in its own way.
    assert distance(expected, made.values.float() * made.scales) < 0.08


@pytest.mark.parametrize(
    ("family", "predictor"), [*((family, "linear") for family in CONFIGS), ("stdit3", "taylor"), ("latte", "gate")]
)
def test_predicted_updates(family: str, predictor: str):
    pipe = tiny(family)
    table = pipe.schedule(f"pab234+{predictor}")
    plain, fused = BroadcastRun(table), FusedRun(table)
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 1e-5
    assert fused.kept_bytes == plain.kept_bytes
    assert 0.9 * plain.peak_bytes < fused.peak_bytes <= plain.peak_bytes


WHOLE = ("spatial", "temporal", "cross", "mlp")


@pytest.mark.parametrize(
    ("family", "predictor", "kinds"),
    [
        *((family, predictor, WHOLE) for family in CONFIGS for predictor in ("hold", "linear")),
        ("stdit3", "hold", ("cross", "mlp")),
        ("latte", "taylor", ("cross", "mlp")),
    ],
)
def test_the_sum_of_a_group_is_kept_as_the_streams_gain(family: str, predictor: Any, kinds: Any):
    pipe = tiny(family)
    off = pipe.schedule("off")
    source = (0, 1, 1, *[3] * (off.steps - 4), off.steps - 1)
    rule = Rule(kinds=kinds, source=source)
    model = ModelId(family=pipe.spec.family, depth=pipe.spec.depth)
    table = pipe.schedule(
        ScheduleFile(pab_schedule=1, model=model, rules=(rule,), run_steps=off.steps, merge=True, predictor=predictor)
    )
    assert table.groups
    plain, fused = BroadcastRun(table), FusedRun(table)
    expected = denoise(pipe, plain)
    assert distance(expected, denoise(pipe, BroadcastRun(off))) > 1e-4  # there is something to get wrong
    assert distance(expected, denoise(pipe, fused)) < 1e-5
    assert fused.kept_bytes == 0
    assert 0.9 * plain.peak_bytes < fused.peak_bytes <= plain.peak_bytes


@pytest.mark.parametrize("family", CONFIGS)
def test_what_a_run_decides_itself(family: str):
    pipe = tiny(family)
    table = pipe.schedule(TeaCache(0.3, (1.0, 0.0)))
    plain, fused = BroadcastRun(table), FusedRun(table)
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 1e-5
    assert plain.taken.reused_share() == fused.taken.reused_share() > 0
    assert 0.9 * plain.peak_bytes < fused.peak_bytes <= plain.peak_bytes


@pytest.mark.parametrize("policy", ["tgate", "delta-dit", "scores222"])
def test_what_is_more_than_single_updates_runs_as_ever(policy: str):
    pipe = tiny("stdit3")
    table = pipe.schedule(policy)
    assert distance(denoise(pipe, BroadcastRun(table)), denoise(pipe, FusedRun(table))) < 1e-5


def test_what_a_machine_cannot_do_is_left_out_and_said():
    cpu = torch.device("cpu")
    assert choose_speed("exact", cpu, torch.float32) == ("exact", "")
    assert choose_speed("auto", cpu, torch.float32) == ("exact", "")
    chosen, note = choose_speed("fp8", cpu, torch.float32)
    assert chosen in ("exact", "fast")
    assert "eight bits" in note or "AVX-512" in note
    with pytest.raises(PabError, match="no speed named 'warp'"):
        choose_speed("warp", cpu, torch.float32)
    assert "fast" in SPEEDS


def test_on_a_cpu_fast_means_bfloat16_in_the_transformer(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "why_not", lambda: None)
    exact, fast = (Pipeline.load(folder, device="cpu", speed=speed) for speed in ("exact", "fast"))
    assert (exact.speed, fast.speed) == ("exact", "fast")
    assert next(fast.transformer.parameters()).dtype == torch.bfloat16
    assert fast.vae is not None
    assert next(fast.vae.parameters()).dtype == torch.float32
    made = [
        pipe.denoise(pipe.prepare_latents(1), pipe.encode_prompt("a ball"), pipe.schedule("pab246"))
        for pipe in (exact, fast)
    ]
    assert 0 < distance(*made) < 0.1
    turned = at_speed(exact, "fast")
    assert next(turned.transformer.parameters()).dtype == torch.bfloat16
    assert next(exact.transformer.parameters()).dtype == torch.float32
    monkeypatch.setattr(cpu, "why_not", lambda: "This processor is old.")
    old = Pipeline.load(folder, device="cpu", speed="fast")
    assert old.speed == "exact"
    assert old.notes == ("This processor is old. The model runs as it is, which is slower.",)
