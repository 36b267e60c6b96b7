"""A pool over two simulated nodes of Ray, on the CPU: one video over both, replicas, and a node that is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from torch import Tensor

from pab_core.errors import PabError
from pab_core.parallel.pool.failures import JobCancelled
from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.pool import Handle
from pab_core.parallel.pool.ray_pool import RayPool
from pab_core.parallel.pool.watching import Patience
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing, and two nodes with a CPU each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    nodes = [made.add_node(**NODE) for _ in range(2)]
    made.wait_for_nodes()
    assert len(nodes) == 2
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def job(folder: Path) -> Callable[..., Job]:
    source = ModelSource.of(folder)
    return lambda **settings: Job(**{"model": source, "prompt": PROMPT, "seed": 1, "policy": "pab246", **settings})


def right(frames: Tensor | None, pipe: Pipeline, seed: int = 1, **settings: Any) -> bool:
    assert frames is not None
    expected = pipe.generate(PROMPT, seed=seed, policy="pab246", **settings).frames
    return int((frames.int() - expected.int()).abs().max()) <= 1


def denoising(handle: Handle) -> bool:
    assert handle.state in ("queued", "running"), handle.result(0)
    return handle.place is not None and handle.place.stage == "denoise" and handle.place.done > 2


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_many_videos_over_replicas(cluster: Cluster, job: Any, pipe: Pipeline):
    with RayPool(str(cluster.address), ranks=1) as pool:
        handles = [pool.submit(job(seed=seed)) for seed in range(4)]
        assert all(right(handle.result(180).frames, pipe, seed) for seed, handle in enumerate(handles))
        assert [row["state"] for row in pool.status()["workers"]] == ["ready", "ready"]


def test_one_video_over_two_nodes_also_when_one_is_lost(cluster: Cluster, job: Any, pipe: Pipeline):
    patience = Patience(beat=15.0)
    with RayPool(str(cluster.address), method="dsp", patience=patience) as pool:
        made = pool.submit(job()).result(180)
        assert right(made.frames, pipe)
        assert made.warnings == ()
        long = pool.submit(job(steps=1000))
        until(lambda: denoising(long))
        long.cancel()
        with pytest.raises(JobCancelled):
            long.result(20)
        # A node goes in the middle of a job: it is begun again on the other.
        handle, waiting = pool.submit(job(steps=600)), pool.submit(job(seed=2))
        until(lambda: denoising(handle))
        lost = next(iter(cluster.worker_nodes))
        cluster.remove_node(lost, allow_graceful=False)
        made = handle.result(240)
        assert right(made.frames, pipe, steps=600)
        assert any("was lost" in warning and "made again, on 1" in warning for warning in made.warnings)
        assert right(waiting.result(60).frames, pipe, 2)
        # With a new node the next team is whole again.
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        pool.release()
        until(lambda: pool.status()["workers"][0]["state"] == "off")
        assert right(pool.submit(job(seed=3)).result(180).frames, pipe, 3)
        assert len(pool.status()["workers"]) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 9}, "the cluster has 2 CPUs"),
        ({"workers": 2, "ranks": 3}, "teams of 3"),
        ({"method": "dps"}, "dsp"),
    ],
)
def test_what_the_cluster_has_not_is_told(cluster: Cluster, settings: dict[str, Any], said: str):
    with pytest.raises(PabError, match=said):
        RayPool(str(cluster.address), **settings)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no.such.host.invalid"])
def test_an_address_that_does_not_answer_is_told_in_time(address: str):
    if ray.is_initialized():
        ray.shutdown()
    start = time.monotonic()
    with pytest.raises(PabError, match="No cluster of Ray answers"):
        RayPool(address)
    assert time.monotonic() - start < 30
