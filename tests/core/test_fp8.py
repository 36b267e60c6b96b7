"""Weights kept in eight bits: how near they are, what they save, and that modules run with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_net import Block, Net, empty_net, filled_net
from tiny_checkpoint import TRANSFORMER
from torch import Tensor, nn

from pab_core.errors import PabError
from pab_core.loading import load_weights
from pab_core.models.fp8 import Fp8Linear, Quantiser, large_linears
from pab_core.models.stdit3 import STDiT3, STDiT3Config


@pytest.fixture(scope="module")
def net() -> Net:
    return filled_net()


@pytest.fixture
def file(net: Net, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


def there_and_back(weight: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """A weight after eight bits, the scales of its rows, and the two sums; in two pieces, as large weights are."""
    bits, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight), 1)
    quantiser, half = Quantiser("cpu"), -(-len(weight) // 2)
    sums = [
        quantiser.quantise(weight[p], bits[p], scale[p]) for p in (slice(0, half), slice(half, None)) if len(weight[p])
    ]
    error, norm = (sum(column) for column in zip(*sums, strict=True))
    return bits.view(torch.float8_e4m3fn).float() * scale, scale, error, norm


def test_quantised_weights_are_as_near_as_the_format_allows():
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 64)[:, None]
    weight[5] = 0
    back, scale, squared_error, squared_norm = there_and_back(weight)
    relative = ((back - weight).norm(dim=1) / weight.norm(dim=1).clamp(min=1e-30)).tolist()
    # Rounding to 4 significant bits: at most 1/16 of a weight, and a root mean square of about 2.6 %.
    assert max(relative) < 0.03
    assert relative[5] == 0
    assert ((back - weight).abs() <= weight.abs() / 16 + scale * 2**-10).all()
    assert (scale.log2() == scale.log2().round()).all(), "powers of two"
    assert squared_error == pytest.approx(float((back - weight).double().square().sum()), rel=1e-5)
    assert squared_norm == pytest.approx(float(weight.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("peak", [448.0, 449.0, 480.0, 896.0, 1.0, 2.0**-30])
def test_the_largest_weight_never_overflows(peak: float):
    back = there_and_back(torch.tensor([[peak, -peak / 3]]))[0]
    assert back[0, 0].item() == pytest.approx(peak, rel=1 / 16)


def test_only_large_linears_in_blocks_are_quantised(net: Net):
    assert sorted(large_linears(net)) == ["blocks.0.back", "blocks.0.wide", "blocks.1.back", "blocks.1.wide"]
    with torch.device("meta"):
        released = STDiT3(STDiT3Config())
    names = large_linears(released)
    assert len(names) == 28 * 2 * 7  # qkv, proj; q, kv, proj of cross-attention; two of the MLP
    assert all(name.startswith(("spatial_blocks.", "temporal_blocks.")) for name in names)
    share = sum(linear.weight.numel() for linear in names.values()) / sum(p.numel() for p in released.parameters())
    assert share > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_module_with_weights_in_fp8(net: Net, file: Path, dtype: torch.dtype):
    module, plain = empty_net(), empty_net()
    loaded = load_weights(module, file, dtype, storage="fp8")
    load_weights(plain, file, dtype)
    block = module.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.wide, Fp8Linear)
    assert type(module.first) is type(block.gate) is nn.Linear
    assert loaded.fp8_layers == 4
    assert loaded.fp8_error == pytest.approx(0.026, abs=0.003)
    plain_size = sum(t.nbytes for t in plain.state_dict().values())
    assert plain_size - loaded.held == loaded.fp8_saved
    assert loaded.held == sum(t.nbytes for t in module.state_dict().values())
    weights = 4 * 2 * 256 * 256
    assert loaded.fp8_saved == weights * (dtype.itemsize - 1) - 4 * 2 * (512 + 256)  # a scale for each row
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    error = (module(x) - plain(x)).float().norm() / plain(x).float().norm()
    assert module(x).dtype == dtype
    assert 0 < error < 0.04


def test_casting_a_module_leaves_its_fp8_weights(net: Net, file: Path):
    module = empty_net()
    load_weights(module, file, torch.float32, storage="fp8")
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    exact = module(x)
    size = sum(t.nbytes for t in module.state_dict().values())
    module.to(torch.bfloat16)
    assert sum(t.nbytes for t in module.state_dict().values()) < size
    assert (module(x.bfloat16()) - exact).norm() / exact.norm() < 0.01, "bfloat16's own rounding and no more"


def test_fp8_has_room_in_float16(tmp_path: Path):
    """Values of the format go up to 448: their sums leave float16's range unless they are scaled first."""
    layer = nn.Sequential()
    layer.add_module("blocks", nn.ModuleList([nn.Linear(4096, 16)]))
    save_file({k: torch.full_like(t, 0.01) for k, t in layer.state_dict().items()}, tmp_path / "x.safetensors")
    load_weights(layer, tmp_path, torch.float16, storage="fp8")
    y = layer.get_submodule("blocks.0")(torch.ones(1, 4096, dtype=torch.float16))
    assert y[0, 0].item() == pytest.approx(41, rel=0.05)


def test_t5_runs_with_weights_in_fp8(tmp_path: Path):
    """Its feed-forward reads the type of a layer's weight to compute in."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
    config = T5Config.from_dict(sizes | {"feed_forward_proj": "gated-gelu"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = T5EncoderModel(config).eval()
    weights = {key: t for key, t in plain.state_dict().items() if key != "encoder.embed_tokens.weight"}
    save_file(weights, tmp_path / "x.safetensors")
    with torch.device("meta"):
        module = T5EncoderModel(config).eval()
    tied = {"encoder.embed_tokens.weight": "shared.weight"}
    assert load_weights(module, tmp_path, torch.float32, tied=tied, storage="fp8").fp8_layers == 2 * 7
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected, given = plain(ids).last_hidden_state, module(ids).last_hidden_state
    assert 0 < (given - expected).norm() / expected.norm() < 0.1


def test_stdit3_runs_with_weights_in_fp8(tmp_path: Path):
    config = STDiT3Config.from_dict(TRANSFORMER | {"hidden_size": 256, "num_heads": 4})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = STDiT3(config).eval()
    save_file({key: tensor.contiguous() for key, tensor in plain.state_dict().items()}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        module = STDiT3(config).eval()
    assert load_weights(module, tmp_path, torch.float32, storage="fp8").fp8_layers == 2 * 2 * 7
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, 2, 4, 4, generator=generator)
    y = torch.randn(1, 1, 5, 16, generator=generator)
    size = {"fps": torch.tensor([8.0]), "height": torch.tensor([32.0]), "width": torch.tensor([32.0])}
    with torch.no_grad():
        expected = plain(x, torch.tensor([500.0]), y, **size)
        given = module(x, torch.tensor([500.0]), y, **size)
    assert 0 < (given - expected).norm() / expected.norm() < 0.1


def test_fp8_where_there_is_none(file: Path):
    with pytest.raises(PabError, match=r"Weights in fp8 do not work on this device \(mps\)"):
        load_weights(empty_net(), file, torch.float32, "mps", storage="fp8")
