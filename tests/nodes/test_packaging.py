"""What ComfyUI's registry and its manager read without running anything."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "server"}


def project() -> dict[str, list[str]]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imported(file: Path) -> Iterator[str]:
    """The first parts of the names of all modules that a file imports absolutely."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_requirements_are_the_projects_less_torch() -> None:
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert requirements == [line for line in project()["dependencies"] if not line.startswith("torch>")]


def test_nothing_is_bounded_from_above() -> None:
    assert not [line for line in project()["dependencies"] if "<" in line or "==" in line or "~=" in line]


def test_only_the_host_folder_imports_the_host() -> None:
    for folder in ("pab_core", "nodes"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            from_host = HOST_MODULES & set(imported(file))
            assert not from_host or file.parent == REPOSITORY / "nodes" / "host", (file, from_host)


def test_the_mapping_is_static_and_complete() -> None:
    tree = ast.parse((REPOSITORY / "nodes" / "__init__.py").read_text(encoding="utf-8"))
    keys: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            keys[node.targets[0].id] = [ast.literal_eval(key) for key in node.value.keys if key is not None]
    assert keys["NODE_CLASS_MAPPINGS"] == keys["NODE_DISPLAY_NAME_MAPPINGS"]
    assert len(keys["NODE_CLASS_MAPPINGS"]) == 14


def test_start_up_brings_nothing_heavy() -> None:
    modules: set[str] = set()
    for file in (REPOSITORY / "nodes").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules |= {node.module} if node.module.startswith("pab_core") else set()
    heavy = ("accelerate", "diffusers", "huggingface_hub", "matplotlib", "pydantic", "torchmetrics", "transformers")
    code = f"import sys, {', '.join(sorted(modules))}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert modules
    assert done.stdout.strip() == "[]"
