"""ComfyUI's entry to this repository: makes pab_core importable and hands over the nodes."""

import importlib.util
import sys
from pathlib import Path


def _import_core(folder: Path) -> None:
    """Imports this folder's pab_core as the top-level package of that name.

    By its path: with the repository's root on sys.path, our nodes/ would stand in for the host's own nodes.py.
    """
    name = "pab_core"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, folder / name / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


_import_core(Path(__file__).resolve().parent)

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: E402 - needs pab_core

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
