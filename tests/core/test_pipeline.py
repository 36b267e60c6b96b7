"""The whole pipeline on a tiny random model: stages, cancelling, runs side by side, and what a run keeps."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import ABOUT
from torch import Tensor

from pab_core import pipeline, video_io
from pab_core.acceleration.choice import Speed, make_run
from pab_core.broadcast import AnyPolicy, BroadcastRun, Policy, ScheduleTable, customise
from pab_core.broadcast.cache import Store
from pab_core.errors import PabError
from pab_core.pipeline import Pipeline
from pab_core.results import Progress

PROMPT = "a red ball rolls left over a green floor"


class Stop(Exception):
    """What a caller raises from `progress` to cancel."""


def denoised(
    pipe: Pipeline,
    policy: str | AnyPolicy,
    seed: int = 1,
    steps: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Tensor:
    table = pipe.schedule(policy, steps=steps)
    return pipe.denoise(pipe.prepare_latents(seed), pipe.encode_prompt(PROMPT), table, progress=progress)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[BroadcastRun]:
    """The run states that the pipeline makes in this test, in order."""
    made: list[BroadcastRun] = []

    def noted(speed: Speed, device: torch.device, table: ScheduleTable, store: Store, recorded: bool) -> BroadcastRun:
        made.append(make_run(speed, device, table, store, recorded))
        return made[-1]

    monkeypatch.setattr(pipeline, "make_run", noted)
    return made


# Broadcast and the plain model


@torch.no_grad()
def test_off_is_the_plain_model_to_the_bit(pipe: Pipeline):
    """The loop written out, with a model that knows nothing of broadcast."""
    model, text = pipe.transformer, pipe.encode_prompt(PROMPT)
    z = pipe.prepare_latents(1)
    null = model.y_embedder.y_embedding[None, : text.tokens.shape[1]]
    y = torch.stack([text.tokens, null])
    times = [
        *pipe.sampler.timesteps(ABOUT["steps"], ABOUT["num_frames"], ABOUT["height"], ABOUT["width"]),
        torch.tensor(0.0),
    ]
    size = {key: torch.tensor([float(ABOUT[key])]) for key in ("fps", "height", "width")}
    for t, after in pairwise(times):
        out = model(torch.cat([z, z]), torch.stack([t, t]), y, **size)
        cond, uncond = out[:, :4].chunk(2)
        z = z + (uncond + ABOUT["guidance"] * (cond - uncond)) * ((t - after) / 1000)
    assert torch.equal(denoised(pipe, "off"), z)


@pytest.mark.parametrize(
    "policy",
    [
        Policy("ones", 1, 1, 1),
        customise("pab246", "stdit3", 2, spatial=1, temporal=1, cross=1, mlp=False),
        "pab111",
    ],
    ids=lambda policy: getattr(policy, "name", policy),
)
def test_range_1_is_off_to_the_bit(pipe: Pipeline, policy: str | Policy):
    assert torch.equal(denoised(pipe, policy), denoised(pipe, "off"))


@pytest.mark.parametrize(
    "changes", [{"spatial": 2}, {"temporal": 2}, {"cross": 2}, {"mlp": True}], ids=lambda changes: next(iter(changes))
)
def test_each_kind_of_broadcast_moves_the_result_a_little(pipe: Pipeline, changes: dict[str, Any]):
    off, moved = denoised(pipe, "off"), denoised(pipe, customise("off", "stdit3", 2, **changes))
    assert not torch.equal(off, moved)
    assert (off - moved).norm() < 0.2 * off.norm()


def test_the_first_difference_is_at_the_first_reused_step(pipe: Pipeline):
    def trace(policy: str) -> list[Tensor]:
        events: list[Progress] = []
        denoised(pipe, policy, progress=events.append)
        return [event.latents for event in events if event.latents is not None]

    table = pipe.schedule("pab246")
    first = next(i for i in range(table.steps) if any(table.reuses(b, i) for b in table.branches))
    same = [torch.equal(a, b) for a, b in zip(trace("off"), trace("pab246"), strict=True)]
    assert same == [True] * first + [False] * (table.steps - first)


# What a run keeps


def test_nothing_is_kept_after_a_run_and_only_the_needed_within(pipe: Pipeline, runs: list[BroadcastRun]):
    kept: list[int] = []
    denoised(pipe, "pab357", progress=lambda event: kept.append(runs[0].kept_bytes))
    table = runs[0].table
    update = 2 * 5 * (2 * 3) * 32 * 4  # cond and uncond x latent frames x tokens x width x float32
    waiting = [sum(source <= i < last for (_, source), last in table.last_use.items()) for i in range(table.steps)]
    assert kept == [count * update for count in waiting]
    assert max(kept) > 0
    assert runs[0].kept_bytes == 0


def test_off_keeps_nothing_at_all(pipe: Pipeline, runs: list[BroadcastRun]):
    kept: list[int] = []
    denoised(pipe, "off", progress=lambda event: kept.append(runs[0].kept_bytes))
    assert kept == [0] * ABOUT["steps"]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("when", [1, 5, 8])
def test_a_cancelled_run_leaves_nothing(pipe: Pipeline, folder: Path, error: type[BaseException], when: int):
    def cancel(event: Progress) -> None:
        if event.done == when:
            raise error

    with pytest.raises(error):
        denoised(pipe, "pab246", seed=7, progress=cancel)
    fresh = Pipeline.load(folder, device="cpu")
    assert torch.equal(denoised(pipe, "pab246"), denoised(fresh, "pab246"))
    assert torch.equal(denoised(pipe, "pab579", steps=7), denoised(fresh, "pab579", steps=7))


def test_a_run_that_fails_inside_the_model_leaves_nothing(
    pipe: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch, runs: list[BroadcastRun]
):
    block = pipe.transformer.temporal_blocks[1]
    calls = 0

    def fail(module: Any, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise RuntimeError("broken")

    hook = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        denoised(pipe, "pab246")
    hook.remove()
    assert runs[0].kept_bytes > 0  # it really was in the middle
    assert torch.equal(denoised(pipe, "pab246"), denoised(Pipeline.load(folder, device="cpu"), "pab246"))


def test_the_state_of_a_run_dies_with_it(pipe: Pipeline, runs: list[BroadcastRun]):
    def cancel(event: Progress) -> None:
        if event.done == 5:
            raise Stop

    with pytest.raises(Stop):
        denoised(pipe, "pab246", progress=cancel)
    state = weakref.ref(runs.pop())
    gc.collect()
    assert state() is None


def test_two_runs_interleaved_do_not_meet(pipe: Pipeline):
    """Two threads on one pipeline, of other seeds, policies and step counts, that take turns at every step."""
    settings = [("pab246", 1, 10), ("pab579", 2, 14)]
    alone = [denoised(pipe, *setting) for setting in settings]
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    order: list[int] = []
    results: dict[int, Tensor] = {}

    def work(me: int) -> None:
        def step(event: Progress) -> None:
            order.append(me)
            turns[1 - me].release()
            assert turns[me].acquire(timeout=30)

        assert turns[me].acquire(timeout=30)
        results[me] = denoised(pipe, *settings[me], progress=step)
        # The other may run on to its end.
        for _ in range(20):
            turns[1 - me].release()

    threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order[:20] == [0, 1] * 10
    assert [torch.equal(results[me], alone[me]) for me in range(2)] == [True, True]


# The stages


def test_the_seed_decides(pipe: Pipeline):
    assert torch.equal(denoised(pipe, "pab246", 3), denoised(pipe, "pab246", 3))
    assert not torch.equal(denoised(pipe, "pab246", 3), denoised(pipe, "pab246", 4))
    before = torch.get_rng_state()
    pipe.prepare_latents(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_prompt_decides(pipe: Pipeline):
    table, noise = pipe.schedule("off"), pipe.prepare_latents(1)
    one, other, same = (pipe.encode_prompt(text) for text in (PROMPT, "a blue cube", f"  {PROMPT.upper()}\n"))
    assert torch.equal(one.tokens, same.tokens)
    assert one.mask.shape == one.tokens.shape[:2]
    results = [pipe.denoise(noise, text, table) for text in (one, other)]
    assert not torch.equal(*results)


def test_denoise_does_not_change_its_inputs(pipe: Pipeline):
    noise, text = pipe.prepare_latents(1), pipe.encode_prompt(PROMPT)
    copies = noise.clone(), text.tokens.clone()
    pipe.denoise(noise, text, pipe.schedule("pab246"))
    assert torch.equal(noise, copies[0])
    assert torch.equal(text.tokens, copies[1])


def test_generate_is_the_stages_in_order(pipe: Pipeline):
    events: list[tuple[str, int, int]] = []
    made = pipe.generate(
        PROMPT, policy="pab246", seed=1, progress=lambda event: events.append((event.stage, event.done, event.total))
    )
    frames = pipe.decode(denoised(pipe, "pab246"))
    assert torch.equal(made.frames, frames)
    assert made.frames.shape == (17, 32, 48, 3)
    assert made.frames.dtype == torch.uint8
    assert made.frames.float().std() > 1
    assert made.warnings == ()
    assert list(made.seconds) == ["text", "denoise", "decode"]
    assert events[:10] == [("denoise", i, 10) for i in range(1, 11)]
    assert [event[0] for event in events[10:]] == ["decode"] * 5
    assert events[-1] == ("decode", 17, 17)
    assert made.table.policy == "pab246"


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(17, 32, 48), (34, 48, 32), (1, 40, 24), (51, 8, 8)], ids=lambda value: str(value)
)
def test_other_sizes_and_lengths(pipe: Pipeline, frames: int, height: int, width: int):
    made = pipe.generate(PROMPT, policy="pab246", seed=1, steps=4, num_frames=frames, height=height, width=width)
    assert made.frames.shape == (frames, height, width, 3)
    assert made.metadata["num_frames"] == frames


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_any_number_of_steps(pipe: Pipeline, steps: int):
    assert torch.isfinite(denoised(pipe, "pab246", steps=steps)).all()


def test_without_a_seed_a_random_one_is_told(pipe: Pipeline):
    made = [pipe.generate(PROMPT, steps=1) for _ in range(2)]
    seeds = [m.metadata["seed"] for m in made]
    assert seeds[0] != seeds[1]
    again = pipe.generate(PROMPT, steps=1, seed=seeds[0])
    assert torch.equal(again.frames, made[0].frames)


def test_a_video_carries_its_settings(pipe: Pipeline, tmp_path: Path):
    policy = customise("pab246", pipe.spec.family, pipe.spec.depth, cross=3)
    made = pipe.generate(PROMPT, policy=policy, seed=1, guidance=2)
    path = made.save(tmp_path / "a.mp4")
    frames, fps = video_io.read_mp4(path)
    assert frames.shape == (17, 32, 48, 3)
    assert fps == 8
    told = video_io.read_metadata(path)
    assert told == made.metadata
    expected = {"prompt": PROMPT, "policy": "pab246 cross=3", "seed": 1, "steps": 10, "guidance": 2.0, "fps": 8}
    assert expected.items() <= told.items()
    assert told["reused"].keys() == {"spatial", "temporal", "cross", "mlp"}
    with pytest.raises(PabError, match="already exists"):
        made.save(path)
    made.save(path, force=True)


def test_a_cancelled_decode_leaves_nothing(pipe: Pipeline):
    def cancel(event: Progress) -> None:
        if event.stage == "decode":
            raise Stop

    before = pipe.generate(PROMPT, seed=1, steps=2).frames
    with pytest.raises(Stop):
        pipe.generate(PROMPT, seed=2, steps=2, progress=cancel)
    assert torch.equal(pipe.generate(PROMPT, seed=1, steps=2).frames, before)


def test_the_preview_is_small_and_in_colour(pipe: Pipeline):
    latents = pipe.prepare_latents(1)
    for matrix in (pipe.preview_matrix, None):
        shown = replace(pipe, preview_matrix=matrix)
        picture = shown.preview(latents)
        assert picture.shape == (5, 4, 6, 3)
        assert picture.dtype == torch.uint8
    z = latents[0, :, 0, 0, 0]
    matrix = torch.tensor([[0.1, 0.0, 0.2], [0.0, 0.3, 0.0], [0.2, 0.0, 0.1], [0.0, 0.1, 0.3], [0.0, 0.1, -0.1]])
    colour = ((z @ matrix[:4] + matrix[4] + 1) * 127.5).round().clamp(0, 255)
    assert (pipe.preview(latents)[0, 0, 0].float() - colour).abs().max() <= 1


def test_a_model_is_not_changed_by_its_runs(pipe: Pipeline):
    def state() -> list[tuple[str, int]]:
        return [(name, len(vars(module))) for name, module in pipe.transformer.named_modules()]

    before, weights = state(), {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    denoised(pipe, "pab246")
    assert state() == before
    assert all(torch.equal(value, weights[key]) for key, value in pipe.transformer.state_dict().items())
