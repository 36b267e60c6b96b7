# type: ignore  (Triton's language is not Python to a type checker, and many a machine has no Triton)
"""Triton kernels of what stands between the convolutions of a decoder: sums, group norm, SiLU, enlargement, softmax.

Importing this needs Triton. A feature map is rows of C channels, a pixel's, and lies in memory row after row; C is a
power of two. All arithmetic is in float32. A sample's rows are cut into chunks of ROWS * STEPS; each chunk gives the
mean of every channel and the sum of squares about it, and Chan's formula joins chunks and the channels of a group, so
nothing large is subtracted from anything large. Sizes are not specialised: few
compiled kernels serve them all.
"""

from __future__ import annotations

import triton
import triton.language as tl

AS_IS = tl.constexpr(0)
SUM = tl.constexpr(1)
SPREAD = tl.constexpr(2)


@triton.jit
def _tile(
    x, h, of_channel, factor, out, sample, first, pixels, width, frame_pixels,
    C: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """Rows `first` to `first + ROWS` of a sample, [ROWS, C], and which of them there are; see `moments`."""
    r, c = tl.arange(0, ROWS), tl.arange(0, C)
    row = first + r
    real = (row < pixels)[:, None]
    start = (sample.to(tl.int64) * pixels + first) * C
    inner = r[:, None] * C + c[None, :]
    if SOURCE == SPREAD:
        frame, pixel = row // frame_pixels, row % frame_pixels
        line, column = pixel // width, pixel % width
        high, wide = frame_pixels // width // 2 + 1, width // 2 + 1
        source = sample * (pixels // frame_pixels) + frame
        source = source.to(tl.int64) * (high * wide) + (line // 2 + line % 2) * wide + column // 2 + column % 2
        source = source * (4 * C) + (line % 2 * 2 + column % 2) * C
        y = tl.load(x + source[:, None] + c[None, :], mask=real, other=0.0).to(tl.float32) + of_channel[None, :]
    else:
        y = tl.load(x + start + inner, mask=real, other=0.0).to(tl.float32)
    if SOURCE == SUM:
        update = tl.load(h + start + inner, mask=real, other=0.0).to(tl.float32) + of_channel[None, :]
        if FACTOR:
            update *= tl.load(factor).to(tl.float32)
        y += update
    if SOURCE != AS_IS:
        rounded = y.to(out.dtype.element_ty)
        tl.store(out + start + inner, rounded, mask=real)
        y = rounded.to(tl.float32)
    return y, real


@triton.jit(do_not_specialize=["pixels", "width", "frame_pixels"])
def moments(
    x, h, bias, factor, out, found, pixels, width, frame_pixels,
    C: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    SOURCE: tl.constexpr, BIAS: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """Means and squares of a map's channels, a chunk for each program: found [samples, chunks, 2, C].

    The map is x as it is; or x + factor * (h + bias); or that of twice the size whose even and odd lines and columns
    lie in x beside each other: x [samples, frames, lines / 2 + 1, width / 2 + 1, 2, 2, C], of which a line's first or
    last place is not used, plus bias. A map that is made here is written to `out`, which may be h.
    """
    chunk, sample = tl.program_id(0), tl.program_id(1)
    first = chunk * (ROWS * STEPS)
    count = tl.minimum(pixels - first, ROWS * STEPS)
    c = tl.arange(0, C)
    if BIAS:
        of_channel = tl.load(bias + c).to(tl.float32)
    else:
        of_channel = tl.zeros([C], tl.float32)
    y, real = _tile(
        x, h, of_channel, factor, out, sample, first, pixels, width, frame_pixels, C, ROWS, SOURCE, FACTOR
    )  # fmt: skip
    # About the mean of the first rows, which is one of the chunk's own values: what cancels then is small.
    about = tl.sum(tl.where(real, y, 0.0), 0) / tl.minimum(count, ROWS)
    away = tl.where(real, y - about[None, :], 0.0)
    sums, squares = away, away * away
    for step in range(1, STEPS):
        y, real = _tile(
            x, h, of_channel, factor, out, sample, first + step * ROWS, pixels, width, frame_pixels,
            C, ROWS, SOURCE, FACTOR,
        )  # fmt: skip
        away = tl.where(real, y - about[None, :], 0.0)
        sums += away
        squares += away * away
    beyond = tl.sum(sums, 0) / count
    place = found + (sample * tl.num_programs(0) + chunk) * (2 * C) + c
    tl.store(place, about + beyond)
    tl.store(place + C, tl.maximum(tl.sum(squares, 0) - beyond * beyond * count, 0.0))


@triton.jit(do_not_specialize=["pixels", "chunks", "chunk"])
def group_scales(
    found, bias, weight, offset, scales, pixels, chunks, chunk, eps,
    C: tl.constexpr, EACH: tl.constexpr, MOST: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """What group norm multiplies a channel by and adds to it, a group of EACH channels for each program.

    found: of `moments`, of the map without `bias`, a chunk of `chunk` rows each. scales: [samples, 2, C].
    """
    group, sample = tl.program_id(0), tl.program_id(1)
    k, c = tl.arange(0, MOST), group * EACH + tl.arange(0, EACH)
    count = tl.maximum(tl.minimum(pixels - k * chunk, chunk), 0)[:, None].to(tl.float32)
    place = found + (sample * chunks + k[:, None]) * (2 * C) + c[None, :]
    real = (k < chunks)[:, None]
    means = tl.load(place, mask=real, other=0.0)
    squares = tl.load(place + C, mask=real, other=0.0)
    added = tl.zeros([EACH], tl.float32)
    if BIAS:
        added += tl.load(bias + c).to(tl.float32)
    means += added[None, :]
    share = count / pixels / EACH
    mean = tl.sum(tl.sum(means * share, 1), 0)
    away = means - mean
    variance = tl.sum(tl.sum(squares / pixels / EACH + away * away * share, 1), 0)
    scale = tl.load(weight + c).to(tl.float32) / tl.sqrt(variance + eps)
    shift = tl.load(offset + c).to(tl.float32) + (added - mean) * scale
    tl.store(scales + sample * (2 * C) + c, scale)
    tl.store(scales + sample * (2 * C) + C + c, shift)


@triton.jit(do_not_specialize=["pixels", "out_pixels", "out_first"])
def scaled(
    x, scales, out, pixels, out_pixels, out_first, C: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    """out = SiLU(scale * x + shift), or without SiLU, ROWS rows for each program; scales [samples, 2, C].

    A sample has `out_pixels` rows in `out`, and begins in the one numbered `out_first`. `out` may be x.
    """
    first, sample = tl.program_id(0) * ROWS, tl.program_id(1)
    r, c = tl.arange(0, ROWS), tl.arange(0, C)
    real = (first + r < pixels)[:, None]
    inner = r[:, None] * C + c[None, :]
    y = tl.load(x + (sample.to(tl.int64) * pixels + first) * C + inner, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(scales + sample * (2 * C) + c)
    shift = tl.load(scales + sample * (2 * C) + C + c)
    y = y * scale[None, :] + shift[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    start = (sample.to(tl.int64) * out_pixels + out_first + first) * C
    tl.store(out + start + inner, y.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["keys"])
def softmax_rows(scores, out, keys, scale, BLOCK: tl.constexpr):
    """Softmax of scale * scores, float32 [rows, keys], a row for each program."""
    start, k = tl.program_id(0).to(tl.int64) * keys, tl.arange(0, BLOCK)
    x = tl.load(scores + start + k, mask=k < keys, other=float("-inf")) * scale
    x = tl.exp(x - tl.max(x, 0))
    tl.store(out + start + k, (x / tl.sum(x, 0)).to(out.dtype.element_ty), mask=k < keys)


# Only Triton's interpreter takes tensors of the CPU.
RUN_ON_CPU = not isinstance(moments, triton.JITFunction)
