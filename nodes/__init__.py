"""The ComfyUI nodes: each parses its inputs, calls one stage of pab_core.pipeline and wraps what comes out."""

from . import schedule as schedule
from .broadcast import PyramidAttentionBroadcast
from .calibrate import CalibratePolicy
from .compare import CompareVideos
from .decode import DecodeVideo
from .given import ConditionOnFrames
from .load import DownloadVideoModel, LoadVideoModel
from .policies import LoadSchedule, OtherPolicy, SaveSchedule
from .sample import SampleVideo
from .save import SaveVideo
from .text import EncodeText
from .workers import WorkerPoolNode

# Written out, in the form that ComfyUI-Manager reads without running it.
NODE_CLASS_MAPPINGS = {
    "PABLoadModel": LoadVideoModel,
    "PABDownload": DownloadVideoModel,
    "PABTextEncode": EncodeText,
    "PABBroadcast": PyramidAttentionBroadcast,
    "PABPolicy": OtherPolicy,
    "PABLoadSchedule": LoadSchedule,
    "PABSaveSchedule": SaveSchedule,
    "PABCalibrate": CalibratePolicy,
    "PABGiven": ConditionOnFrames,
    "PABWorkers": WorkerPoolNode,
    "PABSampler": SampleVideo,
    "PABDecode": DecodeVideo,
    "PABCompare": CompareVideos,
    "PABSaveVideo": SaveVideo,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "PABLoadModel": "Load Video DiT (PAB)",
    "PABDownload": "Download Video DiT (PAB)",
    "PABTextEncode": "Text Encode (PAB)",
    "PABBroadcast": "Pyramid Attention Broadcast",
    "PABPolicy": "Other Policy (PAB)",
    "PABLoadSchedule": "Load Schedule (PAB)",
    "PABSaveSchedule": "Save Schedule (PAB)",
    "PABCalibrate": "Calibrate (PAB)",
    "PABGiven": "Image/Video Condition (PAB)",
    "PABWorkers": "Worker Pool (PAB)",
    "PABSampler": "Video Sampler (PAB)",
    "PABDecode": "Video Decode (PAB)",
    "PABCompare": "Compare Videos (PAB)",
    "PABSaveVideo": "Save Video (PAB)",
}
