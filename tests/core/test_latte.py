"""LatteT2V beside diffusers' own Latte, and the parts of it that the fixtures do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pab_core.errors import PabError
from pab_core.models.latte import LatteConfig, LatteT2V
from pab_core.models.latte_layers import latte_branches
from pab_core.models.layers import Branch

RELEASED = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "sample_size": 64,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "video_length": 16,
}
SMALL = RELEASED | {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "video_length": 3,
}


def theirs(config: dict[str, Any]) -> torch.nn.Module:
    """diffusers' Latte of that config."""
    from diffusers.models.transformers.latte_transformer_3d import LatteTransformer3DModel

    return LatteTransformer3DModel(**config)


def small(**changes: Any) -> LatteT2V:
    torch.manual_seed(0)
    return LatteT2V(LatteConfig.from_dict(SMALL | changes)).eval()


def inputs(frames: int = 3, rows: int = 8, columns: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, frames, rows, columns), torch.tensor([7, 900]), torch.randn(2, 5, 12)


def test_the_released_size_has_the_names_and_shapes_of_the_released_checkpoint():
    with torch.device("meta"):
        ours = LatteT2V(LatteConfig.from_dict(RELEASED)).state_dict()
        released = theirs(RELEASED).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in released.items()}
    assert LatteConfig.from_dict(RELEASED) == LatteConfig()


@pytest.mark.parametrize("sample_size", [8, 128])
@torch.no_grad()
def test_it_computes_what_diffusers_computes(sample_size: int):
    config = SMALL | {"sample_size": sample_size}
    ours, reference = small(sample_size=sample_size), theirs(config).eval()
    reference.load_state_dict(ours.state_dict(), strict=True)
    x, t, text = inputs(rows=6, columns=10)
    assert (ours(x, t, text) - reference(x, t, text).sample).abs().max() < 1e-6


def test_branches_run_in_their_order_and_temporal_blocks_have_no_cross_attention():
    seen: list[Branch] = []

    def seam(branch: Branch, update: Any, x: Tensor, cond: Any) -> Tensor:
        seen.append(branch)
        value = update(x, cond)
        assert value.shape == x.shape
        return value

    model = small()
    with torch.no_grad():
        model(*inputs(), seam=seam)
        assert tuple(seen) == model.branches == latte_branches(2)
        seen.clear()
        model(*inputs(), enable_temporal_attentions=False, seam=seam)
    assert tuple(seen) == tuple(b for b in model.branches if b.stream == "spatial")
    assert [b.kind for b in latte_branches(1)] == ["spatial", "cross", "mlp", "temporal", "mlp"]


@torch.no_grad()
def test_padding_that_the_mask_names_has_no_influence():
    model = small()
    x, t, text = inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    alone = model(x, t, text[:, :3])
    assert (model(x, t, text, mask) - alone).abs().max() < 1e-6
    assert (model(x, t, text) - alone).abs().max() > 1e-4
    assert model(x, t, text, torch.zeros_like(mask)).isfinite().all()


@torch.no_grad()
def test_it_takes_other_lengths_than_it_was_trained_on():
    out = small()(*inputs(frames=5))
    assert out.shape == (2, 8, 5, 8, 8)
    assert out.isfinite().all()


@torch.no_grad()
def test_half_precision_stays_near():
    model = small()
    full = model(*inputs())
    half = model.to(torch.bfloat16)(*inputs())
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize(("entry", "value"), [("norm_type", "layer_norm"), ("activation_fn", "geglu")])
def test_a_config_of_another_kind_of_transformer_is_refused(entry: str, value: str):
    with pytest.raises(PabError, match=f"no Latte transformer.*{entry} = '{value}'"):
        LatteConfig.from_dict(RELEASED | {entry: value})
