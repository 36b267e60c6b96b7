"""The ComfyUI nodes: each parses its inputs, calls one stage of pab_core.pipeline and wraps what comes out."""

from . import schedule as schedule
from .broadcast import PyramidAttentionBroadcast
from .decode import DecodeVideo
from .load import LoadVideoModel
from .sample import SampleVideo
from .text import EncodeText

# Written out, in the form that ComfyUI-Manager reads without running it.
NODE_CLASS_MAPPINGS = {
    "PABLoadModel": LoadVideoModel,
    "PABBroadcast": PyramidAttentionBroadcast,
    "PABTextEncode": EncodeText,
    "PABSampler": SampleVideo,
    "PABDecode": DecodeVideo,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "PABLoadModel": "Load Video DiT (PAB)",
    "PABBroadcast": "Pyramid Attention Broadcast",
    "PABTextEncode": "Text Encode (PAB)",
    "PABSampler": "Video Sampler (PAB)",
    "PABDecode": "Video Decode (PAB)",
}
