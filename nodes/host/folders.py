"""Where models, schedules and results lie: the host's own folders, and models/pab beside them"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

import contextlib
import os
from pathlib import Path
from typing import Any

import comfy.utils
import comfy_api.latest as api
import folder_paths

MODELS_FOLDER = "pab"
SCHEDULES_FOLDER = "pab_schedules"


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
        for folder in _children(parent):
            with contextlib.suppress(OSError):  # not ours to look into, such as lost+found of a volume
                if (folder / "transformer" / "config.json").is_file():
                    found.setdefault(folder.name, folder)
    return found


def _children(folder: Path) -> list[Path]:
    """Empty where there is no such folder, or none that may be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def t5_tokenizer() -> Path | None:
    """The host's own tokenizer of T5, for encoders that come without one."""
    folder = Path(comfy.utils.__file__).parent / "text_encoders" / "t5_tokenizer"
    return folder if folder.is_dir() else None


def output_file(prefix: str, suffix: str, width: int = 0, height: int = 0) -> tuple[Path, Any]:
    """A file under output/ that is not there yet, as the host's own nodes name them, and how its page finds it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    file = f"{name}_{counter:05}_{suffix}"
    return Path(folder) / file, api.ui.SavedResult(file, subfolder, api.io.FolderType.output)
