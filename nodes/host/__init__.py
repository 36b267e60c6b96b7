"""The one place that talks to ComfyUI: its node API here; folders, memory, routes, running nodes and media beside.

Uses only what every ComfyUI from 0.3.75 on has; `USED` lists it, and a test looks for each name in the real host.
"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Iterable
from typing import Any

import comfy_api.latest as api

from .folders import (
    SCHEDULES_FOLDER,
    checkpoint_folders,
    download_folder,
    output_file,
    register_model_folder,
    saved_schedules,
    schedule_files,
    schedule_path,
    scratch_folder,
    t5_files,
    t5_path,
    t5_tokenizer,
)
from .media import frames_of, images, read_video, shown_video, video, workflow_tags
from .memory import bring, compute_device, keep_device, kept_elsewhere, make_room, managed, result_device
from .routes import route
from .running import check_cancelled, count_progress, pool_progress, progress, say

__all__ = [
    "CATEGORY",
    "USED",
    "choice",
    "io",
    "schema",
    "SCHEDULES_FOLDER",
    "checkpoint_folders",
    "download_folder",
    "output_file",
    "register_model_folder",
    "saved_schedules",
    "schedule_files",
    "schedule_path",
    "scratch_folder",
    "t5_files",
    "t5_path",
    "t5_tokenizer",
    "frames_of",
    "images",
    "read_video",
    "shown_video",
    "video",
    "workflow_tags",
    "bring",
    "compute_device",
    "keep_device",
    "kept_elsewhere",
    "make_room",
    "managed",
    "result_device",
    "route",
    "check_cancelled",
    "count_progress",
    "pool_progress",
    "progress",
    "say",
]

io: Any = api.io  # the node classes' base and inputs
CATEGORY = "video/pyramid attention broadcast"

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
    """io.Schema of a node in our category, without those fields that an older host does not know, such as
    search_aliases."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{name: value for name, value in fields.items() if name in known})


def choice(name: str, options: Iterable[str], tooltip: str, **fields: Any) -> Any:
    """A combo input; the first of its options is the default unless `fields` says otherwise."""
    options = list(options)
    return io.Combo.Input(name, options=options, tooltip=tooltip, **{"default": options[0], **fields})
