"""Fused runs give what plain runs give. Their kernels are run by Triton's interpreter, number by number, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_widths import CONFIGS, FRAMES, denoise, distance, tiny
from tiny_families import random_pipe
from torch import Tensor
from torch.nn import functional

from pab_core.acceleration import cpu, fused, run
from pab_core.acceleration.choice import SPEEDS, choose_speed
from pab_core.acceleration.fused import MOST_FRAMES
from pab_core.acceleration.run import FusedRun
from pab_core.broadcast import BroadcastRun
from pab_core.broadcast.cache import Fp8Store, make_store
from pab_core.broadcast.schedule_file import ModelId, Rule, ScheduleFile
from pab_core.broadcast.teacache import TeaCache
from pab_core.errors import PabError
from pab_core.evaluate.bench import at_speed
from pab_core.models.fp8 import Fp8Linear, Quantiser
from pab_core.pipeline import Pipeline


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


class Elsewhere:
    """The frames at hand are one rank's of a clip of `num_frames`, which the test's run attends over alone."""

    def __init__(self, num_frames: int):
        self.num_frames = num_frames
        self.asked: set[str] = set()

    def enter(self, block: Any) -> None: ...

    def shares_gated(self, branch: Any) -> bool:
        return branch.kind == "temporal"

    def shared(self, branch: Any, update: Any) -> Any:
        return update if branch.kind != "temporal" else lambda x, cond: self.asked.add("plain") or update(x, cond)

    def gated(self, update: Any, x: Tensor) -> Any:
        self.asked.add("fused")
        return None, torch.zeros_like(x)


@pytest.mark.parametrize(("num_frames", "asked"), [(MOST_FRAMES, "fused"), (MOST_FRAMES + 1, "plain")])
def test_a_long_clip_is_long_on_every_rank(num_frames: int, asked: str):
    """Each rank has few of its frames, and attends over all of them."""
    pipe = random_pipe("stdit3", CONFIGS["stdit3"], num_frames=17, height=32, width=32, steps=2)
    elsewhere = Elsewhere(num_frames)

    class Run(FusedRun):
        def run_blocks(self, blocks: Any, start: Any, cond: Any) -> Tensor:
            return self.run_shared_blocks(blocks, start(), cond, elsewhere)

    denoise(pipe, Run(pipe.schedule("off")))
    assert elsewhere.asked == {asked}


@pytest.mark.parametrize("family", CONFIGS)
def test_frames_of_a_single_token(family: str):
    """As a rank has them when many share a small clip."""
    pipe = random_pipe(family, CONFIGS[family], num_frames=FRAMES[family], height=16, width=16, steps=4)
    table = pipe.schedule("off")
    assert distance(denoise(pipe, BroadcastRun(table)), denoise(pipe, FusedRun(table))) < 1e-5


def test_updates_are_kept_in_eight_bits_as_the_store_does():
    pipe = tiny("stdit3")
    table = pipe.schedule("pab222")
    plain, fused = (kind(table, make_store("fp8")) for kind in (BroadcastRun, FusedRun))
    # Not to the bit: the interpreter rounds to eight bits in its own way.
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 0.1
    assert fused.peak_bytes == plain.peak_bytes > 0
    assert fused.kept_bytes == 0


@pytest.mark.parametrize("predictor", ["hold", "linear", "taylor"])
@pytest.mark.parametrize("merge", [False, True])
def test_what_is_predicted_of_eight_bits_is_summed_in_a_kernel(merge: bool, predictor: Any):
    pipe = tiny("stdit3", height=16)
    model = ModelId(family=pipe.spec.family, depth=pipe.spec.depth)
    rule = Rule(kinds=WHOLE, source=(0, 1, 1, 3, 3, 5))
    table = pipe.schedule(
        ScheduleFile(pab_schedule=1, model=model, rules=(rule,), run_steps=6, merge=merge, predictor=predictor)
    )
    plain, fused = (kind(table, make_store("fp8")) for kind in (BroadcastRun, FusedRun))
    exact = denoise(pipe, BroadcastRun(table))
    error = distance(exact, denoise(pipe, plain))
    assert 0 < distance(exact, denoise(pipe, fused)) < 1.5 * error + 0.01
    assert fused.kept_bytes == plain.kept_bytes
    assert 0.9 * plain.peak_bytes < fused.peak_bytes <= plain.peak_bytes


def test_where_kernels_have_no_eight_bits_pytorch_turns_updates_into_them(monkeypatch: pytest.MonkeyPatch):
    """On GPUs older than Ada, for which Triton refuses to compile them."""
    monkeypatch.setattr(run, "writes_fp8", lambda device: False)
    monkeypatch.delattr(Fp8Store, "take_encoded")  # which a kernel would read
    pipe = tiny("stdit3")
    table = pipe.schedule("pab222")
    plain, fused = (kind(table, make_store("fp8")) for kind in (BroadcastRun, FusedRun))
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 1e-5
    assert fused.peak_bytes == plain.peak_bytes > 0
    assert fused.kept_bytes == 0


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_kernels_have_eight_bits_from_ada_on(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert run.writes_fp8(torch.device("cuda")) is expected
    assert run.writes_fp8(torch.device("cpu"))


def test_gelu_in_the_product_scales_its_rows_by_a_bound(monkeypatch: pytest.MonkeyPatch):
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


@pytest.mark.parametrize("predictor", ["linear", "taylor"])
def test_updates_that_are_lent_are_not_kept_waiting(predictor: Any):
    """PNDM visits timesteps twice: between two that coincide there is no line, and the last update is used as it is."""
    pipe = tiny("open-sora-plan")
    times = pipe.schedule("off").timesteps
    twice = next(i for i in range(1, len(times)) if times[i] == times[i - 1])
    rule = Rule(kinds=WHOLE, source=tuple(min(i, twice) for i in range(len(times))))
    model = ModelId(family=pipe.spec.family, depth=pipe.spec.depth)
    table = pipe.schedule(
        ScheduleFile(pab_schedule=1, model=model, rules=(rule,), run_steps=len(times), predictor=predictor)
    )
    plain, fused = BroadcastRun(table), FusedRun(table, make_store("host"))
    assert distance(denoise(pipe, plain), denoise(pipe, fused)) < 1e-5


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


class TestOnAGpu:
    """What is chosen there; the kernel that is tried runs, or fails, as the tests say."""

    gpu = torch.device("cuda")

    @pytest.fixture(autouse=True)
    def hopper(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        yield
        run.why_no_kernels.cache_clear()

    def chosen(self, wanted: str, **options: Any) -> tuple[str, str]:
        return choose_speed(wanted, self.gpu, torch.bfloat16, **options)

    @pytest.mark.parametrize("wanted", ["auto", "fast", "fp8"])
    def test_without_a_compiler_it_runs_as_it_is(self, wanted: str, monkeypatch: pytest.MonkeyPatch):
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
        monkeypatch.setattr(fused, "residual", fail)
        chosen, note = self.chosen(wanted, trying=True)
        assert chosen == "exact"
        assert "needs a C compiler" in note
        assert "Failed to find C compiler" in note
        assert self.chosen(wanted)[0] != "exact", "who does not compute there does not try"

    def test_an_older_pytorch_runs_as_it_is(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(run, "sdpa_kernel", lambda backends: nullcontext())
        chosen, note = self.chosen("auto")
        assert chosen == "exact"
        assert "need PyTorch 2.6 or newer" in note

    def test_else_it_is_fast(self, monkeypatch: pytest.MonkeyPatch):
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))  # for Triton's interpreter
        assert self.chosen("auto", trying=True) == ("fast", "")
        assert self.chosen("auto") == ("fast", "")


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
