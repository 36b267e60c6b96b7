"""Weights onto modules: in which precision, from which files, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_net import Net, empty_net, filled_net
from tiny_checkpoint import TRANSFORMER
from torch import Tensor, nn

from pab_core import tensor_files
from pab_core.errors import PabError
from pab_core.loading import Loaded, load_weights, read_config, read_shapes, weight_files
from pab_core.models.stdit3 import STDiT3, STDiT3Config


@pytest.fixture(scope="module")
def net() -> Net:
    return filled_net()


@pytest.fixture
def file(net: Net, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


def refused(source: Path, module: nn.Module | None = None, **options: Any) -> str:
    with pytest.raises(PabError) as caught:
        load_weights(empty_net() if module is None else module, source, torch.float32, **options)
    return str(caught.value)


# --- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floating_tensors_are_converted_and_others_are_not(net: Net, file: Path, dtype: torch.dtype):
    module = empty_net()
    loaded = load_weights(module, file, dtype)
    assert loaded == Loaded(stored=loaded.stored, held=loaded.held)
    for key, tensor in net.state_dict().items():
        given = module.state_dict()[key]
        assert given.dtype == (dtype if tensor.is_floating_point() else torch.int64), key
        assert torch.equal(given, tensor.to(given.dtype)), key
    assert module(torch.zeros(1, 256, dtype=dtype)).dtype == dtype
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_files_of_every_precision(net: Net, tmp_path: Path, dtype: torch.dtype):
    weights = {key: t.to(dtype) if t.is_floating_point() else t for key, t in net.state_dict().items()}
    save_file(weights, tmp_path / "net.safetensors")
    module = empty_net()
    load_weights(module, tmp_path / "net.safetensors", torch.float32)
    assert torch.equal(module.last.weight, weights["last.weight"].float())


def test_a_loaded_module_holds_on_to_no_file(net: Net, file: Path):
    module = empty_net()
    load_weights(module, file, torch.float32)
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(module.last.weight, net.last.weight)


def test_tied_names_share_a_tensor(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    for name in ("a.weight", "b.weight"):
        with torch.device("meta"):
            module = Tied()
        save_file({name: torch.ones(3, 3)}, tmp_path / "x.safetensors")
        loaded = load_weights(module, tmp_path, torch.float32, tied={"a.weight": "b.weight"})
        assert module.a.weight.data_ptr() == module.b.weight.data_ptr()
        assert loaded.stored == 36


def test_progress_and_cancel(file: Path):
    told: list[tuple[int, int]] = []
    loaded = load_weights(empty_net(), file, torch.float32, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (loaded.stored, loaded.stored)

    def cancel(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        load_weights(empty_net(), file, torch.float32, progress=cancel)


# --- files that hold more ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "module."])
def test_a_file_of_a_whole_pipeline(net: Net, tmp_path: Path, prefix: str):
    weights = {prefix + key: tensor for key, tensor in net.state_dict().items()}
    others = {"first_stage_model.conv.weight": torch.zeros(2, 2), "cond_stage_model.last.weight": torch.zeros(2)}
    save_file(weights | others, tmp_path / "full.safetensors")
    module = empty_net()
    assert load_weights(module, tmp_path / "full.safetensors", torch.float32).left_out == 2
    assert torch.equal(module.last.weight, net.last.weight)


def test_a_prefix_hides_no_mistake(net: Net, tmp_path: Path):
    weights = {f"model.{key}": tensor for key, tensor in net.state_dict().items()}
    del weights["model.last.bias"]
    save_file(weights | {"model.extra": torch.zeros(1)}, tmp_path / "full.safetensors")
    told = refused(tmp_path / "full.safetensors")
    assert "do not fit the model that it is read as: keys 1 missing (last.bias), 1 unexpected (extra)." in told


def test_the_same_weights_twice(net: Net, tmp_path: Path):
    twice = {f"{prefix}.{key}": t.clone() for key, t in net.state_dict().items() for prefix in ("model", "ema")}
    save_file(twice, tmp_path / "x.safetensors")
    told = refused(tmp_path / "x.safetensors")
    assert "holds these weights twice, as " in told
    assert "model.*" in told
    assert "ema.*" in told


def test_weights_of_training_losses_are_left_out(net: Net, tmp_path: Path):
    save_file(net.state_dict() | {"loss.discriminator.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert load_weights(empty_net(), tmp_path, torch.float32).left_out == 1


# --- what is refused --------------------------------------------------------------------------------------------------


def test_no_tensor_is_read_where_keys_do_not_fit(net: Net, file: Path, monkeypatch: pytest.MonkeyPatch):
    def read(*arguments: Any) -> Tensor:
        raise AssertionError("a tensor is read before the keys are checked")

    monkeypatch.setattr(tensor_files, "_read", read)
    told = refused(file, empty_net(width=128))
    assert "of another shape (blocks.0.back.weight is [256, 512], not [128, 256], blocks.0" in told
    assert read_shapes([file])["last.weight"] == (4, 256)


def test_a_file_of_another_model_is_named(tmp_path: Path):
    with torch.device("meta"):
        transformer = STDiT3(STDiT3Config.from_dict(TRANSFORMER))
    save_file({"blocks.0.cross_attn.proj.lora_A.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert refused(tmp_path / "x.safetensors", transformer).endswith(
        "They look like a LoRA, which goes on top of a model."
    )


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"data_offsets": [0, 12]}, "has the wrong size"),
        ({"data_offsets": [8, 16]}, "bytes instead of"),
        ({"data_offsets": [-8, 0]}, "is no place"),
        ({"data_offsets": [0]}, "truncated"),
        ({"shape": [2.0]}, "is no place"),
        ({"shape": None}, "truncated"),
        ({"dtype": "F4"}, "of the type F4 (a), which is not known here"),
        ({"dtype": ["F32"]}, "truncated"),
    ],
    ids=str,
)
def test_headers_that_lie(tmp_path: Path, entry: dict[str, Any], words: str):
    text = json.dumps({"a": HEADER["a"] | entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert words in refused(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\xff" * 8, b"\x04" + bytes(7) + b"[1]]", b"\x02" + bytes(7) + b"{}x"]
)
def test_headers_that_are_none(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "is truncated or not a safetensors file" in refused(path)


def test_a_file_that_shrinks_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch):
    def shrink(done: int, total: int) -> None:
        os.truncate(file, file.stat().st_size // 2)

    assert "is truncated or not a safetensors file (it ends too early)" in refused(file, progress=shrink)


@pytest.mark.parametrize("what", ["folder", "header", "config"])
def test_what_the_user_may_not_read(file: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    """Refused by a stand-in for the system: whoever runs the tests may be allowed everything."""

    def deny(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    (file.parent / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(Path, {"folder": "iterdir", "header": "open", "config": "read_text"}[what], deny)
    sources = {"folder": file.parent, "header": file, "config": file.parent}
    read = read_config if what == "config" else partial(load_weights, empty_net(), dtype=torch.float32)
    with pytest.raises(PabError, match=r"cannot be read \(Permission denied\); check that your user may read it"):
        read(sources[what])


def test_a_file_that_is_not_there_and_one_of_another_kind(tmp_path: Path):
    assert "x.safetensors; it is incomplete" in refused(tmp_path / "x.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "x.gguf is no safetensors file; give a .safetensors file" in refused(tmp_path / "x.gguf")


def test_an_index_that_names_nothing(tmp_path: Path):
    for text in ("{}", '{"weight_map": []}'):
        (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        assert "names no files; fetch it again" in refused(tmp_path)


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_pickles_are_refused_with_the_way_to_convert_them(net: Net, tmp_path: Path):
    torch.save(net.state_dict(), tmp_path / "net.ckpt")
    told = refused(tmp_path)
    assert "holds weights only as net.ckpt, a format that can run code when opened and is never loaded here" in told
    command = told.split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    module = empty_net()
    load_weights(module, tmp_path, torch.float32)  # the safetensors file beside the pickle is taken
    assert torch.equal(module.last.weight, net.last.weight)


@pytest.mark.parametrize("name", ["net.ckpt", "net.bin", "net.pt"])
@pytest.mark.parametrize("nested", [False, True])
def test_tensors_in_a_pickle_where_the_caller_allows_them(net: Net, tmp_path: Path, name: str, nested: bool):
    weights = net.state_dict() | {"loss.logvar": torch.zeros(())}
    torch.save({"state_dict": weights, "epoch": 3, "optimizer": [1.0]} if nested else weights, tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        module = empty_net()
        loaded = load_weights(module, source, torch.bfloat16, allow_pickle_tensors=True)
        assert loaded.left_out == 1
        assert torch.equal(module.last.weight, net.last.weight.bfloat16())
        assert "never loaded here" in refused(source)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_with_more_than_tensors_runs_nothing(net: Net, tmp_path: Path):
    sprung = tmp_path / "sprung"
    for content in ({"state_dict": net.state_dict(), "x": Trap(sprung)}, Trap(sprung)):
        torch.save(content, tmp_path / "net.ckpt")
        told = refused(tmp_path / "net.ckpt", allow_pickle_tensors=True)
        assert "holds more than tensors and is refused, since it could run code" in told
        assert not sprung.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", b"\x80\x02}q\x00."])
def test_a_damaged_pickle(tmp_path: Path, content: bytes):
    (tmp_path / "net.ckpt").write_bytes(content)
    assert "net.ckpt is damaged, or holds more than tensors" in refused(tmp_path, allow_pickle_tensors=True)


def test_a_pickle_of_something_else(tmp_path: Path):
    torch.save([torch.zeros(1)], tmp_path / "net.ckpt")
    assert "is not a plain list of weights" in refused(tmp_path, allow_pickle_tensors=True)
    torch.save({"a": torch.zeros(1)}, tmp_path / "more.ckpt")
    assert "holds 2 .ckpt files" in refused(tmp_path, allow_pickle_tensors=True)
    assert [file.name for file in weight_files(tmp_path / "more.ckpt", allow_pickle_tensors=True)] == ["more.ckpt"]
