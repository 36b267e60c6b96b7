"""Time of the kernels that a block of Open-Sora 1.2 XL/2 is made of: `python tests/gpu/kernels_480p.py`.

51 frames of 480x854 with guidance: 2 x 15 x 1590 tokens of 1152 channels, 300 text tokens, bf16. Medians in
milliseconds, each beside the arithmetic or memory rate that it reaches. Not collected by pytest: it needs a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab_core.acceleration import fused
from pab_core.acceleration.fused import (
    Rows,
    add_kept,
    add_update,
    attend_in_time,
    norm_heads,
    norm_modulate,
    rows_in_fp8,
)
from pab_core.models.layers import modulate, rotate_pairs

B, T, S, D, HEADS, TEXT = 2, 15, 1590, 1152, 16, 300
M, WIDTH = B * T * S, D // HEADS
FP8 = torch.float8_e4m3fn
GELU = torch.ops.aten._addmm_activation


def measure(name: str, run: Callable[[], Any], flops: float = 0, size: float = 0) -> None:
    from triton.testing import do_bench

    try:
        ms: Any = do_bench(run, warmup=20, rep=100, return_mode="median")
    except Exception as error:  # a kernel that this GPU or build lacks is a result as well
        print(f"{name:44} {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
        return
    rates = [f"{flops / ms / 1e9:7.0f} TFLOP/s"] if flops else []
    rates += [f"{size / ms / 1e9:7.2f} TB/s"] if size else []
    print(f"{name:44} {ms:8.3f} ms {' '.join(rates)}", flush=True)


def linears(x: torch.Tensor) -> None:
    for name, inner, outer in (("qkv", D, 3 * D), ("proj", D, D), ("fc1", D, 4 * D), ("fc2", 4 * D, D)):
        h = torch.randn(M, inner, device=x.device, dtype=x.dtype)
        weight, bias = torch.randn(outer, inner, device=x.device, dtype=x.dtype), torch.randn_like(x[0, 0, 0]).repeat(4)
        bias, flops = bias[:outer].contiguous(), 2.0 * M * inner * outer
        measure(f"{name} bf16", lambda h=h, w=weight, b=bias: F.linear(h, w, b), flops)
        if name == "fc1":
            measure("fc1 bf16, GELU in it", lambda h=h, w=weight, b=bias: GELU(b, h, w.t(), use_gelu=True), flops)
            y = F.linear(h, weight)
            measure("GELU apart", lambda y=y: F.gelu(y, approximate="tanh"), size=4.0 * M * outer)
        h8, w8 = h.to(FP8), weight.to(FP8)
        one = torch.ones((), device=x.device)
        rows, columns = torch.ones(M, 1, device=x.device), torch.ones(1, outer, device=x.device)
        for way, a, b in (("tensor", one, one), ("row", rows, columns)):
            for bias_too in (True, False):
                measure(
                    f"{name} fp8, a scale each {way}{', bias' if bias_too else ''}",
                    lambda a=a, b=b, h8=h8, w8=w8, bias=bias if bias_too else None: torch.ops.aten._scaled_mm(
                        h8, w8.t(), a, b, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
                    ),
                    flops,
                )


def attentions(x: torch.Tensor) -> None:
    def heads(batch: int, length: int) -> torch.Tensor:
        return torch.randn(batch, length, HEADS, WIDTH, device=x.device, dtype=x.dtype).transpose(1, 2)

    shapes = {"spatial": (B * T, S, S), "cross": (B, T * S, TEXT), "temporal": (B * S, T, T)}
    for name, (batch, queries, keys) in shapes.items():
        q, k, v = heads(batch, queries), heads(batch, keys), heads(batch, keys)
        flops = 4.0 * batch * HEADS * queries * keys * WIDTH
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

            def run(q: Any = q, k: Any = k, v: Any = v, backend: SDPBackend = backend) -> Any:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v)

            measure(f"{name} attention, {backend.name.lower().removesuffix('_attention')}", run, flops)


def own(x: torch.Tensor) -> None:
    """Our kernels, each beside what PyTorch makes of the same in float32: the relative error, then the time."""
    h, gate = torch.randn_like(x), torch.randn(B, 1, 1, D, device=x.device, dtype=x.dtype)
    shift, scale = torch.randn_like(gate), torch.randn_like(gate)
    weight, angles = torch.rand(WIDTH, device=x.device, dtype=x.dtype), torch.rand(T, WIDTH // 2, device=x.device)
    qkv, wide = (torch.randn(B, T, S, n * D, device=x.device, dtype=x.dtype) for n in (3, 4))
    heads = qkv.unflatten(-1, (3, HEADS, WIDTH))
    full, size = x.float(), 2.0 * M * D
    normed = modulate(F.layer_norm(full, (D,), eps=1e-6), shift.float(), scale.float())
    update = gate.float() * h.float()

    def tell(name: str, run: Callable[[], Any], expected: torch.Tensor, size: float) -> None:
        found = run()
        found = found.values.float() * found.scales if isinstance(found, Rows) else found.float()
        error = float((found - expected).norm() / expected.norm())
        measure(f"{name} (error {error:.1e})", run, size=size)

    tell("norm_modulate", lambda: norm_modulate(x, shift, scale, 1e-6), normed, 2 * size)
    tell("norm_modulate fp8", lambda: norm_modulate(x, shift, scale, 1e-6, fp8=True), normed, 1.5 * size)
    tell("rows_in_fp8", lambda: rows_in_fp8(x), full, 1.5 * size)
    expected = F.gelu(wide.float(), approximate="tanh")
    tell("rows_in_fp8 of GELU, 4 D", lambda: rows_in_fp8(wide, gelu=True), expected, 6 * size)
    tell("add_update", lambda: add_update(x, h, gate)[0], full + update, 3 * size)
    tell("add_update, kept", lambda: add_update(x, h, gate, keep=True)[1], update, 4 * size)
    tell("add_update, kept in fp8", lambda: add_update(x, h, gate, keep=True, fp8=True)[1], update, 3.5 * size)
    small = rows_in_fp8(h)
    for count in (1, 2, 3):
        tell(f"add_kept {count}", lambda n=count: add_kept(x, [h] * n), full + count * h.float(), (2 + count) * size)
    small_sum = full + small.values.float() * small.scales
    tell("add_kept 1 in fp8", lambda: add_kept(x, [small]), small_sum, 2.5 * size)

    def norm_both() -> torch.Tensor:
        norm_heads(heads, weight, weight, 1e-6)
        return heads[:, :, :, 0]

    expected = F.rms_norm(heads[:, :, :, 0].float(), (WIDTH,), weight.float(), 1e-6)
    tell("norm_heads, in place", norm_both, expected, 4 * size)
    qkv.normal_()
    q, k, v = heads.unbind(3)
    for warps in (1, 2, 4):
        fused.TIME_WARPS = warps
        for name, norm, rotation in (("", None, None), (", norm", weight, None), (", norm, rotation", weight, angles)):
            a, b, c = (part.float().permute(0, 2, 3, 1, 4) for part in (q, k, v))  # [B, S, heads, T, d]
            if norm is not None:
                a, b = (F.rms_norm(part, (WIDTH,), norm.float(), 1e-6) for part in (a, b))
            if rotation is not None:
                a, b = rotate_pairs(a, rotation), rotate_pairs(b, rotation)
            expected = F.scaled_dot_product_attention(a, b, c).permute(0, 3, 1, 2, 4).flatten(3)
            tell(
                f"attend_in_time, {warps} warps{name}",
                lambda norm=norm, rotation=rotation: attend_in_time(q, k, v, norm, norm, rotation),
                expected,
                4 * size,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", action="store_true", help="only the kernels of this project")
    given = parser.parse_args()
    x = torch.randn(B, T, S, D, device="cuda", dtype=torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {M} tokens")
    y = torch.empty_like(x)
    measure("copy of x", lambda: y.copy_(x), size=4.0 * M * D)
    measure("x + x", lambda: torch.add(x, y, out=y), size=6.0 * M * D)
    big = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    measure("8192^3 product", lambda: big @ big, 2.0 * 8192**3)
    own(x)
    if not given.own:
        attentions(x)
        linears(x)


if __name__ == "__main__":
    main()
