"""Where the nodes look for models, with folders that they may not look into; the host itself is not needed for that."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alone import load_alone


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with a host that knows of two folders, the second of which is not there."""
    for name in ("comfy", "comfy.utils", "comfy_api", "comfy_api.latest", "folder_paths"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    places: Any = sys.modules["folder_paths"]
    places.get_folder_paths = lambda name: [str(tmp_path / "pab"), str(tmp_path / "gone")]
    return load_alone("host/folders.py")


def checkpoint(folder: Path) -> None:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text("{}")


def test_a_folder_that_may_not_be_read_hides_no_other(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("latte", "lost+found", "mine"):
        checkpoint(tmp_path / "pab" / name)
    is_file = Path.is_file

    def guarded(path: Path) -> bool:  # as of another user's folder: tests may run as root, whom nothing is refused
        if "lost+found" in path.parts:
            raise PermissionError(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", guarded)
    assert list(folders.checkpoint_folders()) == ["latte", "mine"]

    def refused(path: Path) -> Any:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert folders.checkpoint_folders() == {}
