"""Products of linear layers in eight bits, for GPUs that have them (compute capability 8.9 and later).

Each row of the input (a token) gets a scale of its own as it is turned into float8_e4m3fn, each row of the weight has
one already (models/fp8.py). The first is done by the kernel that the input comes from, where that is one of ours:
apart, it costs a good part of what the faster product gains.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..errors import PabError
from ..models.fp8 import Fp8Linear

LEAST_CAPABILITY = (8, 9)
GELU_CAPABILITY = (9, 0)  # for which fused.gelu_product is made: Ada has too little memory on its multiprocessors


def fp8_product(values: Tensor, scales: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of values * scales -> bfloat16 [..., out].

    Args:
        values, scales: float8_e4m3fn [..., in] and float32 [..., 1].
        weight, weight_scale, bias: as in an Fp8Linear, int8 [out, in], float32 [out, 1] and [out].
    """
    out = torch.ops.aten._scaled_mm(
        values.flatten(0, -2),
        weight.view(torch.float8_e4m3fn).t(),
        scales.flatten(0, -2),
        weight_scale.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return out.unflatten(0, values.shape[:-1])


def gelu_product_goes(layer: Fp8Linear, device: torch.device) -> bool:
    """Whether GELU and eight bits can be had on the way out of the layer's product, by fused.gelu_product."""
    if layer.bias is None or layer.in_features % 16 or layer.out_features % 16:
        return False  # descriptors want rows of whole 16 bytes
    if device.type == "cuda" and torch.cuda.get_device_capability(device) != GELU_CAPABILITY:
        return False
    return _has_descriptors()


@cache
def _has_descriptors() -> bool:
    return find_spec("triton.tools.tensor_descriptor") is not None  # since Triton 3.4


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """What stands against products in eight bits, in a sentence; None: nothing does."""
    if device.type != "cuda" or torch.version.hip:
        return "Arithmetic in eight bits needs an NVIDIA GPU; with weights alone in eight bits any device will do."
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has no arithmetic in eight bits: that begins with NVIDIA's Ada and Hopper generations."
    if dtype != torch.bfloat16:
        return "Arithmetic in eight bits goes with bfloat16: load the model in that precision."
    return None


def use_fp8_products(model: nn.Module) -> int:
    """Lets the layers of a model loaded with its weights in eight bits multiply in eight bits; -> how many they are.

    Only a fused run does so; others go on computing in the model's precision.

    Raises:
        PabError: no layer of the model has its weight in eight bits, or the device cannot do it.
    """
    layers = [module for module in model.modules() if isinstance(module, Fp8Linear)]
    if not layers:
        raise PabError("Arithmetic in eight bits needs a model loaded with its weights in eight bits (storage fp8).")
    first = next(model.parameters())
    reason = why_not(first.device, next(p.dtype for p in model.parameters() if p.dtype != torch.int8))
    if reason is not None:
        raise PabError(reason)
    for layer in layers:
        layer.products = True
        layer.bound = layer.find_bound()
    return len(layers)
