"""Weights of large linear layers kept in eight bits: half the memory of bfloat16, arithmetic as before.

A weight W [out, in] is kept as float8_e4m3fn values and one scale for each row: W = value * scale. The scale is the
power of two that brings the row's largest weight to between 224 and 448, the format's largest number. For a floating
format a power of two is as good as any other scale, and multiplying by it rounds nothing, in no compute precision and
without overflow in float16; so what is lost is the rounding to four significant bits alone, about 2.6 % of a weight.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = 448.0
# Smaller layers are not worth it: the memory is in the large ones.
LEAST_WEIGHTS = 2**16


class Fp8Linear(nn.Module):
    """A linear layer with its weight in eight bits; arithmetic in the type of its input.

    The bits are kept as int8, so that `module.to(dtype)` leaves them alone and code that reads the type of a layer's
    weight (T5's feed-forward does) does not take float8 for a type to compute in. Not for training.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.products = False  # whether runs that can do so may multiply in eight bits
        self.bound = (math.inf, math.inf)  # |output| <= bound[0] * the largest |input| + bound[1], where it is known
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features, 1, dtype=torch.float32), requires_grad=False)
        # A parameter like the others: what offloads parameters moves all of the layer.
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], both of x's type."""
        return F.linear(x, self.dequantised(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in that type."""
        return self.weight.view(torch.float8_e4m3fn).to(dtype) * self.scale.to(dtype)

    def find_bound(self) -> tuple[float, float]:
        """How far the output can go: the largest sum of a row's weights, without their signs, and the largest bias."""
        most = float(self.dequantised(torch.float32).abs().sum(1).max())
        return most, 0.0 if self.bias is None else float(self.bias.abs().max())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Quantiser:
    """Turns weights into eight bits on a device, in working memory that is used again and again."""

    def __init__(self, device: torch.device | str) -> None:
        self.work = torch.empty(2, 0, dtype=torch.float32, device=device)

    def quantise(self, rows: Tensor, bits: Tensor, scale: Tensor) -> tuple[float, float]:
        """Fills bits, int8 [n, in], and scale, float32 [n, 1], from rows of a weight, [n, in] of any floating type.

        Returns:
            The sums of (W - value * scale)^2 and of W^2.
        """
        if rows.numel() > self.work.shape[1]:
            self.work = torch.empty(2, rows.numel(), dtype=torch.float32, device=self.work.device)
        full, other = (block[: rows.numel()].view(rows.shape) for block in self.work)
        full.copy_(rows)
        _, exponent = torch.frexp(torch.abs(full, out=other).amax(dim=1, keepdim=True) / _LARGEST)
        scale.copy_(torch.ldexp(torch.ones_like(scale), exponent))
        values = bits.view(torch.float8_e4m3fn)
        values.copy_(torch.div(full, scale, out=other))
        other.copy_(values)
        other.mul_(scale).sub_(full)
        return float(other.square_().sum()), float(full.square_().sum())


def large_linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that fp8 is for, by name: the large ones inside repeated blocks.

    Embedders, modulation and the last projection, which stand outside, are few and sensitive, and other code reads the
    model's precision from them.
    """
    lists = [name + "." for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.Linear
        and part.weight.numel() >= LEAST_WEIGHTS
        and any(name.startswith(blocks) for blocks in lists)
    }


def replace_linears(module: nn.Module, linears: dict[str, nn.Linear]) -> None:
    """Puts an empty Fp8Linear, on the same device, in the place of each of these layers of the module."""
    for name, linear in linears.items():
        parent, _, own = name.rpartition(".")
        with linear.weight.device:
            layer = Fp8Linear(linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype)
        setattr(module.get_submodule(parent), own, layer)
