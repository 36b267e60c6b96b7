"""The decoders of the video autoencoders in fewer and other kernels, attached from outside.

    use_fast_decoders(vae)

Modules, parameters and their names stay as they are; encoding does, too. From then on the decoders walk through their
blocks here: channels come last in memory all the way, as convolutions want them; group norm and SiLU are one operation
on the statistics that the sum before has left; biases of convolutions are added by what comes next; and a convolution
after an enlargement works on the small picture. Results are equal within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoders import VideoVAE, causal, open_sora_plan, temporal
from .decoders import PHASES, causal_decoder, image_decoder, temporal_decoder
from .feature_maps import can_run, has_kernels, phase_weight


def use_fast_decoders(vae: VideoVAE) -> int:
    """Lets the decoders of a loaded autoencoder, on a GPU with Triton, run as said above; -> how many of them do.

    Decoders with parts that are not known here stay as they are, and all do on the CPU and where gradients are wanted.
    To be called before `offload`, which takes note of the parameters as they lie in memory.
    """
    found = 0
    for decoder in list(vae.modules()):
        forward = _forward_of(decoder)
        if forward is not None:
            _prepare(decoder)
            decoder.forward = partial(_decode, forward, decoder)
            found += 1
    return found


def _decode(forward: Callable[..., Tensor], decoder: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    with torch.cuda.device_of(x):  # on which Triton starts kernels
        return (forward if can_run(x) else type(decoder).forward)(decoder, x, *args, **kwargs)


def _prepare(decoder: nn.Module) -> None:
    for name, module in decoder.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and name != "time_conv_out":  # of three channels
            last = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.contiguous(memory_format=last)
        weight = _enlarging(module)
        if weight is not None:
            module.register_buffer(PHASES, phase_weight(weight.data), persistent=False)


def _enlarging(module: Any) -> Tensor | None:
    """The weight [O, I, 3, 3] of a convolution that follows an enlargement."""
    if isinstance(module, causal.SpaceUpsample):
        return module.conv.conv.weight[:, :, 0]
    return module.conv.weight if type(module).__name__ == "Upsample2D" else None


def _forward_of(decoder: nn.Module) -> Callable[..., Tensor] | None:
    """What does the work of a decoder, and None for other modules, and where one of its parts is not known."""
    from diffusers.models.autoencoders import autoencoder_kl_temporal_decoder, vae

    forwards: dict[type[nn.Module], Callable[..., Tensor]] = {
        vae.Decoder: image_decoder,
        autoencoder_kl_temporal_decoder.TemporalDecoder: image_decoder,
        temporal.TemporalDecoder: temporal_decoder,
        open_sora_plan.Decoder: causal_decoder,
    }
    forward = forwards.get(type(decoder))
    return forward if forward is not None and all(map(_is_known, decoder.modules())) else None


# Names of classes, torch's, diffusers' and ours, of which nothing else need be known.
PLAIN = {
    *("Conv2d", "Conv3d", "Linear", "SiLU", "Dropout", "Identity", "ModuleList", "Sequential"),
    *("UNetMidBlock2D", "UpDecoderBlock2D"),
    *("MidBlockTemporalDecoder", "UpBlockTemporalDecoder", "SpatioTemporalResBlock"),
    *("CausalConv3d", "Middle", "Level", "FrameAttention", "SpaceUpsample", "TimeStretch", "TimeUpsample"),
}


def _is_known(module: Any) -> bool:
    """Whether a module is one that can be part of a decoder here."""
    match type(module).__name__:
        case "GroupNorm":
            return has_kernels(module)
        case "ResnetBlock2D":
            plain = module.upsample is None and module.downsample is None and module.time_emb_proj is None
            plain = plain and module.time_embedding_norm != "scale_shift" and module.output_scale_factor == 1
            return plain and isinstance(module.nonlinearity, nn.SiLU)
        case "TemporalResnetBlock":
            return module.time_emb_proj is None and isinstance(module.nonlinearity, nn.SiLU)
        case "AlphaBlender":
            return module.merge_strategy in ("learned", "fixed")
        case "Attention":
            plain = module.spatial_norm is None and module.norm_q is None and module.norm_k is None
            plain = plain and module.group_norm is not None and module.residual_connection
            return plain and module.rescale_output_factor == 1 and module.heads == 1
        case "Upsample2D":
            plain = module.norm is None and module.use_conv and module.interpolate and not module.use_conv_transpose
            return plain and module.name == "conv" and module.conv.kernel_size == (3, 3)
        case "Decoder" | "TemporalDecoder" | "ResidualBlock":
            # Open-Sora-Plan's have no module for what is always SiLU.
            activation = getattr(module, "act", getattr(module, "conv_act", None))
            return activation is None or isinstance(activation, nn.SiLU)
        case name:
            return name in PLAIN
