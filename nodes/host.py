"""The one place that talks to ComfyUI: its node API, progress and cancel, memory, folders, and video type.

Uses only what every ComfyUI from 0.3.75 on has; `USED` lists it, and a test looks for each name in the real host.
"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as memory
import comfy.utils
import comfy_api.latest as api
import folder_paths
import torch
from aiohttp import web
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from PIL import Image
from server import PromptServer
from torch import Tensor, nn

from pab_core import PabError, Pipeline, Progress
from pab_core.pipeline import ProgressCallback

if TYPE_CHECKING:
    from pab_core.parallel.pool.record import PoolProgress

io: Any = api.io  # the node classes' base and inputs
CATEGORY = "video/pyramid attention broadcast"
MODELS_FOLDER = "pab"
SCHEDULES_FOLDER = "pab_schedules"
MOST_BODY = 65536  # bytes of a request to one of our routes
PREVIEW_SIZE = 512  # longest side of a preview, pixels

# The public parts of ComfyUI that these nodes stand on: where they are -> their names. All are in 0.3.75, the
# oldest host; what only newer ones know (search_aliases) is left out there, see `schema`.
USED = {
    "comfy.model_management": (
        "free_memory",
        "get_torch_device",
        "intermediate_device",
        "load_models_gpu",
        "throw_exception_if_processing_interrupted",
        "unet_offload_device",
    ),
    "comfy.model_patcher": ("ModelPatcher.add_callback",),
    "comfy.patcher_extension": ("CallbacksMP.ON_DETACH",),
    "comfy.utils": ("ProgressBar",),
    "comfy_api.latest": (
        "InputImpl.VideoFromComponents",
        "Types.VideoComponents",
        "io",
        "ui.PreviewVideo",
        "ui.SavedResult",
    ),
    "comfy_api.latest.io": (
        "Boolean",
        "Combo",
        "ComfyNode",
        "Conditioning",
        "Custom",
        "Float",
        "FolderType",
        "Hidden",
        "Image",
        "Int",
        "Latent",
        "NodeOutput",
        "NumberDisplay.slider",
        "Schema",
        "String",
        "Video",
    ),
    "comfy.cli_args": ("args.disable_metadata",),
    "folder_paths": (
        "add_model_folder_path",
        "folder_names_and_paths",
        "get_filename_list",
        "get_folder_paths",
        "get_full_path",
        "get_output_directory",
        "get_save_image_path",
        "get_temp_directory",
        "models_dir",
    ),
    "server": ("PromptServer.instance.routes", "PromptServer.instance.send_progress_text"),
}


def schema(**fields: Any) -> Any:
    """io.Schema, without those fields that an older host does not know, such as search_aliases."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


# --- models and memory ------------------------------------------------------------------------------------------------


def register_model_folder() -> None:
    """Makes models/pab known to the host, beside what extra_model_paths.yaml may name for it."""
    folder = os.path.join(folder_paths.models_dir, MODELS_FOLDER)
    with contextlib.suppress(OSError):  # a read-only models folder only means that nothing lies there
        os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path(MODELS_FOLDER, folder, is_default=True)
    folder_paths.folder_names_and_paths[MODELS_FOLDER][1].add(".safetensors")
    # As the host's own nodes that save models: what is saved under output/ is offered as well.
    folder_paths.add_model_folder_path(SCHEDULES_FOLDER, os.path.join(folder, "schedules"), is_default=True)
    folder_paths.add_model_folder_path(SCHEDULES_FOLDER, saved_schedules())
    folder_paths.folder_names_and_paths[SCHEDULES_FOLDER][1].add(".json")


def saved_schedules() -> str:
    return os.path.join(folder_paths.get_output_directory(), SCHEDULES_FOLDER)


def schedule_files() -> list[str]:
    """The schedule files in models/pab/schedules and output/pab_schedules, by name."""
    with contextlib.suppress(OSError):  # a folder that is not there yet
        return folder_paths.get_filename_list(SCHEDULES_FOLDER)
    return []


def schedule_path(name: str) -> Path | None:
    """Where a schedule file lies; None where there is none of that name, or it leads out of the folders."""
    found = folder_paths.get_full_path(SCHEDULES_FOLDER, name) if name in schedule_files() else None
    return None if found is None else Path(found)


def download_folder(model: str) -> Path:
    """Where a model is downloaded to: the first of the folders for models."""
    return Path(folder_paths.get_folder_paths(MODELS_FOLDER)[0]) / model


def t5_files() -> list[str]:
    """The host's own text encoders that may be T5 v1.1 XXL, by name."""
    return [name for name in folder_paths.get_filename_list("text_encoders") if "t5" in name.lower()]


def t5_path(name: str) -> Path | None:
    found = folder_paths.get_full_path("text_encoders", name) if name in t5_files() else None
    return None if found is None else Path(found)


def scratch_folder() -> Path:
    """For what is to outlast a cancelled run, not the host."""
    folder = Path(folder_paths.get_temp_directory()) / "pab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


def kept_elsewhere(count: int, release: Callable[[], None]) -> Any:
    """A handle for a model that takes `count` bytes of the compute device in processes of ours: `bring` makes room for
    it, and the host calls `release` when it unloads models. To be kept as long as they run: the host does not."""
    handle = ModelPatcher(nn.Module(), load_device=compute_device(), offload_device=keep_device(), size=count)
    # The host also detaches, keeping the weights, what it only moves up in its list.
    handle.add_callback(CallbacksMP.ON_DETACH, lambda _, unpatch_all: release() if unpatch_all else None)
    return handle


def make_room(count: int) -> None:
    """Has the host free so many bytes of the compute device, for a model that brings itself there."""
    device = compute_device()
    if device.type != "cpu":
        memory.free_memory(count, device)


# --- progress, cancel, messages ---------------------------------------------------------------------------------------


def progress(pipeline: Pipeline, part: int = 0, parts: int = 1) -> ProgressCallback:
    """A callback that moves the bar of the running node, shows previews on it, and raises the host's own exception when
    the user cancels. `part` of `parts`: of a run that is made in several."""
    show = _bar(part, parts)

    def report(event: Progress) -> None:
        check_cancelled()
        show(event.done, event.total, None if event.latents is None else preview(pipeline, event.latents))

    return report


def pool_progress(part: int = 0, parts: int = 1) -> Callable[["PoolProgress"], None]:
    """As `progress`, of a job on a pool of workers."""
    show = _bar(part, parts)

    def report(event: "PoolProgress") -> None:
        small = event.preview
        show(event.done, event.total, None if small is None else enlarged(small[len(small) // 2]))

    return report


def _bar(part: int, parts: int) -> Callable[[int, int, Image.Image | None], None]:
    bar = comfy.utils.ProgressBar(1)

    def show(done: int, total: int, picture: Image.Image | None) -> None:
        shown = None if picture is None else ("JPEG", picture, PREVIEW_SIZE)
        bar.update_absolute(part * total + done, parts * total, shown)

    return show


def count_progress() -> Callable[[int, int], None]:
    """As `progress`, of what is only counted."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        check_cancelled()
        bar.update_absolute(done, max(total, 1))

    return report


def check_cancelled() -> None:
    """Raises the host's own exception when the user cancels."""
    memory.throw_exception_if_processing_interrupted()


def preview(pipeline: Pipeline, latents: Tensor) -> Image.Image:
    """A picture of the middle frame of latents [1, C, T, h, w], as large as the preview may be."""
    middle = latents.shape[2] // 2
    return enlarged(pipeline.preview(latents[:, :, middle : middle + 1])[0])


def enlarged(frame: Tensor) -> Image.Image:
    """A small picture uint8 [h, w, 3], as large as the preview may be."""
    small = Image.fromarray(frame.numpy())
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
        except (PabError, ValueError, RecursionError) as error:
            words = str(error) if isinstance(error, PabError) else "The request is no valid JSON."
            return web.json_response({"error": words}, status=400)
        except web.HTTPException:  # such as a body that is longer than the host takes
            raise
        except Exception:
            logging.exception("%s failed", path)
            words = "The server failed at this; its log says where."
            return web.json_response({"error": words}, status=500)

    PromptServer.instance.routes.post(path)(handle)


def say(text: str, node_id: str) -> None:
    """Shows a line on a node."""
    PromptServer.instance.send_progress_text(text, node_id, PromptServer.instance.client_id)


# --- results ----------------------------------------------------------------------------------------------------------


def images(frames: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] as the host's IMAGE: float 0..1, [T, H, W, 3]."""
    return frames.to(result_device(), torch.float32) / 255


def frames_of(batch: Tensor) -> Tensor:
    """The host's IMAGE [T, H, W, 3 or 4] as frames uint8 [T, H, W, 3]."""
    return (batch[..., :3].float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def read_video(given: Any) -> tuple[Tensor, float]:
    """The host's VIDEO -> an IMAGE batch and its frames a second."""
    parts = given.get_components()
    return parts.images, float(parts.frame_rate)


def output_file(prefix: str, suffix: str, width: int = 0, height: int = 0) -> tuple[Path, Any]:
    """A file under output/ that is not there yet, as the host's own nodes name them, and how its page finds it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    file = f"{name}_{counter:05}_{suffix}"
    return Path(folder) / file, api.ui.SavedResult(file, subfolder, io.FolderType.output)


def shown_video(result: Any) -> Any:
    """What the page plays on a node that has saved a video."""
    return api.ui.PreviewVideo([result])


def workflow_tags(prompt: Any, extra: Any) -> dict[str, Any]:
    """What the page reads a workflow from when a file is dropped on it; empty where the host was told to write none."""
    if args.disable_metadata:
        return {}
    return {**(extra or {}), **({} if prompt is None else {"prompt": prompt})}


def video(batch: Tensor, fps: float) -> Any:
    """An IMAGE batch as the host's VIDEO."""
    return api.InputImpl.VideoFromComponents(api.Types.VideoComponents(images=batch, frame_rate=Fraction(fps)))
