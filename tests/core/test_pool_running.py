"""A pool of workers on a tiny random model: results, order, progress, cancelling, and workers that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from pab_core.errors import PabError
from pab_core.parallel.pool.failures import JobCancelled, WorkerError
from pab_core.parallel.pool.job import Job, ModelSource, text_to_tensors
from pab_core.parallel.pool.pool import Handle, WorkerPool
from pab_core.parallel.pool.record import PoolProgress
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"
LONG = {"steps": 900, "policy": "off"}  # seconds, to be interrupted


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """Two workers that make each video together."""
    with WorkerPool("cpu*2", method="dsp") as made:
        yield made


@pytest.fixture
def job(folder: Path) -> Callable[..., Job]:
    source = ModelSource.of(folder)

    def make(**settings: Any) -> Job:
        return Job(**{"model": source, "prompt": PROMPT, "seed": 1, "policy": "pab246", **settings})

    return make


@pytest.fixture
def alone(pipe: Pipeline) -> Callable[..., Tensor]:
    """What one process makes."""

    def make(**settings: Any) -> Tensor:
        return pipe.generate(**{"prompt": PROMPT, "seed": 1, "policy": "pab246", **settings}).frames

    return make


def same(frames: Tensor | None, expected: Tensor) -> bool:
    """Equal but for the rounding of sums taken in another order."""
    assert frames is not None
    return frames.shape == expected.shape and int((frames.int() - expected.int()).abs().max()) <= 1


def pids(pool: WorkerPool) -> list[int]:
    return [row["pid"] for row in pool.status()["workers"]]


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def running(handle: Handle) -> bool:
    assert handle.state != "failed", handle.result(0)
    return handle.place is not None and handle.place.stage == "denoise" and handle.place.done > 2


# results


def test_two_ranks_make_the_video_of_one_process(pool: WorkerPool, job: Any, alone: Any):
    events: list[PoolProgress] = []
    made = pool.submit(job(previews=True), progress=events.append).result(120)
    assert same(made.frames, alone())
    assert made.generation is not None
    assert made.generation.metadata["policy"] == "pab246"
    assert made.generation.metadata["seed"] == 1
    assert made.generation.table.reused_share("cross") == 0.5
    assert [event.stage for event in events[:1]] == ["load"]
    steps = [event.done for event in events if event.stage == "denoise"]
    assert steps == list(range(1, 11))
    preview = next(event.preview for event in events if event.preview is not None)
    assert (preview.dtype, preview.shape[1:]) == (torch.uint8, (4, 6, 3))
    assert events[-1].stage == "decode"


def test_jobs_are_done_in_order_by_workers_that_stay(pool: WorkerPool, job: Any, alone: Any):
    before = pids(pool)
    order: list[int] = []
    handles = [
        pool.submit(job(seed=seed), progress=lambda event, seed=seed: order.append(seed)) for seed in range(3, 7)
    ]
    frames = [handle.result(60).frames for handle in handles]
    assert all(same(found, alone(seed=seed)) for seed, found in zip(range(3, 7), frames, strict=True))
    assert order == sorted(order)
    assert not same(frames[0], alone(seed=4))
    assert pids(pool) == before


def test_a_seed_that_is_not_given_is_the_same_on_all_ranks(pool: WorkerPool, job: Any, alone: Any):
    made = pool.submit(job(seed=None)).result(60)
    assert made.generation is not None
    assert same(made.frames, alone(seed=made.generation.metadata["seed"]))


def test_stages_one_by_one_with_an_embedding_from_outside(pool: WorkerPool, job: Any, pipe: Pipeline, alone: Any):
    text = pipe.encode_prompt(PROMPT)
    half = pool.submit(job(task="denoise", prompt=""), text_to_tensors(text)).result(60)
    assert half.latents is not None
    table = pipe.schedule("pab246")
    expected = pipe.denoise(pipe.prepare_latents(1), text, table, seed=1)
    assert torch.allclose(half.latents, expected, rtol=1e-4, atol=1e-5)
    assert half.table is not None
    assert half.table.source == table.source
    whole = pool.submit(job(task="decode"), {"latents": half.latents}).result(60)
    assert same(whole.frames, alone())


def test_a_given_picture_comes_along(pool: WorkerPool, job: Any, alone: Any):
    from pab_core.parallel.pool.job import given_to_plain
    from pab_core.tasks import Given

    given = Given(image=torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator()))
    files, tensors = given_to_plain(given)
    made = pool.submit(job(given=files), tensors).result(60)
    assert same(made.frames, alone(given=given))


def test_another_model_takes_the_place_of_the_first(pool: WorkerPool, job: Any, alone: Any, tmp_path: Path):
    from tiny_checkpoint import write_tiny_checkpoint

    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    before = pids(pool)
    source = ModelSource.of(other)
    events: list[PoolProgress] = []
    made = pool.submit(job(model=source), progress=events.append).result(60)
    assert same(made.frames, Pipeline.load(other, device="cpu").generate(PROMPT, seed=1, policy="pab246").frames)
    assert events[0].stage == "load"
    assert same(pool.submit(job()).result(60).frames, alone())
    assert pids(pool) == before


# mistakes and cancelling


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": ""}, "prompt"),  # only the first rank reads it; the other must not wait for ever
        ({"num_frames": 18}, "18 frames do not fit"),
        ({"policy": "pab000"}, "no policy named"),
        ({"sampler": "ddim"}, "other samplers do not fit"),
        ({"num_frames": 1}, "can use 1 ranks at most, not 2"),
        ({"model": ModelSource(model="/nowhere/at/all")}, "no model named"),
    ],
)
def test_a_job_that_cannot_be_ends_alone(pool: WorkerPool, job: Any, alone: Any, settings: Any, said: str):
    pool.submit(job()).result(60)  # that it runs
    before = pids(pool)
    with pytest.raises(PabError, match=said) as caught:
        pool.submit(job(**settings)).result(60)
    assert not isinstance(caught.value, WorkerError)
    assert same(pool.submit(job()).result(60).frames, alone())
    assert pids(pool) == before


def test_a_running_job_is_cancelled_within_a_step(pool: WorkerPool, job: Any, alone: Any):
    before = pids(pool)
    handle = pool.submit(job(**LONG))
    until(lambda: running(handle))
    assert handle.place is not None
    last = handle.place.done
    handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(5)
    assert handle.state == "cancelled"
    assert handle.place.done < last + 100  # of 900
    assert same(pool.submit(job()).result(60).frames, alone())
    assert pids(pool) == before


def test_a_waiting_job_is_cancelled_at_once(pool: WorkerPool, job: Any):
    first = pool.submit(job(**LONG))
    until(lambda: running(first))
    second = pool.submit(job())
    second.cancel()
    assert second.wait(0)
    with pytest.raises(JobCancelled):
        second.result()
    assert first.state == "running"
    assert pool.status()["running"][0]["id"] == first.id
    first.cancel()
    assert first.wait(5)
    first.cancel()  # that has ended: nothing happens
    assert first.state == "cancelled"


def test_what_a_callback_raises_ends_the_job_and_reaches_who_waits(pool: WorkerPool, job: Any, alone: Any):
    def stop(event: PoolProgress) -> None:
        if event.stage == "denoise" and event.done == 3:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pool.submit(job(**LONG), progress=stop).result(60)
    assert same(pool.submit(job()).result(60).frames, alone())


def test_a_result_can_be_waited_for_in_vain(pool: WorkerPool, job: Any):
    handle = pool.submit(job(**LONG))
    with pytest.raises(TimeoutError):
        handle.result(0.01)
    handle.cancel()
    assert handle.wait(10)


# workers that die


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_named_and_replaced(pool: WorkerPool, job: Any, alone: Any, rank: int):
    before = pids(pool)
    handle, waiting = pool.submit(job(**LONG)), pool.submit(job(seed=7))
    until(lambda: running(handle))
    os.kill(before[rank], signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(WorkerError, match=rf"rank {rank} \(cpu\) was killed \(signal 9.* in step \d+ of 900") as caught:
        handle.result(5)
    assert time.monotonic() - killed < 5
    assert caught.value.rank == rank
    assert same(waiting.result(60).frames, alone(seed=7))
    after = pids(pool)
    assert after[rank] != before[rank]
    assert after[1 - rank] == before[1 - rank]  # it kept its model


def test_a_worker_killed_between_jobs_is_replaced_without_one(pool: WorkerPool, job: Any, alone: Any):
    before = pids(pool)
    os.kill(before[1], signal.SIGKILL)
    until(lambda: pids(pool)[1] not in (None, before[1]))
    until(lambda: [row["state"] for row in pool.status()["workers"]] == ["ready", "ready"])
    assert same(pool.submit(job()).result(60).frames, alone())


# coming and going


def test_memory_comes_back_on_request_and_when_idle(job: Any, alone: Any):
    with WorkerPool("cpu", idle_seconds=0.4) as pool:
        assert pids(pool) == [None]
        pool.submit(job()).result(60)
        (first,) = pids(pool)
        until(lambda: pids(pool) == [None], 10)
        assert not psutil.pid_exists(first)
        handle = pool.submit(job(seed=2))
        until(lambda: handle.state == "running")
        pool.release()  # not before the job is done
        assert same(handle.result(60).frames, alone(seed=2))
        until(lambda: pids(pool) == [None], 10)


def test_memory_comes_back_after_the_last_of_the_jobs_that_wait(job: Any, alone: Any):
    with WorkerPool("cpu") as pool:
        handles = [pool.submit(job(seed=seed)) for seed in (1, 2)]
        until(lambda: handles[0].state == "running")
        pool.release()
        for seed, handle in enumerate(handles, 1):
            assert same(handle.result(60).frames, alone(seed=seed))
        until(lambda: pids(pool) == [None], 10)


def test_replicas_make_videos_side_by_side_and_pools_do_not_meet(job: Any, alone: Any):
    with WorkerPool("cpu*2", ranks=1) as pool, WorkerPool("cpu*2", method="ulysses") as other:
        handles = [p.submit(job(seed=seed)) for seed in range(4) for p in (pool, other)]
        frames = [handle.result(120).frames for handle in handles]
        assert all(same(found, alone(seed=i // 2)) for i, found in enumerate(frames))
        assert {row["team"] for row in pool.status()["workers"]} == {0, 1}
        folder = Path(pool.status()["logs"])
        assert folder != Path(other.status()["logs"])
        workers = [*pids(pool), *pids(other)]
    assert not folder.exists()
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_a_stopped_pool_says_so(job: Any):
    pool = WorkerPool("cpu")
    handle = pool.submit(job(**LONG))
    pool.stop()
    pool.stop()
    with pytest.raises(JobCancelled):
        handle.result(0)
    with pytest.raises(PabError, match="has been stopped"):
        pool.submit(job())


def test_workers_that_cannot_start_end_the_job_with_their_log(job: Any, tmp_path: Path):
    (tmp_path / "broken_worker.py").write_text("print('here I am'); raise SystemExit(7)")
    with WorkerPool("cpu", module="broken_worker", environment={"PYTHONPATH": str(tmp_path)}) as pool:
        with pytest.raises(WorkerError, match=r"(?s)rank 0 \(cpu\) could not be started: .*exit code 7"):
            pool.submit(job()).result(60)
        assert "could not be started" in pool.status()["trouble"][0]


@pytest.mark.parametrize("ranks", [0, 2])
def test_teams_divide_the_devices(ranks: int):
    with pytest.raises(PabError, match=f"3 devices cannot be divided into teams of {ranks}"):
        WorkerPool("cpu*3", ranks=ranks)
