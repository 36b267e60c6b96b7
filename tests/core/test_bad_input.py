"""Every mistake gets one clear sentence, before a model is loaded where that can be, and nothing is lost or written."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pab_core import video_io
from pab_core.cli import app
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left"


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a model is loaded before the mistake is told")

    monkeypatch.setattr(Pipeline, "load", load)


def refused(*arguments: str | Path) -> str:
    """Runs the command, which must fail with one line on stderr; returns the line without its "Error: "."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    message = result.stderr.removeprefix("Error: ").strip()
    assert message[-1] in ".?"
    return message


# What is asked for

MISTAKES = [
    (["--policy", "pab24"], "There is no policy named 'pab24'. Did you mean pab246? Known are off, pab246"),
    (["--policy", "fast"], "There is no policy named 'fast'. Known are off, pab246, pab357, pab579"),
    (["--spatial", "0"], "The spatial broadcast range 0 is below 1"),
    (["--temporal", "-4"], "The temporal broadcast range -4 is below 1"),
    (["--cross", "2.5"], "The cross broadcast range must be a whole number of steps, not '2.5'"),
    (["--spatial", "two"], "The spatial broadcast range must be a whole number of steps, not 'two'"),
    (["--window", "0.85:0.3"], "The broadcast window 0.85:0.3 is reversed or empty"),
    (["--window", "0.3:1.5"], "The broadcast window 0.3:1.5 reaches outside the run"),
    (["--window", "-0.3:0.5"], "The broadcast window -0.3:0.5 reaches outside the run"),
    (["--window", "nan:0.5"], "The broadcast window nan:0.5 is not made of two numbers"),
    (["--window", "middle"], "'middle' is not a broadcast window"),
    (["--steps", "0"], "The number of steps must be a whole number, 1 or more, not 0"),
    (["--steps", "many"], "The number of steps must be a whole number, 1 or more, not 'many'"),
    (["--frames", "0"], "The number of frames must be a whole number, 1 or more, not 0"),
    (["--frames", "20"], "20 frames do not fit tiny: it makes 1 frame or a multiple of 17. Near are 17 and 34"),
    (["--frames", "5"], "5 frames do not fit tiny: it makes 1 frame or a multiple of 17. Near are 1 and 17"),
    (["--size", "100x64"], "The width 100 does not fit tiny: it must be a multiple of 8. Near are 96 and 104"),
    (["--size", "64x100"], "The height 100 does not fit tiny: it must be a multiple of 8. Near are 96 and 104"),
    (["--size", "0x64"], "The width 0 is not a whole number of pixels, 8 or more"),
    (["--size", "big"], "'big' is not a size"),
    (["--size", "64"], "'64' is not a size"),
    (["--size", "-8x64"], "'-8x64' is not a size"),
]
FOR_GENERATE = [
    (["--seed", "-1"], "The seed must be a whole number from 0 to 18446744073709551615, not -1"),
    (["--seed", "1.5"], "The seed must be a whole number from 0 to 18446744073709551615, not '1.5'"),
    (["--seed", str(2**64)], "The seed must be a whole number from 0 to"),
    (["--guidance", "-1"], "The guidance must be a number from 0 to 100, not -1.0"),
    (["--guidance", "nan"], "The guidance must be a number from 0 to 100, not nan"),
    (["--guidance", "strong"], "The guidance must be a number from 0 to 100, not 'strong'"),
    (["--device", "abacus"], "The device 'abacus' cannot be used"),
    (["--device", "cuda:99"], "The device 'cuda:99' cannot be used"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES + FOR_GENERATE, ids=lambda value: " ".join(value)[:24])
@pytest.mark.usefixtures("no_loading")
def test_generate_tells_a_mistake_before_it_loads(folder: Path, tmp_path: Path, options: list[str], message: str):
    told = refused("generate", PROMPT, "--model", folder, "-o", tmp_path / "a.mp4", *options)
    assert told.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=lambda value: " ".join(value)[:24])
def test_schedule_tells_a_mistake(folder: Path, options: list[str], message: str):
    assert refused("schedule", "--model", folder, *options).startswith(message)
    assert refused("schedule", "--model", folder, "--json", *options).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeat", "0"], "The number of rounds must be a whole number, 1 or more, not 0"),
        (["--policy", "pab24"], "There is no policy named 'pab24'"),
        (["--frames", "20"], "20 frames do not fit tiny"),
        (["--seed", "x"], "The seed must be a whole number"),
    ],
    ids=lambda value: " ".join(value)[:24],
)
@pytest.mark.usefixtures("no_loading")
def test_bench_tells_a_mistake_before_it_loads(folder: Path, options: list[str], message: str):
    assert refused("bench", "speed", "--model", folder, *options).startswith(message)


@pytest.mark.usefixtures("no_loading")
def test_unknown_models(tmp_path: Path):
    told = refused("generate", PROMPT, "--model", "dmeo", "-o", tmp_path / "a.mp4")
    assert told.startswith(
        "There is no model named 'dmeo'. Did you mean demo? Known are demo, demo-latte, demo-plan, open-sora"
    )
    told = refused("generate", PROMPT, "--model", tmp_path / "nowhere", "-o", tmp_path / "a.mp4")
    assert "or give a checkpoint's folder" in told
    told = refused("generate", PROMPT, "--model", "open-sora", "-o", tmp_path / "a.mp4")
    assert told.startswith(
        "Open-Sora 1.2 is not downloaded. Fetch it with `pab download open-sora`, or give the folder"
    )
    assert refused("schedule", "--model", "opensora").startswith(
        "There is no model named 'opensora'. Did you mean open-sora"
    )


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t "])
@pytest.mark.usefixtures("no_loading")
def test_an_empty_prompt(folder: Path, tmp_path: Path, prompt: str):
    told = refused("generate", prompt, "--model", folder, "-o", tmp_path / "a.mp4")
    assert told.startswith("The prompt is empty")


def test_an_empty_prompt_to_the_library(pipe: Pipeline):
    with pytest.raises(PabError, match="The prompt is empty"):
        pipe.generate(" ")


def test_an_over_long_prompt_is_cut_with_a_warning_that_says_where(folder: Path, pipe: Pipeline, tmp_path: Path):
    words = [f"{colour} {shape}" for colour in ("red", "green", "blue") for shape in ("ball", "cube", "cone")] * 4
    prompt = "a " + " over a ".join(words)
    options = ["--model", str(folder), "--steps", "1", "-o", str(tmp_path / "a.mp4")]
    result = CliRunner().invoke(app, ["generate", prompt, *options])
    assert result.exit_code == 0, result.output
    text = pipe.encode_prompt(prompt)
    assert text.tokens.shape[1] == 40
    assert result.stderr == f"Warning: {text.warning}\n"
    assert text.warning.startswith("The prompt is longer than the model reads (40 tokens): it was cut before '")
    # The part read and the part left out make up the prompt, and the part left out is unseen.
    assert prompt.endswith(text.left_out)
    assert len(text.left_out) > 60
    assert torch.equal(pipe.encode_prompt(prompt + " over a huge yellow wooden floor").tokens, text.tokens)
    assert pipe.encode_prompt(PROMPT).warning == ""
    assert video_io.read_metadata(tmp_path / "a.mp4")["prompt"] == prompt


@pytest.mark.parametrize("value", [2.0, "17", True, None])
def test_sizes_of_another_type_to_the_library(value: Any):
    for axis in range(3):
        size: list[Any] = [17, 32, 48]
        size[axis] = value
        with pytest.raises(PabError, match="whole number"):
            MODELS["demo"].check_size(*size)


def test_the_authors_own_size_is_taken():
    MODELS["open-sora"].check_size(51, 480, 854)
    with pytest.raises(PabError, match="Near are 848 and 856"):
        MODELS["open-sora"].check_size(51, 480, 850)


# Where the file goes


@pytest.mark.usefixtures("no_loading")
def test_an_output_that_cannot_be_is_told_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "there.mp4").write_bytes(b"old")
    for name, message in [
        ("there.mp4", "already exists"),
        ("a.avi", "must end in .mp4"),
        ("missing/a.mp4", "does not exist"),
        (".", "is a folder"),
    ]:
        assert message in refused("generate", PROMPT, "--model", folder, "-o", tmp_path / name)
    assert (tmp_path / "there.mp4").read_bytes() == b"old"

    def deny(**options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", deny)
    assert "cannot be written" in refused("generate", PROMPT, "--model", folder, "-o", tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["there.mp4"]


def test_a_failing_encoder_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_io.imageio_ffmpeg, "get_ffmpeg_exe", lambda: shutil.which("false") or "false")
    told = refused("generate", PROMPT, "--model", folder, "--steps", "1", "-o", tmp_path / "a.mp4")
    assert "a.mp4 was not written" in told
    assert list(tmp_path.iterdir()) == []
