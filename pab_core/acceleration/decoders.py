"""How the decoders of the video autoencoders run on feature maps: their own blocks and parameters, walked from outside.

Between blocks goes a Map, which knows what the next norm needs. Biases of convolutions are added by what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoders import causal, open_sora_plan, temporal
from .feature_maps import Map, added, attended, convolved, map_of, measured, normed, rows_of, spread

PHASES = "phase_weight"  # name of a buffer beside a convolution after an enlargement: feature_maps.phase_weight of it


class Conv(NamedTuple):
    """A convolution, and what it wants around its input."""

    layer: nn.Module
    padding: tuple[int, ...]
    before: int  # frames in front of a clip
    repeats: bool  # whether those are the first frame, else they are empty

    @classmethod
    def of(cls, module: Any) -> Conv:
        if isinstance(module, temporal.CausalConv3d):
            side, _, _, _, before, _ = module.padding
            return cls(module.conv, (0, side, side), before, False)
        if isinstance(module, causal.CausalConv3d):
            return cls(module.conv, module.conv.padding, module.past, True)  # pyright: ignore[reportArgumentType]
        return cls(module, module.padding, 0, False)

    def after_norm(self, given: Map, norm: nn.GroupNorm, bias: Tensor | None = None, own: bool = False) -> Tensor:
        """Norm, SiLU and convolution, this without its bias; otherwise as `normed`."""
        x = normed(given, norm, bias, before=self.before, own=own)
        if self.before:
            x[:, :, : self.before] = x[:, :, self.before : self.before + 1] if self.repeats else 0
        del given
        return convolved(self.layer, x, self.padding)

    def __call__(self, x: Tensor, bias: bool = True) -> Tensor:
        x = x.movedim(1, -1)
        if self.before:
            first = x[:, :1] if self.repeats else torch.zeros_like(x[:, :1])
            x = torch.cat([first.expand(-1, self.before, *x.shape[2:]), x], dim=1)
        return convolved(self.layer, x.contiguous().movedim(-1, 1), self.padding, bias=bias)


def _bias(module: Any) -> Tensor | None:
    return None if module is None else Conv.of(module).layer.bias  # pyright: ignore[reportReturnType]


def _residual(block: Any, given: Map) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a residual block: x, the update, and the bias that the latter still lacks."""
    first, second = Conv.of(block.conv1), Conv.of(block.conv2)
    h = first.after_norm(given, block.norm1)
    h = second.after_norm(measured(h), block.norm2, _bias(block.conv1), own=True)
    names = ("conv_shortcut", "conv3", "nin_shortcut")
    shortcut = next((getattr(block, name) for name in names if getattr(block, name, None) is not None), None)
    biases = [bias for bias in (_bias(block.conv2), _bias(shortcut)) if bias is not None]
    x = given.x if shortcut is None else Conv.of(shortcut)(given.x, bias=False)
    return x, h, sum(biases[1:], biases[0]) if biases else None


def residual(block: Any, given: Map) -> Map:
    return added(*_residual(block, given))


# ----------------------------------------------------------------------------------------------- diffusers' decoders


def attention(module: Any, given: Map) -> Map:
    """Attention of an image's pixels to each other."""
    rows = rows_of(normed(given, module.group_norm, silu=False))
    h = attended(*(layer(rows) for layer in (module.to_q, module.to_k, module.to_v)))
    del rows
    h = F.linear(h, module.to_out[0].weight)
    return added(given.x, map_of(h, given.x.shape[2:]), module.to_out[0].bias)


def enlarged(module: Any, given: Map) -> Map:
    """Twice the height and width, images."""
    height, width = given.x.shape[2:]
    phases = F.conv2d(given.x, module.get_buffer(PHASES), padding=1)
    return spread(phases, (2 * height, 2 * width), module.conv.bias)


def residual_in_time(block: Any, given: Map, frames: int) -> Map:
    """A residual block of each image, then one along the time of clips of so many `frames`; a learned mixture of both,
    which is the former's result and a share of the latter's update."""
    size = given.x.shape[2:]
    batch = len(given.x) // frames

    def clips(x: Tensor) -> Tensor:
        return rows_of(x).view(batch, frames, *size, -1).movedim(-1, 1)

    def images(x: Tensor) -> Tensor:
        return rows_of(x).view(batch * frames, *size, -1).movedim(-1, 1)

    x, h, bias = _residual(block.spatial_res_block, given)
    x, h, bias = _residual(block.temporal_res_block, added(clips(x), clips(h), bias))
    mixer = block.time_mixer
    share = mixer.mix_factor.sigmoid() if mixer.merge_strategy == "learned" else mixer.mix_factor
    return added(images(x), images(h), bias, share if mixer.switch_spatial_to_temporal_mix else 1 - share)


def image_decoder(decoder: Any, z: Tensor, image_only_indicator: Tensor | None = None, num_frames: int = 1) -> Tensor:
    """Either of diffusers' decoders: latents [N, Z, h, w] -> pictures [N, 3, H, W]. The one with time takes how many
    frames follow each other; that its mixtures could tell images from clips changes nothing in such as are known."""
    in_time = hasattr(decoder, "time_conv_out")
    frames = num_frames if image_only_indicator is None else image_only_indicator.shape[-1]
    block = partial(residual_in_time, frames=frames) if in_time else residual
    given = measured(Conv.of(decoder.conv_in)(z))
    middle = decoder.mid_block
    given = block(middle.resnets[0], given)
    for attend, after in zip(middle.attentions, middle.resnets[1:], strict=False):
        if attend is not None:
            given = attention(attend, given)
        given = block(after, given)
    for level in decoder.up_blocks:
        for module in level.resnets:
            given = block(module, given)
        for module in level.upsamplers or ():
            given = enlarged(module, given)
    x = _last(decoder.conv_out, given, decoder.conv_norm_out)
    del given
    if not in_time:
        return x
    clips = x.unflatten(0, (-1, frames)).transpose(1, 2)
    return decoder.time_conv_out(clips.contiguous()).transpose(1, 2).flatten(0, 1)


def _last(conv: Any, given: Map, norm: nn.GroupNorm) -> Tensor:
    x, bias = Conv.of(conv).after_norm(given, norm), _bias(conv)
    return x if bias is None else x + bias.view(-1, *[1] * (x.ndim - 2))


# ----------------------------------------------------------------------------------------------- our own decoders


def temporal_decoder(decoder: temporal.TemporalDecoder, z: Tensor) -> Tensor:
    """Of Open-Sora, as TemporalDecoder.forward."""
    given = measured(Conv.of(decoder.conv1)(z))
    for block in decoder.res_blocks:
        given = residual(block, given)
    for level in range(len(decoder.block_res_blocks) - 1, -1, -1):
        for block in decoder.block_res_blocks[level]:  # pyright: ignore[reportGeneralTypeIssues]
            given = residual(block, given)
        conv = decoder.conv_blocks[level - 1] if level > 0 else None
        if isinstance(conv, temporal.CausalConv3d):
            # Neighbouring channels become neighbouring frames.
            x = Conv.of(conv)(given.x).movedim(1, -1).unflatten(-1, (-1, decoder.repeats[level - 1]))
            given = measured(x.movedim(-1, 2).flatten(1, 2).contiguous().movedim(-1, 1))
    return _last(decoder.conv_out, given, decoder.norm1)


def frame_attention(module: causal.FrameAttention, given: Map) -> Map:
    """Of Open-Sora-Plan, whose norm is over the whole clip."""
    batch, channels, frames = given.x.shape[:3]
    size = given.x.shape[2:]
    rows = rows_of(normed(given, module.norm, silu=False)).view(batch * frames, -1, channels)

    def linear(conv: Any, h: Tensor, bias: bool = True) -> Tensor:
        return F.linear(h, conv.conv.weight.flatten(1), conv.conv.bias if bias else None)

    h = attended(*(linear(conv, rows) for conv in (module.q, module.k, module.v)))
    del rows
    h = linear(module.proj_out, h, bias=False).view(batch, -1, channels)
    return added(given.x, map_of(h, size), module.proj_out.conv.bias)


def enlarged_clip(module: causal.SpaceUpsample, given: Map) -> Map:
    """Twice the height and width, clips."""
    frames, height, width = given.x.shape[2:]
    images = given.x.transpose(1, 2).flatten(0, 1)
    phases = F.conv2d(images, module.get_buffer(PHASES), padding=1)
    return spread(phases, (frames, 2 * height, 2 * width), module.conv.conv.bias)


def stretched(x: Tensor) -> Tensor:
    """As causal.double_time."""
    if x.shape[2] == 1:
        return x
    rows = x.movedim(1, -1)  # [B, T, h, w, C]
    rest = rows[:, 1:]
    before, after = torch.cat([rest[:, :1], rest[:, :-1]], 1), torch.cat([rest[:, 1:], rest[:, -1:]], 1)
    out = rows.new_empty(len(rows), 2 * rows.shape[1] - 1, *rows.shape[2:])
    out[:, 0] = rows[:, 0]
    out[:, 1::2] = torch.lerp(rest, before, 0.25)
    out[:, 2::2] = torch.lerp(rest, after, 0.25)
    return out.movedim(-1, 1)


def stretched_and_mixed(module: causal.TimeUpsample, given: Map) -> Map:
    x = stretched(given.x)
    h = Conv.of(module.conv)(x)
    return measured(torch.lerp(h, x, module.mix_factor.sigmoid()))


def causal_decoder(decoder: open_sora_plan.Decoder, z: Tensor) -> Tensor:
    """Of Open-Sora-Plan, as Decoder.forward."""
    given = measured(Conv.of(decoder.conv_in)(z))
    for part in (decoder.mid.block_1, decoder.mid.attn_1, decoder.mid.block_2):
        given = CAUSAL[type(part)](part, given)
    for level in reversed(list(decoder.up)):
        assert isinstance(level, open_sora_plan.Level)
        for i, block in enumerate(level.block):
            given = residual(block, given)
            if len(level.attn):
                given = CAUSAL[type(level.attn[i])](level.attn[i], given)
        for name in level.resamplers:
            part = level.get_submodule(name)
            given = CAUSAL[type(part)](part, given)
    return _last(decoder.conv_out, given, decoder.norm_out)


CAUSAL: dict[type[nn.Module], Callable[[Any, Map], Map]] = {
    causal.ResidualBlock: residual,
    causal.FrameAttention: frame_attention,
    causal.SpaceUpsample: enlarged_clip,
    causal.TimeStretch: lambda module, given: measured(stretched(given.x)),
    causal.TimeUpsample: stretched_and_mixed,
}
