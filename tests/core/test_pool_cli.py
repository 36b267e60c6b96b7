"""`pab generate` on several devices, and on the pool in the background: the same video, and mistakes told early."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from pab_core import video_io
from pab_core.cli import app
from pab_core.parallel.pool.door import read_address

PROMPT = "a red ball rolls left over a green floor"
OPTIONS = ["--policy", "pab246", "--spatial", "3", "--seed", "5", "--steps", "8"]


def pab(*arguments: Any) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PAB_WORKERS", str(tmp_path / "workers"))
    yield
    found = read_address()
    if found is not None:
        psutil.Process(found.pid).kill()


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one device makes."""
    out = tmp_path_factory.mktemp("alone") / "out.mp4"
    assert pab("generate", PROMPT, "--model", folder, *OPTIONS, "-o", out).exit_code == 0
    return out


def test_several_devices_make_the_video_of_one(folder: Path, tmp_path: Path, expected: Path):
    out = tmp_path / "out.mp4"
    options = ["--devices", "cpu*2", "--method", "dsp"]
    result = pab("generate", PROMPT, "--model", folder, *OPTIONS, *options, "-o", out)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["video", "time", "reused", "memory", "saved"]
    times = re.findall(
        r"(\w+) (-?\d+\.\d+) s", next(line for line in result.stdout.splitlines() if line.startswith("time"))
    )
    assert [stage for stage, _ in times] == ["load", "workers", "text", "denoise", "decode", "write", "total"]
    *stages, total = (float(seconds) for _, seconds in times)
    assert sum(stages) <= total + 0.1
    assert min(stages) >= 0
    assert " without the workers" in result.stdout
    assert video_io.read_metadata(out) == video_io.read_metadata(expected)
    frames, _ = video_io.read_mp4(out)
    others, _ = video_io.read_mp4(expected)
    assert abs(frames.astype(int) - others.astype(int)).mean() < 0.5


def test_the_pool_in_the_background_makes_it_too(folder: Path, tmp_path: Path, expected: Path):
    result = pab("generate", PROMPT, "--model", folder, "--workers", "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert "No pool of workers runs" in result.stderr
    started = pab("workers", "start", "--devices", "cpu", "--model", folder)
    assert started.exit_code == 0, started.output
    assert started.stdout.startswith("pool     process ")
    out = tmp_path / "out.mp4"
    result = pab("generate", PROMPT, "--model", folder, *OPTIONS, "--workers", "-o", out)
    assert result.exit_code == 0, result.output
    assert (video_io.read_mp4(out)[0] == video_io.read_mp4(expected)[0]).all()
    assert pab("workers", "stop").stdout == "The pool of workers has ended.\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "cpu*2", "--method", "cfg", "--guidance", "1"], "the guidance is off"),
        (["--devices", "cpu*2", "--method", "dsp", "--frames", "1"], "can use 1 ranks at most, not 2"),
        (["--devices", "7"], "no GPU that torch can use"),
        (["--devices", ""], "'' is no device"),
        (["--devices", "cpu*2", "--method", "dps"], "Did you mean dsp?"),
        (["--devices", "cpu", "--device", "cpu"], "--device is for a single device"),
        (["--devices", "cpu", "--offload", "parts"], "--offload is for a single device"),
        (["--devices", "cpu", "--workers"], "leave --devices out"),
        (["--workers", "--method", "dsp"], "when the pool is started"),
    ],
)
def test_options_that_cannot_be_are_told(folder: Path, tmp_path: Path, options: list[str], said: str):
    result = pab("generate", PROMPT, "--model", folder, *options, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.glob("*.mp4")) == []


def test_a_pool_that_auto_leaves_to_one_device_warns(folder: Path, tmp_path: Path):
    """Here whatever the clock says: there is nothing to divide."""
    out = tmp_path / "out.mp4"
    options = ["--devices", "cpu*2", "--frames", "1", "--guidance", "1"]
    result = pab("generate", PROMPT, "--model", folder, *OPTIONS, *options, "-o", out)
    assert result.exit_code == 0
    assert "2 devices would be no faster than one for this clip" in result.stderr
    assert len(video_io.read_mp4(out)[0]) == 1
