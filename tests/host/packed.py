"""The plugin as users get it: packed by ComfyUI's own tool from the files of this checkout, and unpacked again."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

from provision import REPOSITORY, call

NOT_OURS = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")


def packed_plugin(folder: Path) -> Path:
    """Packs the checkout with `comfy node pack` under `folder` and returns the unpacked plugin's folder.

    The tool takes what git tracks, so a copy of the checkout becomes a repository of its own first: what is not
    committed yet is tested too, what .gitignore names is not, and the checkout stays as it is.
    """
    source = folder / "source"
    shutil.copytree(REPOSITORY, source, ignore=NOT_OURS)
    call("git", "init", "--quiet", cwd=source)
    call("git", "add", "--all", cwd=source)
    environment = os.environ | {"DO_NOT_TRACK": "1", "COMFY_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)}
    call(sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "pack",
         cwd=source, env=environment)  # fmt: skip
    plugin = folder / "comfyui-pab"
    with zipfile.ZipFile(source / "node.zip") as archive:
        archive.extractall(plugin)
    shutil.rmtree(source)
    return plugin
