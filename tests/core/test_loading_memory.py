"""How much memory loading takes at its peak: at most 1.15 times the checkpoint."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pab_core.models.stdit3 import STDiT3, STDiT3Config

ROOT = Path(__file__).resolve().parent.parent.parent

# Run in a process of its own: prints by how many bytes its memory grew at most, and what it loaded.
MEASURE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pab_core.loading import load_weights

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

kind, source, config, dtype, storage = sys.argv[1:]
with torch.device("meta"):
    if kind == "t5":
        from transformers import T5Config, T5EncoderModel
        module = T5EncoderModel(T5Config(**json.loads(config)))
    else:
        from pab_core.models.stdit3 import STDiT3, STDiT3Config
        module = STDiT3(STDiT3Config.from_dict(json.loads(config)))
tied = {"encoder.embed_tokens.weight": "shared.weight"} if kind == "t5" else None
before = status("VmRSS")
loaded = load_weights(module, Path(source), getattr(torch, dtype), tied=tied, storage=storage or None)
peak = status("VmHWM") - before
last = list(module.state_dict().values())[-1].float().std().item()
print(json.dumps({"peak": peak, "stored": loaded.stored, "held": loaded.held, "std": last}))
"""


def write_random(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """A safetensors file of these shapes with random weights, as fast as the disk is; returns its bytes."""
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    header: dict[str, Any] = {}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    noise = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(dtype).view(torch.uint8).numpy().data
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(noise)):
            stream.write(noise[: end - start])
    return path.stat().st_size


def measure(kind: str, source: Path, config: dict[str, Any], dtype: str, storage: str = "") -> dict[str, Any]:
    """Loads it in a process of its own; bytes by which its memory grew at most, read, and held in the end."""
    command = [sys.executable, "-c", MEASURE, kind, str(source), json.dumps(config), dtype, storage]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")


@on_linux
def test_peak_memory_on_the_shapes_of_open_sora(tmp_path: Path):
    """All of the released XL/2, 1.1 billion weights, in bfloat16."""
    with torch.device("meta"):
        module = STDiT3(STDiT3Config())
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    file = tmp_path / "model.safetensors"
    size = write_random(file, shapes, torch.bfloat16)
    result = measure("stdit3", file, {}, "bfloat16")
    file.unlink()
    assert size > 2.2e9
    assert result["stored"] == result["held"] == pytest.approx(size, rel=1e-3)
    assert result["std"] == pytest.approx(1, abs=0.2), "what was written is what was loaded"
    assert result["peak"] <= 1.15 * size, f"{result['peak'] / size:.3f} of the checkpoint"
    assert result["peak"] >= 0.9 * size, "the measurement sees what is loaded"


T5: dict[str, Any] = {
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 10,
    "num_heads": 12,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
    "tie_word_embeddings": False,
}


@on_linux
@pytest.mark.parametrize(("stored", "dtype"), [(torch.float16, "float16"), (torch.float32, "bfloat16")])
def test_peak_memory_of_a_text_encoder_in_two_files(tmp_path: Path, stored: torch.dtype, dtype: str):
    """T5's shape at a tenth of its width and half its depth, large enough for the process's own noise not to matter."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        module = T5EncoderModel(T5Config(**T5))
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    del shapes["encoder.embed_tokens.weight"]
    keys = list(shapes)
    parts = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    size = sum(write_random(tmp_path / name, {k: shapes[k] for k in own}, stored) for name, own in parts.items())
    index = {"weight_map": {key: name for name, own in parts.items() for key in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    result = measure("t5", tmp_path, T5, dtype)
    assert size > 1.5e8
    assert result["stored"] == pytest.approx(size, rel=1e-2)
    assert result["peak"] <= 1.15 * result["held"], "half of the file where it is converted"


@on_linux
def test_peak_memory_with_weights_in_fp8(tmp_path: Path):
    config = {"hidden_size": 1152, "depth": 4, "num_heads": 16}
    with torch.device("meta"):
        module = STDiT3(STDiT3Config.from_dict(config))
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    size = write_random(tmp_path / "model.safetensors", shapes, torch.bfloat16)
    result = measure("stdit3", tmp_path / "model.safetensors", config, "bfloat16", "fp8")
    assert result["held"] < 0.6 * size
    assert result["peak"] <= 1.2 * result["held"]
