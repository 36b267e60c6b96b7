"""The demo models of Latte's and Open-Sora-Plan's kind: what their training writes, and the pieces of the training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pab_core.autoencoders import CausalVAE, build_vae
from pab_core.checkpoints import DEMOS, SAMPLERS, find_model
from pab_core.demo import train_causal_vae, train_dit, train_noise
from pab_core.demo.adherence import at_judges_rate, generate_batch, judge_videos, load_demo
from pab_core.demo.families import FAMILIES, LATTE, OPEN_SORA_PLAN, Family
from pab_core.demo.judge import FPS, load_judge
from pab_core.demo.noise_objective import NoiseModel, NoiseObjective
from pab_core.demo.render import render
from pab_core.demo.scenes import SceneFields, scenes_of
from pab_core.demo.train import WEIGHTS
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.noise_sampling import NoiseSampler
from pab_core.pipeline import Pipeline

CPU = torch.device("cpu")
PROMPT = "a red ball rolls left over a green floor"
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def random_vae(family: Family) -> train_noise.NoiseVAE:
    vae = build_vae(family.name, family.vae).eval().requires_grad_(False)
    assert isinstance(vae, train_noise.NoiseVAE)
    return vae


def random_model(family: Family) -> NoiseModel:
    """Weights larger than at the start of a training, so that every branch moves the result."""
    model = NoiseObjective(family, train_noise.frozen_text(WEIGHTS, CPU), CPU).build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_random(family: Family, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        preview = torch.rand(family.transformer["in_channels"] + 1, 3) - 0.5
        train_noise.export(folder, family, random_vae(family), random_model(family), preview)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family with random weights."""
    return {name: write_random(FAMILIES[name], tmp_path_factory.mktemp("demo") / name) for name in FAMILIES}


@each_family
def test_the_checkpoint_is_small_and_in_half_precision(family: Family, folders: dict[str, Path]) -> None:
    folder = folders[family.name]
    files = sorted(folder.rglob("*.safetensors"))
    assert [file.parent.name for file in files] == ["transformer", "vae"]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 8e6
    for file in files:
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}, file


@each_family
def test_the_families_own_path_makes_the_models_own_clip(family: Family, folders: dict[str, Path]) -> None:
    pipe = load_demo(str(folders[family.name]), CPU)
    made = pipe.generate(PROMPT, policy="pab246", seed=1, steps=4)
    assert made.frames.shape == (family.frames, 128, 192, 3)
    assert made.fps == family.fps
    assert made.warnings == ()
    assert made.frames.float().std() > 1
    assert pipe.preview(pipe.prepare_latents(0)).shape == (family.latent_size[1], 16, 24, 3)


@each_family
def test_the_folder_says_how_its_clips_are_made(family: Family, folders: dict[str, Path]) -> None:
    found = find_model(folders[family.name])
    assert found.spec.family == family.name
    assert found.spec.trained
    assert found.spec.max_tokens == train_dit.MAX_TOKENS
    assert isinstance(found.sampler, NoiseSampler)
    authors = SAMPLERS[family.name]
    assert isinstance(authors, NoiseSampler)
    assert found.sampler.scheduler == authors.scheduler
    assert found.sampler.timesteps(found.spec.steps).equal(authors.timesteps(found.spec.steps))


@each_family
def test_the_name_knows_what_the_folder_says(
    family: Family, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"latte": "demo-latte", "open-sora-plan": "demo-plan"}[family.name]
    assert DEMOS[name] == family.weights
    own = find_model(folders[family.name])
    assert replace(own.spec, name=name) == MODELS[name]
    monkeypatch.setitem(DEMOS, name, folders[family.name])
    named = find_model(name)
    assert named.spec == MODELS[name]
    assert named.text_encoder == WEIGHTS / "text_encoder"
    assert named.tokenizer == WEIGHTS / "tokenizer"
    assert Pipeline.load(name, device="cpu").encode_prompt(PROMPT).negative is not None
    monkeypatch.setitem(DEMOS, name, folders[family.name] / "nowhere")
    with pytest.raises(PabError, match=rf"no trained weights of {own.spec.title}.*--family {family.name} --output"):
        find_model(name)


@each_family
def test_training_and_sampling_mean_the_same_noise(family: Family) -> None:
    objective = NoiseObjective(family, train_noise.frozen_text(WEIGHTS, CPU), CPU)
    clean = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def perfect(x: Tensor, t: Tensor, step: int) -> Tensor:
        signal = objective.signal[t.long()].view(-1, 1, 1, 1, 1)
        return (x - signal.sqrt() * clean) / (1 - signal).sqrt()

    sampler = NoiseSampler.from_config(family.scheduler)
    made = sampler.sample(perfect, torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), 30)
    torch.testing.assert_close(made, clean, atol=0.05, rtol=0)  # steps have a length, and the last leaves some noise
    times = objective.times(4000, CPU)
    assert times.min() >= 0
    assert times.max() <= 999
    assert 0.2 < (times < 250).float().mean() < 0.6  # even ones alone would be a quarter
    assert (times > 900).float().mean() > 0.03


def test_a_dropped_caption_is_the_empty_negative_prompt(folders: dict[str, Path]) -> None:
    pipe = load_demo(str(folders["latte"]), CPU)
    text = pipe.encode_prompt(PROMPT)
    tokens = torch.zeros(2, train_dit.MAX_TOKENS, dtype=torch.long)
    assert pipe.text_encoder is not None
    ids = pipe.text_encoder.encoder.tokenizer(PROMPT)["input_ids"]
    tokens[:, : len(ids)] = torch.tensor(ids)
    frozen = train_noise.frozen_text(WEIGHTS, CPU)
    states, mask = frozen(tokens, torch.tensor([False, True]))
    assert text.negative is not None
    torch.testing.assert_close(states[:1, : len(ids)], text.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[1:, : len(ids)], text.negative, atol=1e-5, rtol=1e-4)
    assert mask.sum(1).tolist() == [len(ids)] * 2


@each_family
def test_the_folded_normalisation_keeps_pictures_and_scales_latents(family: Family) -> None:
    torch.manual_seed(1)
    vae, video = random_vae(family), torch.rand(1, 3, 5, 32, 48) * 2 - 1
    before, (mean, std) = vae.decode(vae.encode(video)), channel_statistics(vae, video)
    shift, scale = mean, std * 0.5 + 0.1
    old = train_noise.raw_latents(vae, video)
    old_noise = log_variance(vae, video)
    train_noise.fold_normalisation(vae, shift, scale)
    expected = (old - shift) / scale
    torch.testing.assert_close(vae.encode(video), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(vae.encode(video)), before, atol=1e-4, rtol=1e-3)
    factor = 1 / (scale * train_noise.latent_scale(vae))
    torch.testing.assert_close(log_variance(vae, video), old_noise + 2 * factor.log(), atol=1e-4, rtol=1e-4)


def channel_statistics(vae: train_noise.NoiseVAE, video: Tensor) -> tuple[Tensor, Tensor]:
    bank = train_dit.Bank(train_noise.raw_latents(vae, video), torch.zeros(1))
    return train_dit.spread(bank)


def log_variance(vae: train_noise.NoiseVAE, video: Tensor) -> Tensor:
    return vae.encode_moments(video).chunk(2, dim=1)[1]


def test_the_image_autoencoder_is_the_trained_one() -> None:
    """It reconstructs rendered frames, which random weights do not."""
    vae = train_noise.image_autoencoder(LATTE, train_noise.first_vae(WEIGHTS, CPU))
    scenes = scenes_of([SceneFields("cube", "red", "plain", "grey", "day", "left", "static")], torch.Generator())
    video, _ = render(scenes, num_frames=2, fps=4)
    torch.testing.assert_close(
        train_noise.raw_latents(vae, video), vae.encode_moments(video).chunk(2, dim=1)[0], atol=1e-4, rtol=1e-4
    )
    error = vae.decode(vae.encode(video)) - video
    assert error.square().mean() < 4 / 10**2.6  # 26 dB


def test_the_plan_clip_is_decoded_as_one_piece() -> None:
    vae = random_vae(OPEN_SORA_PLAN)
    assert isinstance(vae, CausalVAE)
    assert vae.latent_pieces(OPEN_SORA_PLAN.latent_size[1:], vae.authors_tiling) == []
    assert vae.latent_pieces((9, 16, 24), vae.authors_tiling) != []


def test_the_causal_autoencoder_learns() -> None:
    torch.manual_seed(0)
    vae = train_causal_vae.new_causal_vae()
    settings = replace(train_causal_vae.plan_vae_settings(1), crop=32, whole_share=0.0)
    loss_of = train_causal_vae.clip_loss(vae, settings)
    video = torch.linspace(-1, 1, 32).view(1, 1, 1, 1, 32).expand(1, 3, 5, 32, 32).contiguous()
    mask = torch.zeros(1, 1, 5, 32, 32)
    optimiser = torch.optim.AdamW(vae.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = loss_of(video, mask, 0.0)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
    for stage, shape in (("clips", video.shape), ("frames", video.shape)):
        assert train_causal_vae.reconstruct(vae, video, stage).shape == shape
    # As an image, a frame is encoded for itself; a clip's first frame is, too, but for the norms over all frames.
    assert train_causal_vae.encode_raw(vae, video).shape[2] == 2
    assert train_causal_vae.encode_raw(vae, video[:, :, :1]).shape[2] == 1


def test_the_autoencoders_of_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds trained for a step or two, and that of Latte's kind taken from what the training keeps."""
    monkeypatch.setattr("pab_core.demo.clip_source.SUPERSAMPLE", 1)
    settings = train_noise.NoiseSettings(dit_seconds=1.0, vae_seconds=0.1, rehearse=True)
    curves: train_noise.Curves = {}
    image = train_noise.autoencoder(LATTE, settings, WEIGHTS, tmp_path, CPU, curves)
    assert [point["stage"] for point in curves["vae"]][-1] == "frames"
    kept = replace(settings, vae_weights=tmp_path / "vae.safetensors")
    again = train_noise.autoencoder(LATTE, kept, WEIGHTS, tmp_path, CPU, {})
    for name, value in image.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    untouched = train_noise.autoencoder(LATTE, replace(settings, vae_seconds=0.0), WEIGHTS, tmp_path, CPU, {})
    assert not untouched.state_dict()["decoder.conv_out.weight"].equal(image.state_dict()["decoder.conv_out.weight"])
    short = replace(OPEN_SORA_PLAN, about=OPEN_SORA_PLAN.about | {"num_frames": 5})
    monkeypatch.setattr(train_causal_vae, "PLAN", short)
    train_noise.autoencoder(OPEN_SORA_PLAN, settings, WEIGHTS, tmp_path, CPU, curves)
    assert {point["stage"] for point in curves["vae"]} == {"frames", "clips"}
    train_noise.autoencoder(OPEN_SORA_PLAN, kept, WEIGHTS, tmp_path, CPU, {})


@each_family
def test_a_rehearsed_training_writes_a_model_that_loads(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the autoencoder's training, at a few frames of a clip's size."""
    monkeypatch.setattr("pab_core.demo.clip_source.SUPERSAMPLE", 1)
    short = replace(family, about=family.about | {"num_frames": 5})
    monkeypatch.setattr(train_noise, "CHECK_BATCHES", 2)
    monkeypatch.setattr(train_noise, "autoencoder", lambda *args: random_vae(family))
    settings = train_noise.NoiseSettings(dit_seconds=1.0, vae_seconds=0.0, clips=2, rehearse=True)
    curves = train_noise.train(short, settings, WEIGHTS, tmp_path, CPU)
    assert curves["dit"][-1]["validation"] > 0
    assert json.loads((tmp_path / "pab.json").read_text(encoding="utf-8"))["num_frames"] == 5
    pipe = Pipeline.load(tmp_path, text_encoder=WEIGHTS / "text_encoder", tokenizer=WEIGHTS / "tokenizer", device="cpu")
    videos = generate_batch(pipe, [PROMPT, "a blue cube spins"], [0, 1], "off", steps=4)
    assert videos.shape == (2, 5, 128, 192, 3)
    assert len(judge_videos(load_judge(), videos, pipe.spec.fps)) == 2


def test_the_judge_sees_clips_of_every_rate_at_its_own() -> None:
    times = torch.arange(16) / 8
    clip = times.view(1, 1, -1, 1, 1).expand(1, 3, 16, 2, 2)
    seen = at_judges_rate(clip, 8)
    torch.testing.assert_close(seen[0, 0, :, 0, 0], torch.arange(31) / FPS)
    assert at_judges_rate(clip, FPS) is clip


@each_family
def test_the_judge_is_right_on_clips_of_the_models_length(family: Family) -> None:
    judge = load_judge()
    wanted = [
        SceneFields("cube", "blue", "plain", "grey", "day", "right", "static"),
        SceneFields("sphere", "red", "striped", "sand", "sunset", "away", "pan left"),
        SceneFields("cone", "yellow", "checkered", "wood", "day", "spin", "static"),
        SceneFields("cylinder", "green", "striped", "blue", "night", "circle", "static"),
    ]
    video, _ = render(scenes_of(wanted, torch.Generator().manual_seed(3)), family.frames, fps=family.fps, supersample=1)
    seen = judge.verdicts(at_judges_rate(video, family.fps))
    assert [tuple(verdict) for verdict in seen] == [(f.shape, f.colour, f.motion) for f in wanted]
