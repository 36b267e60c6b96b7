"""Walking diffusers' schedulers: calls, guidance, and that no run leaves anything behind."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pab_core.errors import PabError
from pab_core.noise_sampling import SCHEDULERS, NoiseSampler, NoiseStep

# diffusers meets what NumPy 2 will drop one day
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SETTINGS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
SIGNAL = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)
SHAPE = (1, 4, 2, 3, 3)


def start(batch: int = 1) -> Tensor:
    return torch.randn(batch, *SHAPE[1:], generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Oracle:
    """Knows the clean latents, so it predicts the noise exactly; the learned variance beside it is nonsense."""

    def __init__(self) -> None:
        self.clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) / 2
        self.calls: list[tuple[int, float, int]] = []

    def __call__(self, x: Tensor, t: Tensor, step: int) -> Tensor:
        assert (t == t[0]).all()
        self.calls.append((len(x), float(t[0]), step))
        signal = SIGNAL[round(float(t[0]))].float()
        noise = (x - signal.sqrt() * self.clean) / (1 - signal).sqrt()
        return torch.cat([noise, torch.full_like(noise, torch.nan)], 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_finds_the_clean_latents_of_a_perfect_model(name: str):
    sampler, oracle = NoiseSampler(name, SETTINGS), Oracle()
    states: list[NoiseStep] = []
    found = sampler.sample(oracle, start(), 20, guidance=4.0, generator=seeded(), on_step=states.append)
    # Some end at timestep 0, which is not quite free of noise.
    assert (found - oracle.clean).abs().max() < 0.05
    timesteps = sampler.timesteps(20).tolist()
    assert oracle.calls == [(2, t, i) for i, t in enumerate(timesteps)]
    assert [(s.step, s.steps, s.timestep) for s in states] == [(i, len(timesteps), t) for i, t in enumerate(timesteps)]
    assert all((state.clean - oracle.clean).abs().max() < 0.02 for state in states)
    assert torch.equal(states[-1].latents, found)


def test_the_calls_of_the_authors_settings():
    assert NoiseSampler("DDIMScheduler", SETTINGS).timesteps(50).tolist() == list(range(980, -1, -20))
    calls = NoiseSampler("PNDMScheduler").timesteps(150)
    assert len(calls) == 159
    assert calls.tolist()[:5] == [894, 891, 891, 888, 888]
    assert len(NoiseSampler("HeunDiscreteScheduler").timesteps(10)) == 19


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_run_leaves_nothing_behind(name: str):
    class Stop(Exception):
        pass

    def stop(state: NoiseStep) -> None:
        if state.step == 5:
            raise Stop

    def model(x: Tensor, t: Tensor, step: int) -> Tensor:
        return (x * 1.1 + t[:, None, None, None, None] / 1000).tanh()

    sampler = NoiseSampler(name, SETTINGS)
    first = sampler.sample(model, start(), 10, generator=seeded())
    with pytest.raises(Stop):
        sampler.sample(model, start(), 10, generator=seeded(), on_step=stop)
    sampler.timesteps(7)
    assert torch.equal(sampler.sample(model, start(), 10, generator=seeded()), first)
    assert torch.equal(NoiseSampler(name, SETTINGS).sample(model, start(), 10, generator=seeded()), first)


def test_guidance_by_hand():
    """Batch order: without the prompt, with it. At a scale of 1 or less, with it alone."""
    seen: list[NoiseStep] = []

    def model(x: Tensor, t: Tensor, step: int) -> Tensor:
        both = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1).expand(2, 8, *SHAPE[2:])
        return both[-len(x) :]

    sampler = NoiseSampler("DDIMScheduler", SETTINGS)
    for guidance, noise in ((3.0, 4.0), (1.0, 2.0), (0.0, 2.0)):
        sampler.sample(model, start(), 2, guidance=guidance, on_step=seen.append)
        assert seen[-1].noise.shape == SHAPE
        assert seen[-1].noise.unique().tolist() == [noise]


def test_eta_draws_from_the_generator():
    sampler = NoiseSampler("DDIMScheduler", SETTINGS)
    runs = [sampler.sample(lambda x, t, step: x / 2, start(), 5, eta=1.0, generator=seeded()) for _ in range(2)]
    plain = sampler.sample(lambda x, t, step: x / 2, start(), 5)
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], plain)


def test_a_batch_is_its_videos():
    sampler, oracle = NoiseSampler("DDIMScheduler", SETTINGS), Oracle()
    both = sampler.sample(oracle, start(2), 5, guidance=3.0)
    alone = sampler.sample(oracle, start(2)[1:], 5, guidance=3.0)
    assert oracle.calls[0][0] == 4
    assert (both[1:] - alone).abs().max() < 1e-6


def test_a_config_is_read_as_diffusers_writes_it():
    config = SETTINGS | {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.29.0",
        "timestep_spacing": "trailing",
        "variance_type": "learned_range",
    }
    sampler = NoiseSampler.from_config(config)
    assert sampler.timesteps(4).tolist() == [999, 749, 499, 249]
    assert NoiseSampler("DDPMScheduler", sampler.settings).timesteps(4).tolist() == [999, 749, 499, 249]
    with pytest.raises(TypeError):
        sampler.settings["beta_end"] = 1.0  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("name", ["DDIM", "FlowMatchEulerDiscreteScheduler", "DiffusionPipeline", "", "../x"])
def test_an_unknown_scheduler_is_refused(name: str):
    with pytest.raises(PabError, match=r"no sampler named.*Known are DDIMScheduler, PNDMScheduler"):
        NoiseSampler.from_config({"_class_name": name})


def test_a_prediction_of_another_kind_is_refused():
    with pytest.raises(PabError, match="prediction_type is 'v_prediction'"):
        NoiseSampler("DDIMScheduler", {"prediction_type": "v_prediction"})


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "20", None])
def test_steps_are_a_whole_number_from_1(steps: Any):
    with pytest.raises(PabError, match="number of steps must be a whole number, 1 or more"):
        NoiseSampler().timesteps(steps)


def test_steps_beyond_what_a_scheduler_can():
    with pytest.raises(PabError, match="4 or more for PNDMScheduler, not 3"):
        NoiseSampler("PNDMScheduler").timesteps(3)
    assert len(NoiseSampler("PNDMScheduler").timesteps(4)) == 13
    with pytest.raises(PabError, match="cannot make a run of 1001 steps"):
        NoiseSampler().timesteps(1001)


@pytest.mark.parametrize("settings", [{"beta_schedule": "no such"}, {"num_train_timesteps": "many"}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]):
    with pytest.raises(PabError, match=r"cannot be set up as the checkpoint's scheduler_config\.json says"):
        NoiseSampler("DDIMScheduler", settings).timesteps(10)


IMPORTING = """
import sys, threading, time
from pab_core.noise_sampling import NoiseSampler

failed = []

def ask(later):
    while later and "diffusers" not in sys.modules:
        time.sleep(0.0005)
    try:
        NoiseSampler().timesteps(10)
    except AttributeError as error:
        failed.append(error)

threads = [threading.Thread(target=ask, args=(later,)) for later in (False, True, True)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
"""


def test_threads_may_ask_while_another_imports_diffusers():
    """As users of the studio do, who choose a model that needs it at the same moment."""
    subprocess.run([sys.executable, "-c", IMPORTING], check=True, timeout=300)
