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
def _store_row(out, scales, row, start, a, rest, inside, head, tail, TAIL: tl.constexpr, FP8: tl.constexpr):
    """A row as it is, or in eight bits with its scale."""
    if FP8:
        most = tl.max(tl.abs(head), 0)
        if TAIL > 0:
            most = tl.maximum(most, tl.max(tl.abs(tail), 0))
        scale = tl.maximum(most / FP8_MAX, LEAST_SCALE)
        tl.store(scales + row, scale)
        head *= 1 / scale
        tail *= 1 / scale
    tl.store(out + start + a, head.to(out.dtype.element_ty))
    if TAIL > 0:
        tl.store(out + start + rest, tail.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _kept_part(value, scales, row, place, inside, FP8: tl.constexpr):
    part = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    if FP8:
        part *= tl.load(scales + row)
    return part


@triton.jit
def _sum(
    x, h, gate, first, second, third, scales1, scales2, scales3,
    out, row, gate_row, start, c, inside,
    FRESH: tl.constexpr, GATE: tl.constexpr, PARTS: tl.constexpr, PARTS_FP8: tl.constexpr,
):  # fmt: skip
    """One piece of a row: what x is now, rounded as it is kept, and the update that was added."""
    y = tl.load(x + start + c, mask=inside, other=0.0).to(tl.float32)
    update = y
    if FRESH:
        update = tl.load(h + start + c, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            update *= tl.load(gate + gate_row + c, mask=inside, other=0.0).to(tl.float32)
        y += update
    if PARTS > 0:
        y += _kept_part(first, scales1, row, start + c, inside, PARTS_FP8)
    if PARTS > 1:
        y += _kept_part(second, scales2, row, start + c, inside, PARTS_FP8)
    if PARTS > 2:
        y += _kept_part(third, scales3, row, start + c, inside, PARTS_FP8)
    rounded = y.to(out.dtype.element_ty)
    if FRESH or PARTS > 0:
        tl.store(out + start + c, rounded, mask=inside)
    return rounded.to(tl.float32), update


@triton.jit
def residual(
    x, h, gate, first, second, third, scales1, scales2, scales3, shift, scale,
    out, kept, kept_scales, rows, rows_scales,
    gate_each, gate_stride, norm_each, norm_stride, eps,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
    FRESH: tl.constexpr, GATE: tl.constexpr, KEEP: tl.constexpr, KEEP_FP8: tl.constexpr,
    PARTS: tl.constexpr, PARTS_FP8: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, ROWS_FP8: tl.constexpr,
):  # fmt: skip
    """What happens to the residual stream between two products, a row for each program.

    out = x + gate * h + the kept updates, up to three of them, as far as there are any; the update gate * h itself goes
    to `kept` where it is to be reused; and what the next product reads to `rows`: out, or its layer norm without
    weights times 1 + scale, plus shift. `gate_each` and `norm_each` rows share a row of gate, of shift and scale.
    """
    row = tl.program_id(0).to(tl.int64)
    start, gate_row = row * WIDTH, row // gate_each * gate_stride
    a = tl.arange(0, HEAD)
    y0, u0 = _sum(
        x, h, gate, first, second, third, scales1, scales2, scales3,
        out, row, gate_row, start, a, a < WIDTH, FRESH, GATE, PARTS, PARTS_FP8,
    )  # fmt: skip
    if TAIL > 0:
        rest = HEAD + tl.arange(0, TAIL)
        inside = rest < WIDTH
        y1, u1 = _sum(
            x, h, gate, first, second, third, scales1, scales2, scales3,
            out, row, gate_row, start, rest, inside, FRESH, GATE, PARTS, PARTS_FP8,
        )  # fmt: skip
    else:
        rest, inside, y1, u1 = a, a < 0, y0, u0
    if KEEP:
        _store_row(kept, kept_scales, row, start, a, rest, inside, u0, u1, TAIL, KEEP_FP8)
    if ROWS:
        if NORM:
            total = tl.sum(y0, 0)
            if TAIL > 0:
                total += tl.sum(y1, 0)
            mean = total / WIDTH
            y0 -= mean
            squares = tl.sum(y0 * y0, 0)
            if TAIL > 0:
                y1 = tl.where(inside, y1 - mean, 0.0)
                squares += tl.sum(y1 * y1, 0)
            factor = 1 / tl.sqrt(squares / WIDTH + eps)
            table = row // norm_each * norm_stride
            y0 = y0 * factor * (1 + tl.load(scale + table + a).to(tl.float32))
            y0 += tl.load(shift + table + a).to(tl.float32)
            if TAIL > 0:
                y1 = y1 * factor * (1 + tl.load(scale + table + rest, mask=inside, other=0.0).to(tl.float32))
                y1 += tl.load(shift + table + rest, mask=inside, other=0.0).to(tl.float32)
        _store_row(rows, rows_scales, row, start, a, rest, inside, y0, y1, TAIL, ROWS_FP8)


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
    _store_row(out, scales, row, start, a, rest, inside, x0, x1, TAIL, True)


@triton.jit
def _gelu_by_tanh(x):
    """The same by the GPU's own approximation of tanh, one instruction and good to eleven bits: enough for eight."""
    inner = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
    tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [inner], tl.float32, is_pure=True, pack=1)
    return 0.5 * x + 0.5 * x * tanh


@triton.jit(do_not_specialize=["rows"])
def gelu_product(
    x, weight, out, x_scales, weight_scales, bias, out_scales, rows, factor, term,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, TILE_COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    TILES_HIGH: tl.constexpr, PROGRAMS: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """GELU of x @ weight.T + bias, [rows, COLUMNS], by descriptors of x [rows, WIDTH], weight and out, in eight bits.

    Each row has its scale: that of out not by its largest number, which no program knows before all of the row is
    there, but by factor * x's + term, a bound on it. Each program makes one tile after another, so that the next one's
    numbers are under way while GELU is worked out; tiles lie in bands of TILES_HIGH, so that neighbouring programs
    read the same.
    """
    across: tl.constexpr = (COLUMNS + TILE_COLUMNS - 1) // TILE_COLUMNS
    down = tl.cdiv(rows, TILE)
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        band = tile // (TILES_HIGH * across)
        high = tl.minimum(down - band * TILES_HIGH, TILES_HIGH)
        row = (band * TILES_HIGH + tile % (TILES_HIGH * across) % high) * TILE
        column = tile % (TILES_HIGH * across) // high * TILE_COLUMNS
        total = tl.zeros((TILE, TILE_COLUMNS), dtype=tl.float32)
        for k in range(0, WIDTH, DEPTH):
            total = tl.dot(x.load([row, k]), weight.load([column, k]).T, total, input_precision="ieee")
        r, c = row + tl.arange(0, TILE), column + tl.arange(0, TILE_COLUMNS)
        scale = tl.load(x_scales + r, mask=r < rows, other=1.0)
        bound = tl.maximum(scale * factor + term, LEAST_SCALE)
        if column == 0:
            tl.store(out_scales + r, bound, mask=r < rows)
        total = total * scale[:, None] * tl.load(weight_scales + c, mask=c < COLUMNS, other=1.0)[None, :]
        total += tl.load(bias + c, mask=c < COLUMNS, other=0.0).to(tl.float32)[None, :]
        total = _gelu_by_tanh(total) if APPROXIMATE else _gelu(total)
        out.store([row, column], (total * (1 / bound)[:, None]).to(out.dtype))


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
