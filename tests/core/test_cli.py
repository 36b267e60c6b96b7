"""The command line on a tiny random model: what it prints, what it writes, and how it is cancelled."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from pab_core import terminal, video_io
from pab_core.broadcast import Window, customise
from pab_core.cli import app
from pab_core.models.registry import MODELS
from pab_core.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT = "a red ball rolls left over a green floor"


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C does its work also where a shell started the tests in the background, and so told them to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pab(*arguments: str | Path, **environment: str) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def words(text: str) -> list[str]:
    return text.split()


def lines(result: Result) -> dict[str, str]:
    """The lines of the summary by their first word."""
    assert result.exit_code == 0, result.output
    return {line.split()[0]: line[9:] for line in result.stdout.splitlines()}


# generate


def test_generate_writes_the_video_and_tells_what_it_took(folder: Path, tmp_path: Path):
    out = tmp_path / "out.mp4"
    result = pab("generate", PROMPT, "--model", folder, "--policy", "pab246", "--seed", "1", "-o", out)
    told = lines(result)
    assert list(told) == ["video", "time", "reused", "memory", "saved"]
    assert told["video"] == "17 frames, 48x32, 8 fps, 10 steps, seed 1"
    stages = re.findall(r"(\w+) (\d+\.\d\d) s", told["time"])
    assert [stage for stage, _ in stages] == ["load", "text", "denoise", "decode", "write", "total"]
    *parts, total = [float(seconds) for _, seconds in stages]
    assert sum(parts) == pytest.approx(total, abs=0.1)
    assert told["reused"] == "spatial 30%, temporal 40%, cross 50%, mlp 15% (pab246)"
    peak = re.fullmatch(r"peak (\d+) MB(, GPU \d+ MB)?", told["memory"])
    assert peak
    assert 50 < int(peak[1]) < 100_000
    assert told["saved"] == str(out)
    assert result.stderr == ""
    frames, fps = video_io.read_mp4(out)
    assert frames.shape == (17, 32, 48, 3)
    assert fps == 8
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_generate_is_the_library(folder: Path, tmp_path: Path):
    out = tmp_path / "out.mp4"
    options = words("--policy pab246 --spatial 3 --cross 5 --no-mlp --window 0.2:0.9 --seed 5 --steps 8 --guidance 2.5")
    pab("generate", PROMPT, "--model", folder, "-o", out, "--frames", "34", "--size", "32x48", *options)
    pipe = Pipeline.load(folder, device="cpu")
    policy = customise("pab246", "stdit3", 2, spatial=3, cross=5, mlp=False, window=Window(0.2, 0.9))
    made = pipe.generate(PROMPT, policy=policy, seed=5, steps=8, guidance=2.5, num_frames=34, width=32, height=48)
    metadata = video_io.read_metadata(out)
    assert metadata == made.metadata
    assert metadata["policy"] == "pab246 spatial=3 cross=5 mlp=off window=0.2:0.9"
    again = made.save(tmp_path / "again.mp4")
    assert (video_io.read_mp4(out)[0] == video_io.read_mp4(again)[0]).all()


def test_without_a_seed_the_one_drawn_is_told(folder: Path, tmp_path: Path):
    seeds = []
    for name in ("a.mp4", "b.mp4"):
        told = lines(pab("generate", PROMPT, "--model", folder, "--steps", "1", "-o", tmp_path / name))
        seeds.append(int(told["video"].rsplit(" ", 1)[1]))
        assert video_io.read_metadata(tmp_path / name)["seed"] == seeds[-1]
    assert seeds[0] != seeds[1]


def test_an_existing_file_needs_force(folder: Path, tmp_path: Path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    options = [PROMPT, "--model", folder, "--steps", "1", "-o", out]
    result = pab("generate", *options)
    assert result.exit_code == 2
    assert "already exists" in result.stderr
    assert "force" in result.stderr
    assert out.read_bytes() == b"old"
    assert pab("generate", *options, "--force").exit_code == 0
    assert len(video_io.read_mp4(out)[0]) == 17


def test_a_terminal_gets_a_progress_bar_and_a_short_run_in_a_pipe_is_silent(folder: Path, tmp_path: Path):
    options = [PROMPT, "--model", folder, "--steps", "3", "--force", "-o", tmp_path / "a.mp4"]
    shown = pab("generate", *options, TTY_COMPATIBLE="1", TTY_INTERACTIVE="1", TERM="xterm", COLUMNS="80").stderr
    assert "load" in shown
    assert "\x1b" in shown
    assert pab("generate", *options, TTY_COMPATIBLE="0").stderr == ""


def test_a_log_gets_a_line_now_and_then(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)
    options = ["--model", folder, "--steps", "3", "--frames", "1", "-o", tmp_path / "a.mp4"]
    told = pab("generate", PROMPT, *options, TTY_COMPATIBLE="0").stderr.splitlines()
    assert told[0] == "load"
    assert [line for line in told if line.startswith("denoise ")][-1] == "denoise 3/3"


def interrupt(*arguments: Any, **options: Any) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stage", ["from_checkpoint", "encode_prompt", "decode"])
def test_ctrl_c_is_one_line_and_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str):
    out = tmp_path / "out.mp4"
    monkeypatch.setattr(Pipeline, stage, interrupt)
    result = pab("generate", PROMPT, "--model", folder, "-o", out)
    assert result.exit_code == 130
    assert result.output == "Cancelled; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_file_is_written_keeps_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    plain = video_io.feed_ffmpeg

    def interrupted(*arguments: Any) -> None:
        plain(*arguments)
        assert len(list(tmp_path.iterdir())) == 2  # the new file is there, under another name
        interrupt()

    monkeypatch.setattr(video_io, "feed_ffmpeg", interrupted)
    result = pab("generate", PROMPT, "--model", folder, "--steps", "1", "--force", "-o", out)
    assert result.exit_code == 130
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_too_little_memory_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Pipeline, "denoise", fail)
    result = pab("generate", PROMPT, "--model", folder, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is not enough memory")


def test_a_bug_is_not_dressed_up_as_a_mistake(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Pipeline, "denoise", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pab("generate", PROMPT, "--model", folder, "-o", tmp_path / "a.mp4")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_from_outside_in_the_middle_of_the_steps(folder: Path, tmp_path: Path):
    """A real process, interrupted once the steps run."""
    script = (
        "import sys; from pab_core import pipeline; from pab_core.cli import main; plain = pipeline.Progress\n"
        "def telling(*a):\n    print('step', flush=True)\n    return plain(*a)\n"
        "pipeline.Progress = telling; main()"
    )
    out = tmp_path / "out.mp4"
    options = ["generate", PROMPT, "--model", str(folder), "--steps", "1000", "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors == "Cancelled; nothing was written.\n"
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


# schedule


@pytest.mark.parametrize("model", ["demo", "open-sora"])
@pytest.mark.parametrize("policy", ["off", "pab246", "pab357", "pab579"])
def test_schedule_as_json(model: str, policy: str):
    result = pab("schedule", "--model", model, "--policy", policy, "--json")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    names = ["model", "policy", "timesteps", "spatial", "temporal", "cross", "mlp_spatial", "mlp_temporal"]
    assert list(told) == names
    assert (told["model"], told["policy"]) == (model, policy)
    n = [1, 1, 1] if policy == "off" else [int(digit) for digit in policy[3:]]
    for kind, every in zip(("spatial", "temporal", "cross"), n, strict=True):
        assert told[kind] == [int(i % every != 0 and 9 <= i <= 25) for i in range(30)]
    blocks = [] if policy == "off" else list(range(math.ceil(MODELS[model].depth * 5 / 28)))
    expected = {str(i): blocks for i in (14, 15, 18, 19, 22, 23) if blocks}
    assert told["mlp_spatial"] == told["mlp_temporal"] == expected


def test_schedule_of_latte():
    told = json.loads(pab("schedule", "--model", "latte", "--policy", "pab236", "--json").stdout)
    assert told["timesteps"] == list(range(980, -1, -20))
    for kind, n in (("spatial", 2), ("temporal", 3), ("cross", 6)):
        assert told[kind] == [int(10 <= i <= 43 and i % n != 0) for i in range(50)]
    steps = (14, 15, 18, 19, 22, 23, 26, 27, 30, 31)
    assert told["mlp_spatial"] == told["mlp_temporal"] == {str(i): [0, 1, 2, 3, 4] for i in steps}
    refused = pab("schedule", "--model", "latte", "--size", "520x512")
    assert "it must be a multiple of 16" in refused.stderr


def test_schedule_takes_the_settings(folder: Path):
    options = words("--policy off --spatial 2 --temporal 4 --cross 6 --mlp --json")
    customised, named = (
        json.loads(pab("schedule", "--model", "open-sora", *arguments).stdout) for arguments in (options, ["--json"])
    )
    assert customised.pop("policy") == "off spatial=2 temporal=4 cross=6 mlp=on"
    assert named.pop("policy") == "pab246"
    assert customised == named
    options = words("--steps 10 --frames 17 --size 32x48 --window 0:1 --json")
    told = json.loads(pab("schedule", "--model", folder, *options).stdout)
    assert told["model"] == "tiny"
    assert told["spatial"] == [0, 1] * 5
    pipe = Pipeline.load(folder, device="cpu")
    assert told["timesteps"] == list(pipe.schedule("off", steps=10, num_frames=17, height=48, width=32).timesteps)
    assert next(iter(told["mlp_spatial"].values())) == [0]


def test_schedule_as_a_picture():
    result = pab("schedule", "--model", "open-sora", "--policy", "pab246", COLUMNS="80")
    assert result.exit_code == 0
    head, _, *rows, _, legend = result.stdout.splitlines()
    assert head == "Open-Sora 1.2, pab246: 30 steps, 51 frames, 854x480"
    assert [row.split()[0] for row in rows] == ["step", "spatial", "temporal", "cross", "mlp", "window", "timestep"]
    assert [row.split()[-1] for row in rows[1:5]] == ["30%", "43%", "47%", "4%"]
    assert "computed" in legend
    narrow = pab("schedule", "--model", "open-sora", COLUMNS="40").stdout
    assert narrow.count("spatial") == 2


def test_a_terminal_without_block_characters_gets_plain_ones():
    done = subprocess.run(
        [sys.executable, "-m", "pab_core", "schedule", "--model", "demo"],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"#########" in done.stdout


# The whole


def test_an_option_with_the_word_of_its_own_name_says_its_name():
    """Typer 0.27 takes the name from the word in the help where both are one: `--WAY WAY`."""
    seen = 0
    for function in commands(app):
        for name, hint in get_type_hints(function, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                if getattr(option, "metavar", None) == name.upper():
                    seen += 1
                    # Where an option stands in an annotation, Typer keeps the first of its names as its default.
                    assert option.default == f"--{name}", f"{function.__name__}: {name}"
    assert seen


def commands(group: typer.Typer) -> Iterator[Any]:
    yield from (command.callback for command in group.registered_commands)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance)


def test_help_names_the_commands():
    told = pab("--help").stdout
    for name in ("generate", "schedule", "bench"):
        assert name in told
    told = pab("generate", "--help", COLUMNS="120").stdout
    for option in ("--model", "--policy", "--seed", "--spatial", "--temporal", "--cross", "--no-mlp", "--window"):
        assert option in told


def test_a_wrong_command_is_plain_text_without_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "pab_core", "generat"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "No such command 'generat'" in done.stderr
    assert done.stderr.isascii()
