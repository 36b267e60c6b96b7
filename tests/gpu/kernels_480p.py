"""Time of the kernels that a block of Open-Sora 1.2 XL/2 is made of: `python tests/gpu/kernels_480p.py`.

51 frames of 480x854 with guidance: 2 x 15 x 1590 tokens of 1152 channels, 300 text tokens, bf16. Medians in
milliseconds, each beside the arithmetic or memory rate that it reaches. `--roofline FILE.svg` draws those that a run in
fused operations is made of under what the GPU's memory and its product of 8192^3 allow. Not collected by pytest: it
needs a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab_core.acceleration import fused
from pab_core.acceleration.attention import flash_attention
from pab_core.acceleration.fused import (
    TIME_WARPS,
    Fresh,
    Norm,
    Rows,
    attend_in_time,
    gelu_product,
    norm_heads,
    residual,
    rows_in_fp8,
)
from pab_core.models.layers import modulate, rotate_pairs

B, T, S, D, HEADS, TEXT = 2, 15, 1590, 1152, 16, 300
M, WIDTH = B * T * S, D // HEADS
FP8 = torch.float8_e4m3fn
GELU = torch.ops.aten._addmm_activation
SCALED = torch.ops.aten._scaled_mm
POINTS: list[tuple[str, float, float, float]] = []  # name, floating-point operations, bytes, seconds: for the roofline


def measure(name: str, run: Callable[[], Any], flops: float = 0, size: float = 0) -> None:
    from triton.testing import do_bench

    try:
        ms: Any = do_bench(run, warmup=20, rep=100, return_mode="median")
    except Exception as error:  # a kernel that this GPU or build lacks is a result as well
        print(f"{name:44} {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
        return
    if flops and size:
        POINTS.append((name.partition(" (")[0], flops, size, ms / 1e3))
    rates = [f"{flops / ms / 1e9:7.0f} TFLOP/s"] if flops else []
    rates += [f"{size / ms / 1e9:7.2f} TB/s"] if size else []
    print(f"{name:44} {ms:8.3f} ms {' '.join(rates)}", flush=True)


def linears(x: torch.Tensor) -> None:
    for name, inner, outer in (("qkv", D, 3 * D), ("proj", D, D), ("fc1", D, 4 * D), ("fc2", 4 * D, D)):
        h = torch.randn(M, inner, device=x.device, dtype=x.dtype)
        weight, bias = torch.randn(outer, inner, device=x.device, dtype=x.dtype), torch.randn_like(x[0, 0, 0]).repeat(4)
        bias, flops = bias[:outer].contiguous(), 2.0 * M * inner * outer
        size = 2.0 * (M * inner + inner * outer + M * outer)
        apart = name == "fc1"  # a run does it with GELU in it
        measure(f"{name} bf16", lambda h=h, w=weight, b=bias: F.linear(h, w, b), flops, 0 if apart else size)
        if apart:
            fc1 = lambda h=h, w=weight, b=bias: GELU(b, h, w.t(), use_gelu=True)  # noqa: E731
            measure("fc1 bf16, GELU in it", fc1, flops, size)
            y = F.linear(h, weight)
            measure("GELU apart", lambda y=y: F.gelu(y, approximate="tanh"), size=4.0 * M * outer)
            h8, w8 = rows_in_fp8(h), rows_in_fp8(weight)
            bound = float((w8.values.float() * w8.scales).abs().sum(1).max()), float(bias.abs().max())
            fused_fc1 = lambda h8=h8, w8=w8, b=bias, bound=bound: gelu_product(h8, w8, b, *bound)  # noqa: E731
            expected, found = F.gelu(F.linear(h, weight, bias).float(), approximate="tanh"), fused_fc1()
            error = float((found.values.float() * found.scales - expected).norm() / expected.norm())
            del expected, found
            size8 = 1.0 * (M * inner + inner * outer + M * outer)
            measure(f"fc1 fp8, GELU and eight bits in it (error {error:.1e})", fused_fc1, flops, size8)
        h8, w8 = h.to(FP8), weight.to(FP8)
        one = torch.ones((), device=x.device)
        rows, columns = torch.ones(M, 1, device=x.device), torch.ones(1, outer, device=x.device)
        for way, a, b in (("tensor", one, one), ("row", rows, columns)):
            for bias_too in (True, False):
                used = way == "row" and bias_too
                measure(
                    f"{name} fp8, a scale each {way}{', bias' if bias_too else ''}",
                    lambda a=a, b=b, h8=h8, w8=w8, bias=bias if bias_too else None: SCALED(
                        h8, w8.t(), a, b, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
                    ),
                    flops,
                    1.0 * (M * inner + inner * outer + 2 * M * outer) if used else 0,
                )


def attentions(x: torch.Tensor) -> None:
    def heads(batch: int, length: int) -> torch.Tensor:
        return torch.randn(batch, length, HEADS, WIDTH, device=x.device, dtype=x.dtype).transpose(1, 2)

    shapes = {
        "spatial": (B * T, S, S),
        "cross": (B, T * S, TEXT),
        "temporal": (B * S, T, T),
        "720p": (B * T, 3600, 3600),
        "Latte's": (32, 1024, 1024),
    }
    flash = flash_attention(x.device)
    for name, (batch, queries, keys) in shapes.items():
        q, k, v = heads(batch, queries), heads(batch, keys), heads(batch, keys)
        flops = 4.0 * batch * HEADS * queries * keys * WIDTH
        size = 4.0 * batch * HEADS * (queries + keys) * WIDTH
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

            def run(q: Any = q, k: Any = k, v: Any = v, backend: SDPBackend = backend) -> Any:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v)

            chosen = backend == SDPBackend.CUDNN_ATTENTION and name in ("spatial", "cross")
            backend_name = backend.name.lower().removesuffix("_attention")
            measure(f"{name} attention, {backend_name}", run, flops, size if chosen else 0)
        if flash is not None:
            parts = [part.transpose(1, 2) for part in (q, k, v)]
            measure(f"{name} attention, FlashAttention 4", partial(flash, *parts), flops)


def own(x: torch.Tensor) -> None:
    """Our kernels, each beside what PyTorch makes of the same in float32: the relative error, then the time."""
    h, gate = torch.randn_like(x), torch.randn(B, 1, 1, D, device=x.device, dtype=x.dtype)
    shift, scale = torch.randn_like(gate), torch.randn_like(gate)
    weight, angles = torch.rand(WIDTH, device=x.device, dtype=x.dtype), torch.rand(T, WIDTH // 2, device=x.device)
    qkv, wide = (torch.randn(B, T, S, n * D, device=x.device, dtype=x.dtype) for n in (3, 4))
    heads = qkv.unflatten(-1, (3, HEADS, WIDTH))
    full, size = x.float(), 2.0 * M * D
    update = gate.float() * h.float()

    def normed(y: torch.Tensor) -> torch.Tensor:
        return modulate(F.layer_norm(y, (D,), eps=1e-6), shift.float(), scale.float())

    def tell(name: str, run: Callable[[], Any], expected: torch.Tensor, size: float, each: float = 0) -> None:
        """each: operations for each number of x; 0 leaves it out of the roofline."""
        found = run()
        found = found.values.float() * found.scales if isinstance(found, Rows) else found.float()
        error = float((found - expected).norm() / expected.norm())
        measure(f"{name} (error {error:.1e})", run, each * M * D, size)

    tell("rows_in_fp8", lambda: rows_in_fp8(x), full, 1.5 * size, 3)
    expected = F.gelu(wide.float(), approximate="tanh")
    tell("rows_in_fp8 of GELU, 4 D", lambda: rows_in_fp8(wide, gelu=True), expected, 6 * size, 48)
    modulated, fresh = Norm(shift, scale, 1e-6), Fresh(gate, h)
    others = [torch.randn_like(x) for _ in range(3)]
    small = [rows_in_fp8(other) for other in others]
    sums = [full + sum((other.float() for other in others[:n]), torch.zeros(())) for n in (0, 1, 2, 3)]
    small_sum = full + small[0].values.float() * small[0].scales
    tell("norm", lambda: residual(x, norm=modulated)[1], normed(full), 2 * size, 8)
    tell("norm in fp8", lambda: residual(x, norm=modulated, rows_fp8=True)[1], normed(full), 1.5 * size)
    tell("add", lambda: residual(x, fresh)[0], full + update, 3 * size, 2)
    tell("add, sum in fp8 too", lambda: residual(x, fresh, rows_fp8=True)[1], full + update, 3.5 * size)
    tell("add, norm", lambda: residual(x, fresh, norm=modulated)[1], normed(full + update), 4 * size, 10)
    for n in (1, 2, 3):
        tell(f"add {n} kept", lambda n=n: residual(x, None, others[:n])[0], sums[n], (2 + n) * size)
    tell("add 1 kept in fp8", lambda: residual(x, None, small[:1])[0], small_sum, 2.5 * size)
    tell("add 2 kept, norm", lambda: residual(x, None, others[:2], norm=modulated)[1], normed(sums[2]), 5 * size, 10)
    expected = normed(sums[1] + update)
    tell("add, add 1 kept, norm", lambda: residual(x, fresh, others[:1], norm=modulated)[1], expected, 5 * size, 11)

    def kept(fp8: bool) -> Any:  # what is kept takes the place of what was added
        return residual(x, Fresh(gate, h.copy_(others[0])), keep=True, keep_fp8=fp8)[2]

    expected = gate.float() * others[0].float()
    tell("copy, add, keep", lambda: kept(False), expected, 6 * size)
    tell("copy, add, keep in fp8", lambda: kept(True), expected, 5.5 * size)

    def norm_both() -> torch.Tensor:
        norm_heads(heads, weight, weight, 1e-6)
        return heads[:, :, :, 0]

    expected = F.rms_norm(heads[:, :, :, 0].float(), (WIDTH,), weight.float(), 1e-6)
    tell("norm_heads, in place", norm_both, expected, 4 * size, 8)
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
                4.0 * T + 20 if rotation is not None and warps == TIME_WARPS else 0,
            )


def draw_roofline(path: str, copied: float, multiplied: dict[str, float]) -> None:
    """POINTS under the memory's rate (bytes a second) and those of products in bf16 and fp8 (operations a second)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for kind, rate in multiplied.items():
        reach = [0.3, rate / copied, 10_000]
        axes.loglog(reach, [min(x * copied, rate) / 1e12 for x in reach], color="black", lw=1)
        axes.text(
            10_000, 1.08 * rate / 1e12, f"8192³ product {rate / 1e12:.0f} TFLOP/s, {kind}", fontsize=8, ha="right"
        )
    axes.text(0.35, 0.75 * copied / 1e12, f"memory {copied / 1e12:.2f} TB/s", rotation=33, fontsize=8)
    for number, (name, flops, size, seconds) in enumerate(sorted(POINTS, key=lambda point: point[1] / point[2])):
        rate = multiplied["fp8" if "fp8" in name else "bf16"]
        share = seconds and max(flops / rate, size / copied) / seconds
        place = flops / size, flops / seconds / 1e12
        axes.plot(*place, "o", ms=5, label=f"{number + 1} {name}: {share:.0%}")
        axes.annotate(str(number + 1), place, (3, 3), textcoords="offset points", size=7)
    axes.set(xlabel="operations for each byte read or written", ylabel="TFLOP/s")
    title = f"{torch.cuda.get_device_name()}: kernels of a run, and the share of the roof that they reach"
    axes.set_title(title, size=10)
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(True, which="both", alpha=0.2)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", action="store_true", help="only the kernels of this project")
    parser.add_argument("--roofline", metavar="FILE", help="a picture, .svg or .png")
    given = parser.parse_args()
    x = torch.randn(B, T, S, D, device="cuda", dtype=torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {M} tokens")
    y = torch.empty_like(x)
    measure("copy of x", lambda: y.copy_(x), size=4.0 * M * D)
    measure("x + x", lambda: torch.add(x, y, out=y), 1.0 * M * D, 6.0 * M * D)
    big = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    measure("8192^3 product", lambda: big @ big, 2.0 * 8192**3, 6.0 * 8192**2)
    eighths, one = big.to(FP8), torch.ones((), device="cuda")
    measure(
        "8192^3 product, fp8",
        lambda: SCALED(eighths, eighths.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
        2.0 * 8192**3,
        4.0 * 8192**2,
    )
    (_, _, added, adding), *products = POINTS
    rates = {kind: flops / seconds for kind, (_, flops, _, seconds) in zip(("bf16", "fp8"), products, strict=False)}
    POINTS.clear()
    own(x)
    if not given.own:
        attentions(x)
        linears(x)
    if given.roofline:
        draw_roofline(given.roofline, added / adding, rates)


if __name__ == "__main__":
    main()
