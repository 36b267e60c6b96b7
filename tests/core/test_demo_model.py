"""The demo model's checkpoint as its training writes it: size, precision, loading by name, its absence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pab_core import checkpoints, video_io
from pab_core.cli import app
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"


def test_without_weights_the_name_says_how_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(checkpoints.DEMOS, "demo", tmp_path)
    with pytest.raises(PabError, match=r"no trained weights of the demo model.*pab_core\.demo\.train --output"):
        Pipeline.load("demo", device="cpu")
    result = CliRunner().invoke(app, ["generate", PROMPT, "-o", str(tmp_path / "a.mp4")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: This copy carries no trained weights of the demo model.")
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(app, ["schedule", "--model", "demo"]).exit_code == 0


def test_the_checkpoint_is_small_and_in_half_precision(demo_folder: Path):
    files = sorted(demo_folder.glob("*/*.safetensors"))
    assert [file.parent.name for file in files] == ["text_encoder", "transformer", "vae"]
    assert sum(file.stat().st_size for file in files) <= 16e6
    for file in files:
        floating = {value.dtype for value in load_file(file).values() if value.is_floating_point()}
        assert floating == {torch.float16}, file


def test_the_name_loads_it_and_makes_the_models_own_clip(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(checkpoints.DEMOS, "demo", demo_folder)
    out = tmp_path / "out.mp4"
    options = ["--model", "demo", "--policy", "pab246", "--seed", "1", "--steps", "4", "--device", "cpu"]
    result = CliRunner().invoke(app, ["generate", PROMPT, *options, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    frames, fps = video_io.read_mp4(out)
    assert (frames.shape, fps) == ((34, 128, 192, 3), 16)
    assert video_io.read_metadata(out)["model"] == "demo"


def test_what_is_known_without_weights_is_what_the_training_writes(demo_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(checkpoints.DEMOS, "demo", demo_folder)
    pipe = Pipeline.load("demo", device="cpu")
    assert pipe.spec == MODELS["demo"]
    _, with_weights = checkpoints.known_model("demo")
    monkeypatch.setitem(checkpoints.DEMOS, "demo", demo_folder / "nowhere")
    assert checkpoints.known_model("demo") == (pipe.spec, with_weights)


def test_every_word_of_the_prompt_is_a_token_of_its_own(demo_folder: Path):
    pipe = Pipeline.load(demo_folder, device="cpu")
    text = pipe.encode_prompt(PROMPT)
    assert text.tokens.shape[1] == len(PROMPT.split()) + 1
    assert text.warning == ""


@pytest.mark.parametrize(("device", "name", "expected"), [
    ("cpu", "open-sora", torch.float32),
    ("cuda", "open-sora", torch.bfloat16),
    ("cuda", "demo", torch.float32),
])  # fmt: skip
def test_default_precision(device: str, name: str, expected: torch.dtype):
    assert checkpoints.default_dtype(MODELS[name], torch.device(device)) == expected
