# type: ignore  (Triton's language is not Python to a type checker, and many a machine has no Triton)
"""Triton kernels of what stands between the products and attentions of a block: each number crosses the memory once.

Importing this needs Triton, which comes with CUDA builds of torch. Rows are the last axis of a tensor, a token's
channels; a row is read in two pieces, since kernels count in powers of two: 1152 channels are 1024 and 128. All
arithmetic is in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)  # of float8_e4m3fn
LEAST_SCALE = tl.constexpr(1.2e-38)  # of a row of zeros, which has no scale of its own: any does


@triton.jit
def _store_fp8(out, scales, row, start, a, rest, inside, head, tail, TAIL: tl.constexpr):
    """A row in eight bits, and its scale."""
    most = tl.max(tl.abs(head), 0)
    if TAIL > 0:
        most = tl.maximum(most, tl.max(tl.abs(tail), 0))
    scale = tl.maximum(most / FP8_MAX, LEAST_SCALE)
    tl.store(scales + row, scale)
    tl.store(out + start + a, (head * (1 / scale)).to(out.dtype.element_ty))
    if TAIL > 0:
        tl.store(out + start + rest, (tail * (1 / scale)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_modulate(
    x,
    shift,
    scale,
    out,
    scales,
    rows_each,
    stride,
    eps,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    FP8: tl.constexpr,
):
    """Layer norm without weights, then x * (1 + scale) + shift; `rows_each` rows share a row of shift and scale."""
    row = tl.program_id(0).to(tl.int64)
    start, table = row * WIDTH, row // rows_each * stride
    a = tl.arange(0, HEAD)
    x0 = tl.load(x + start + a).to(tl.float32)
    total = tl.sum(x0, 0)
    if TAIL > 0:
        rest = HEAD + tl.arange(0, TAIL)
        inside = rest < WIDTH
        x1 = tl.load(x + start + rest, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(x1, 0)
    else:
        rest, inside, x1 = a, a < 0, x0
    mean = total / WIDTH
    x0 = x0 - mean
    squares = tl.sum(x0 * x0, 0)
    if TAIL > 0:
        x1 = tl.where(inside, x1 - mean, 0.0)
        squares += tl.sum(x1 * x1, 0)
    factor = 1 / tl.sqrt(squares / WIDTH + eps)
    y0 = x0 * factor * (1 + tl.load(scale + table + a).to(tl.float32)) + tl.load(shift + table + a).to(tl.float32)
    y1 = x1
    if TAIL > 0:
        s1 = tl.load(scale + table + rest, mask=inside, other=0.0).to(tl.float32)
        y1 = x1 * factor * (1 + s1) + tl.load(shift + table + rest, mask=inside, other=0.0).to(tl.float32)
    if FP8:
        _store_fp8(out, scales, row, start, a, rest, inside, y0, y1, TAIL)
    else:
        tl.store(out + start + a, y0.to(out.dtype.element_ty))
        if TAIL > 0:
            tl.store(out + start + rest, y1.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x):
    """Approximated with tanh, which is a sigmoid of twice its argument."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def rows_in_fp8(x, out, scales, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, GELU: tl.constexpr):
    """Rows in eight bits with a scale each, after GELU where wanted."""
    row = tl.program_id(0).to(tl.int64)
    start, a = row * WIDTH, tl.arange(0, HEAD)
    x0 = tl.load(x + start + a).to(tl.float32)
    if TAIL > 0:
        rest = HEAD + tl.arange(0, TAIL)
        inside = rest < WIDTH
        x1 = tl.load(x + start + rest, mask=inside, other=0.0).to(tl.float32)
    else:
        rest, inside, x1 = a, a < 0, x0
    if GELU:
        x0 = _gelu(x0)
        if TAIL > 0:
            x1 = _gelu(x1)
    _store_fp8(out, scales, row, start, a, rest, inside, x0, x1, TAIL)


@triton.jit
def add_update(
    x,
    h,
    gate,
    out,
    kept,
    scales,
    rows_each,
    stride,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    GATE: tl.constexpr,
    KEEP: tl.constexpr,
    FP8: tl.constexpr,
):
    """out = x + gate * h; the update gate * h itself is written as well where it is to be kept, in eight bits if so."""
    row = tl.program_id(0).to(tl.int64)
    start, table = row * WIDTH, row // rows_each * stride
    a = tl.arange(0, HEAD)
    u0 = tl.load(h + start + a).to(tl.float32)
    if GATE:
        u0 *= tl.load(gate + table + a).to(tl.float32)
    tl.store(out + start + a, (tl.load(x + start + a).to(tl.float32) + u0).to(out.dtype.element_ty))
    if TAIL > 0:
        rest = HEAD + tl.arange(0, TAIL)
        inside = rest < WIDTH
        u1 = tl.load(h + start + rest, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            u1 *= tl.load(gate + table + rest, mask=inside, other=0.0).to(tl.float32)
        x1 = tl.load(x + start + rest, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + start + rest, (x1 + u1).to(out.dtype.element_ty), mask=inside)
    else:
        rest, inside, u1 = a, a < 0, u0
    if KEEP:
        if FP8:
            _store_fp8(kept, scales, row, start, a, rest, inside, u0, u1, TAIL)
        else:
            tl.store(kept + start + a, u0.to(kept.dtype.element_ty))
            if TAIL > 0:
                tl.store(kept + start + rest, u1.to(kept.dtype.element_ty), mask=inside)


@triton.jit
def _kept_part(value, scales, place, inside, WIDTH: tl.constexpr, FP8: tl.constexpr):
    part = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    if FP8:
        part *= tl.load(scales + place // WIDTH, mask=inside, other=0.0)
    return part


@triton.jit
def add_kept(
    x,
    first,
    second,
    third,
    first_scales,
    second_scales,
    third_scales,
    out,
    count,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    FP8: tl.constexpr,
):
    """out = x + the kept updates, one to three of them, in blocks of numbers whatever their rows."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    y = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    y += _kept_part(first, first_scales, place, inside, WIDTH, FP8)
    if PARTS > 1:
        y += _kept_part(second, second_scales, place, inside, WIDTH, FP8)
    if PARTS > 2:
        y += _kept_part(third, third_scales, place, inside, WIDTH, FP8)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_heads(
    qkv,
    q_weight,
    k_weight,
    eps,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """RMS norm of each head of queries and keys, in place: qkv [rows, 3, HEADS, WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    head, c = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    real = (head[:, None] < 2 * HEADS) & (c[None, :] < WIDTH)
    place = qkv + row * (3 * HEADS * WIDTH) + head[:, None] * WIDTH + c[None, :]
    x = tl.load(place, mask=real, other=0.0).to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + eps)
    of_q = tl.load(q_weight + c, mask=c < WIDTH, other=0.0).to(tl.float32)
    of_k = tl.load(k_weight + c, mask=c < WIDTH, other=0.0).to(tl.float32)
    weight = tl.where((head < HEADS)[:, None], of_q[None, :], of_k[None, :])
    tl.store(place, (x * factor[:, None] * weight).to(qkv.dtype.element_ty), mask=real)


@triton.jit
def attend_in_time(
    q,
    k,
    v,
    out,
    q_weight,
    k_weight,
    cosines,
    sines,
    frames,
    tokens,
    heads,
    stride,
    scale,
    eps,
    WIDTH: tl.constexpr,
    FRAMES: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """Attention of a token to itself in all frames, one program for each head of each token.

    PyTorch's kernels are made for long sequences: of 15 frames they use a sixth of what the memory gives, and they want
    queries, keys and values moved so that time comes last. Here they are read where the products left them, `stride`
    apart from token to token. Even and odd channels, which rotate as pairs, stay apart in the sums over them.
    """
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    token = program // heads % tokens
    sample = program // heads // tokens
    t, c = tl.arange(0, FRAMES), tl.arange(0, 2 * HALF)
    whole = (t[:, None] < frames) & (c[None, :] < WIDTH)
    row = (sample * frames * tokens + token + t.to(tl.int64) * tokens)[:, None]
    place = row * stride + head * WIDTH + c[None, :]
    qs = tl.load(q + place, mask=whole, other=0.0)
    ks = tl.load(k + place, mask=whole, other=0.0)
    vs = tl.load(v + place, mask=whole, other=0.0)
    if NORM:
        # Rounded to the model's precision, as RMSNorm leaves them.
        q32, k32 = qs.to(tl.float32), ks.to(tl.float32)
        q_factor = (1 / tl.sqrt(tl.sum(q32 * q32, 1) / WIDTH + eps))[:, None]
        k_factor = (1 / tl.sqrt(tl.sum(k32 * k32, 1) / WIDTH + eps))[:, None]
        of_q = tl.load(q_weight + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
        of_k = tl.load(k_weight + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None, :]
        qs, ks = (q32 * q_factor * of_q).to(vs.dtype), (k32 * k_factor * of_k).to(vs.dtype)
    if ROTATE:
        pair = tl.arange(0, HALF)
        real = (t[:, None] < frames) & (pair[None, :] < WIDTH // 2)
        angle = t[:, None] * (WIDTH // 2) + pair[None, :]
        cos = tl.load(cosines + angle, mask=real, other=0.0)
        sin = tl.load(sines + angle, mask=real, other=0.0)
        q0, q1 = tl.split(tl.reshape(qs.to(tl.float32), (FRAMES, HALF, 2)))
        k0, k1 = tl.split(tl.reshape(ks.to(tl.float32), (FRAMES, HALF, 2)))
        even_q, odd_q = (q0 * cos - q1 * sin).to(vs.dtype), (q1 * cos + q0 * sin).to(vs.dtype)
        even_k, odd_k = (k0 * cos - k1 * sin).to(vs.dtype), (k1 * cos + k0 * sin).to(vs.dtype)
        scores = tl.dot(even_q, tl.trans(even_k), input_precision="ieee")
        scores = tl.dot(odd_q, tl.trans(odd_k), scores, input_precision="ieee") * scale
    else:
        scores = tl.dot(qs, tl.trans(ks), input_precision="ieee") * scale
    scores = tl.where((t < frames)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    result = tl.dot(weights.to(vs.dtype), vs, input_precision="ieee")
    tl.store(out + row * (heads * WIDTH) + head * WIDTH + c[None, :], result.to(out.dtype.element_ty), mask=whole)
