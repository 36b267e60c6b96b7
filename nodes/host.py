"""The one place that talks to ComfyUI: its node API, progress and cancel, memory, folders, and video type.

Uses only what every ComfyUI from 0.3.75 on has.
"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

import asyncio
import contextlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.utils
import comfy_api.latest as api
import folder_paths
import torch
from aiohttp import web
from comfy.model_patcher import ModelPatcher
from PIL import Image
from server import PromptServer
from torch import Tensor, nn

from pab_core import PabError, Pipeline, Progress
from pab_core.pipeline import ProgressCallback

io: Any = api.io  # the node classes' base and inputs
CATEGORY = "video/pyramid attention broadcast"
MODELS_FOLDER = "pab"
MOST_BODY = 65536  # bytes of a request to one of our routes
PREVIEW_SIZE = 512  # longest side of a preview, pixels


# --- models and memory ------------------------------------------------------------------------------------------------


def register_model_folder() -> None:
    """Makes models/pab known to the host, beside what extra_model_paths.yaml may name for it."""
    folder = os.path.join(folder_paths.models_dir, MODELS_FOLDER)
    with contextlib.suppress(OSError):  # a read-only models folder only means that nothing lies there
        os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path(MODELS_FOLDER, folder, is_default=True)
    folder_paths.folder_names_and_paths[MODELS_FOLDER][1].add(".safetensors")


def checkpoint_folders() -> dict[str, Path]:
    """The checkpoints present in models/pab and its like: name of the folder -> the folder."""
    found: dict[str, Path] = {}
    for parent in map(Path, folder_paths.get_folder_paths(MODELS_FOLDER)):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if (folder / "transformer" / "config.json").is_file():
                    found.setdefault(folder.name, folder)
    return found


def compute_device() -> torch.device:
    return memory.get_torch_device()


def keep_device() -> torch.device:
    """Where modules wait that are not needed at the moment."""
    return memory.unet_offload_device()


def result_device() -> torch.device:
    """Where the host wants what goes from node to node."""
    return memory.intermediate_device()


def t5_tokenizer() -> Path | None:
    """The host's own tokenizer of T5, for encoders that come without one."""
    folder = Path(comfy.utils.__file__).parent / "text_encoders" / "t5_tokenizer"
    return folder if folder.is_dir() else None


def managed(module: nn.Module) -> Any:
    """A handle by which the host moves a module between devices. To be kept with the module: the host does not."""
    return ModelPatcher(module, load_device=compute_device(), offload_device=keep_device())


def bring(handle: Any, working_bytes: int = 0) -> None:
    """Has the host bring a module to the compute device whole, with room for `working_bytes` of work beside it."""
    memory.load_models_gpu([handle], memory_required=working_bytes, force_full_load=True)


# --- progress, cancel, messages ---------------------------------------------------------------------------------------


def progress(pipeline: Pipeline) -> ProgressCallback:
    """A callback that moves the bar of the running node, shows previews on it, and raises the host's own exception when
    the user cancels."""
    bar = comfy.utils.ProgressBar(1)

    def report(event: Progress) -> None:
        memory.throw_exception_if_processing_interrupted()
        picture = None if event.latents is None else ("JPEG", preview(pipeline, event.latents), PREVIEW_SIZE)
        bar.update_absolute(event.done, event.total, picture)

    return report


def preview(pipeline: Pipeline, latents: Tensor) -> Image.Image:
    """A picture of the middle frame of latents [1, C, T, h, w], as large as the preview may be."""
    middle = latents.shape[2] // 2
    small = Image.fromarray(pipeline.preview(latents[:, :, middle : middle + 1])[0].numpy())
    scale = PREVIEW_SIZE / max(small.size)
    # The host would enlarge it too, but only linearly, which shows every latent as a diamond.
    return small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC)


def route(path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Serves POST `path`: JSON in, JSON out, off the host's own loop. PabErrors become {"error": words}."""

    async def handle(request: web.Request) -> web.Response:
        try:
            if (request.content_length or 0) > MOST_BODY:
                raise PabError("The request is too long.")
            given = await request.json()
            if not isinstance(given, dict):
                raise PabError("The request must be a JSON object.")
            return web.json_response(await asyncio.to_thread(answer, given))
        except (PabError, ValueError) as error:
            words = str(error) if isinstance(error, PabError) else "The request is no valid JSON."
            return web.json_response({"error": words}, status=400)

    PromptServer.instance.routes.post(path)(handle)


def say(text: str, node_id: str) -> None:
    """Shows a line on a node."""
    PromptServer.instance.send_progress_text(text, node_id, PromptServer.instance.client_id)


# --- results ----------------------------------------------------------------------------------------------------------


def images(frames: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] as the host's IMAGE: float 0..1, [T, H, W, 3]."""
    return frames.to(result_device(), torch.float32) / 255


def video(batch: Tensor, fps: float) -> Any:
    """An IMAGE batch as the host's VIDEO."""
    return api.InputImpl.VideoFromComponents(api.Types.VideoComponents(images=batch, frame_rate=Fraction(fps)))
