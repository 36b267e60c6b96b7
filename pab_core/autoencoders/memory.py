"""What the blocks of the decoders keep in memory at once, told from shapes.

The decoders are walked as they run, and at each block the tensors that are alive together are counted: what the block
works on, the input that its caller keeps until it returns, and the result so far. All numbers are elements of tensors.
Weights are not counted, nor what a library takes for itself inside one operation. No attention matrix is, either: the
backends of torch's scaled_dot_product_attention for these shapes make none. (Those of acceleration.decoding make
parts of one, and keep less than is counted here at their worst moment.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

from torch import nn

from . import causal, temporal
from .open_sora_plan import CausalVAE, Level


class Size(NamedTuple):
    """Of a feature map; for images, frames are what they are a batch of."""

    channels: int
    frames: int
    height: int
    width: int

    @property
    def elements(self) -> int:
        return self.channels * self.frames * self.height * self.width

    def wide(self, channels: int) -> Size:
        return self._replace(channels=channels)

    def larger(self, factor: int = 2) -> Size:
        return self._replace(height=self.height * factor, width=self.width * factor)


Step = Callable[[Size], tuple[int, Size]]  # size of the input -> most elements alive, the input's too, and the output


def chain(steps: Iterable[Step], size: Size) -> tuple[int, Size]:
    """Steps one after another, inside a block whose caller keeps the input until the block returns."""
    peak, given = 0, size.elements
    for number, step in enumerate(steps):
        most, size = step(size)
        peak = max(peak, most + (given if number else 0))
    return peak, size


# ------------------------------------------------------------------------------------------------ diffusers' modules


def conv(module: Any, size: Size) -> tuple[int, Size]:
    out = size.wide(module.out_channels)
    return size.elements + out.elements, out


def resnet(module: Any, size: Size) -> tuple[int, Size]:
    """Norm, activation, convolution, twice; at the end the input, the update, their sum and the scaled sum."""
    out = size.wide(module.out_channels)
    x, y = size.elements, out.elements
    return max(3 * x, 2 * x + y, x + (3 if module.conv_shortcut is None else 4) * y), out


def resnet_in_time(module: Any, size: Size) -> tuple[int, Size]:
    """A resnet of each frame, one along time, and a learned mixture of their results."""
    peak, out = resnet(module.spatial_res_block, size)
    return max(peak, size.elements + 5 * out.elements), out


def attention(module: Any, size: Size) -> tuple[int, Size]:
    """Input, norm, query, key, value, result, and the result in the input's order."""
    return 7 * size.elements, size


def upsample(module: Any, size: Size) -> tuple[int, Size]:
    """Input, its enlargement, and a convolution of that."""
    out = size.larger()
    return size.elements + 2 * out.elements, out


def norm_out(size: Size) -> tuple[int, Size]:
    return 2 * size.elements, size


def image_decoder(decoder: Any, size: Size) -> tuple[int, Size]:
    """Either of diffusers' decoders: latents -> pictures."""
    block = resnet_in_time if hasattr(decoder, "time_conv_out") else resnet
    middle = decoder.mid_block
    steps = [partial(conv, decoder.conv_in)]
    inner = [partial(block, middle.resnets[0])]
    for attend, after in zip(middle.attentions, middle.resnets[1:], strict=False):
        inner += [partial(attention, attend)] if attend is not None else []
        inner += [partial(block, after)]
    steps.append(partial(chain, inner))
    for level in decoder.up_blocks:
        inner = [partial(block, module) for module in level.resnets]
        inner += [partial(upsample, module) for module in level.upsamplers or ()]
        steps.append(partial(chain, inner))
    steps += [norm_out, partial(conv, decoder.conv_out)]
    return chain(steps, size)


# ------------------------------------------------------------------------------------------------ our own modules


def causal_conv(module: Any, size: Size) -> tuple[int, Size]:
    """A convolution of images, or either causal one: input, input with what lies before and around it, output."""
    if isinstance(module, nn.Conv2d):
        return conv(module, size)
    out = size.wide(module.conv.out_channels)
    if isinstance(module, temporal.CausalConv3d):
        side, _, _, _, before, _ = module.padding
        padded = Size(size.channels, size.frames + before, size.height + 2 * side, size.width + 2 * side).elements
    else:
        padded = size._replace(frames=size.frames + module.past).elements if module.past else 0
    return size.elements + padded + out.elements, out


def causal_resnet(module: Any, size: Size) -> tuple[int, Size]:
    """Either residual block of causal convolutions; as a resnet, but for the copies that these make."""
    first, out = causal_conv(module.conv1, size)
    second, _ = causal_conv(module.conv2, out)
    x, y = size.elements, out.elements
    peak = max(3 * x, x + first, x + y + second, x + 3 * y)
    shortcut = getattr(module, "conv3" if isinstance(module, temporal.ResidualBlock) else "nin_shortcut", None)
    if shortcut is not None:
        peak = max(peak, y + causal_conv(shortcut, size)[0])
    return peak, out


def frame_attention(module: Any, size: Size) -> tuple[int, Size]:
    """Input, query, key, value, result, its projection, the sum."""
    return 7 * size.elements, size


def time_stretch(module: Any, size: Size) -> tuple[int, Size]:
    """Input, the stretched part, both together."""
    if size.frames == 1:
        return size.elements, size
    out = size._replace(frames=2 * size.frames - 1)
    return size.elements + 2 * out.elements - out._replace(frames=1).elements, out


def time_upsample(module: Any, size: Size) -> tuple[int, Size]:
    """Input, the stretched clip, its share of the mixture, and a convolution of it; then that's share and the sum."""
    peak, out = time_stretch(module, size)
    return max(peak, size.elements + max(out.elements + causal_conv(module.conv, out)[0], 4 * out.elements)), out


def temporal_decoder(vae: temporal.TemporalVAE, size: Size) -> tuple[int, Size]:
    """Open-Sora's: one chunk of raw latents -> latents of images."""
    decoder = vae.decoder

    def stack(modules: Iterable[nn.Module]) -> Step:
        return partial(chain, [partial(causal_resnet, module) for module in modules])

    def into_time(times: int, size: Size) -> tuple[int, Size]:
        return 2 * size.elements, size.wide(size.channels // times)._replace(frames=size.frames * times)

    steps: list[Step] = [partial(causal_conv, vae.post_quant_conv), partial(causal_conv, decoder.conv1)]
    steps.append(stack(decoder.res_blocks))
    for level in reversed(range(len(decoder.block_res_blocks))):
        blocks = decoder.block_res_blocks[level]
        assert isinstance(blocks, nn.Sequential)
        steps.append(stack(blocks))
        if level > 0 and decoder.repeats[level - 1] > 1:
            steps.append(partial(causal_conv, decoder.conv_blocks[level - 1]))
            steps.append(partial(into_time, decoder.repeats[level - 1]))
    return chain([*steps, partial(end, decoder.conv_out)], size)


def end(conv_out: Any, size: Size) -> tuple[int, Size]:
    """Norm, activation, convolution; the input stays."""
    last, out = causal_conv(conv_out, size)
    return max(3 * size.elements, size.elements + last), out


def causal_decoder(vae: CausalVAE, size: Size) -> tuple[int, Size]:
    """Open-Sora-Plan's: raw latents -> video."""
    decoder = vae.decoder
    kinds: dict[type[nn.Module], Callable[[Any, Size], tuple[int, Size]]] = {
        causal.ResidualBlock: causal_resnet,
        causal.FrameResidualBlock: causal_resnet,
        causal.FrameAttention: frame_attention,
        causal.SpaceUpsample: upsample,
        causal.TimeStretch: time_stretch,
        causal.TimeUpsample: time_upsample,
    }

    def steps_of(*modules: nn.Module) -> Step:
        return partial(chain, [partial(kinds[type(module)], module) for module in modules])

    steps: list[Step] = [partial(causal_conv, vae.post_quant_conv), partial(causal_conv, decoder.conv_in)]
    steps.append(steps_of(decoder.mid.block_1, decoder.mid.attn_1, decoder.mid.block_2))
    for level in reversed(list(decoder.up)):
        assert isinstance(level, Level)
        blocks = [module for pair in zip_longest(level.block, level.attn) for module in pair if module is not None]
        steps.append(steps_of(*blocks, *(level.get_submodule(name) for name in level.resamplers)))
    return chain([*steps, partial(end, decoder.conv_out)], size)
