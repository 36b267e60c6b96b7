"""Checkpoint folders with something missing, damaged or hostile: one clear sentence, and nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import TRANSFORMER, write_json, write_module
from typer.testing import CliRunner

from pab_core.checkpoints import find_model
from pab_core.cli import app
from pab_core.errors import PabError
from pab_core.models.stdit3 import STDiT3, STDiT3Config
from pab_core.pipeline import Pipeline
from pab_core.sampling import RectifiedFlow


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "broken"))


WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "model.safetensors",
    "text_encoder": "model.safetensors",
}


def load_error(folder: Path) -> str:
    with pytest.raises(PabError) as caught:
        # T5's weights are read when the first prompt comes.
        Pipeline.load(folder, device="cpu").encode_prompt("a red ball")
    return str(caught.value)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_folder(broken: Path, part: str):
    shutil.rmtree(broken / part)
    told = load_error(broken)
    assert part in told
    assert "incomplete" in told


@pytest.mark.parametrize(
    "name",
    [
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/{file}" for part, file in WEIGHTS.items()),
    ],
)
def test_a_missing_file(broken: Path, name: str):
    (broken / name).unlink()
    told = load_error(broken)
    assert name.split("/")[0] in told
    assert "incomplete" in told
    assert name.split("/")[1] in told or "no safetensors file" in told


def test_a_missing_or_damaged_vocabulary(broken: Path):
    vocabulary = broken / "tokenizer" / "spiece.model"
    content = vocabulary.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>not found</html>"):
        vocabulary.write_bytes(damaged)
        assert "tokenizer" in load_error(broken)
    vocabulary.unlink()
    assert "has no spiece.model or tokenizer.json; it is incomplete" in load_error(broken)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda weights, key: weights.pop(key), "1 missing"),
        (lambda weights, key: weights.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
        (lambda weights, key: weights.update({key: torch.zeros(3, 5, 7)}), "1 of another shape"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_keys_that_do_not_fit(
    broken: Path, part: str, damage: Callable[[dict[str, torch.Tensor], str], Any], words: str
):
    path = broken / part / WEIGHTS[part]
    weights = load_file(path)
    key = sorted(weights)[0]
    damage(weights, key)
    save_file(weights, path)
    told = load_error(broken)
    assert "do not fit its config.json" in told
    assert words in told
    assert part in told
    assert key in told or "unexpected" in words


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(broken: Path, part: str, share: float):
    path = broken / part / WEIGHTS[part]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    told = load_error(broken)
    assert "truncated or not a safetensors file" in told
    assert str(path) in told


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 20, b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_safetensors(broken: Path, content: bytes):
    (broken / "vae" / WEIGHTS["vae"]).write_bytes(content)
    assert "truncated or not a safetensors file" in load_error(broken)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_without_a_scheduler_the_authors_sampler_is_taken(broken: Path):
    shutil.rmtree(broken / "scheduler")
    assert Pipeline.load(broken, device="cpu").sampler == RectifiedFlow()


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", None])
def test_pickled_weights_are_never_opened(broken: Path, tmp_path: Path, part: str, name: str | None):
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    safe = broken / part / WEIGHTS[part]
    safe.unlink()
    # None: a pickle under a safetensors name.
    (broken / part / (name or safe.name)).write_bytes(pickle.dumps(Trap(sprung)))
    told = load_error(broken)
    assert not sprung.exists()
    if name is None:
        assert "truncated or not a safetensors file" in told
    elif part == "vae":  # of which some come so: read by a reader that runs nothing
        assert name in told
    else:
        assert f"holds weights only as {name}" in told
        assert "get the safetensors version" in told


def test_a_checkpoints_own_code_is_not_run(broken: Path, tmp_path: Path):
    sprung = tmp_path / "sprung"
    (broken / "tokenizer" / "evil.py").write_text(f"open({str(sprung)!r}, 'w')", encoding="utf-8")
    path = broken / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    write_json(path, config)
    assert "tokenizer" in load_error(broken)
    assert not sprung.exists()


def test_a_config_that_is_no_json(broken: Path):
    for content in ("{", "[1]"):
        (broken / "vae" / "config.json").write_text(content, encoding="utf-8")
        assert str(broken / "vae" / "config.json") in load_error(broken)


def test_parts_that_do_not_belong_together(broken: Path):
    path = broken / "transformer" / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"hidden_size": 48})
    assert "do not fit its config.json" in load_error(broken)


@pytest.mark.parametrize(
    ("entry", "words"),
    [("caption_channels", "The text_encoder gives 16 channels"), ("in_channels", "The vae gives 4 channels")],
)
def test_a_transformer_of_another_checkpoint(broken: Path, entry: str, words: str):
    config = TRANSFORMER | {entry: 8}
    shutil.rmtree(broken / "transformer")
    module = STDiT3(STDiT3Config.from_dict(config))
    write_module(broken / "transformer", config, module, WEIGHTS["transformer"])
    told = load_error(broken)
    assert told.startswith(f"{words}, but the transformer's {entry} is 8")


def test_an_index_names_its_files_and_stays_in_its_folder(broken: Path):
    part = broken / "transformer"
    weights = load_file(part / WEIGHTS["transformer"])
    (part / WEIGHTS["transformer"]).unlink()
    keys = sorted(weights)
    shards = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for name, own in shards.items():
        save_file({key: weights[key] for key in own}, part / name)
    index = {"weight_map": {key: name for name, own in shards.items() for key in own}}
    write_json(part / "diffusion_pytorch_model.safetensors.index.json", index)
    assert Pipeline.load(broken, device="cpu").spec.name == "broken"
    (part / "b.safetensors").rename(broken / "b.safetensors")
    index["weight_map"] |= dict.fromkeys(shards["b.safetensors"], "../b.safetensors")
    write_json(part / "diffusion_pytorch_model.safetensors.index.json", index)
    assert "lacks b.safetensors" in load_error(broken)


def test_an_about_file_with_unknown_entries(broken: Path):
    write_json(broken / "pab.json", {"base": "open-sora", "frames_per_second": 8})
    with pytest.raises(PabError, match=r"pab\.json has entries that are not known: frames_per_second"):
        find_model(broken)


def test_a_broken_checkpoint_on_the_command_line(broken: Path, tmp_path: Path):
    (broken / "vae" / WEIGHTS["vae"]).write_bytes(b"")
    options = ["--model", str(broken), "-o", str(tmp_path / "a.mp4")]
    result = CliRunner().invoke(app, ["generate", "a red ball", *options])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "truncated or not a safetensors file" in result.stderr
    assert not (tmp_path / "a.mp4").exists()
