"""The house's rules, held by reading the sources: imports point one way, nodes/ alone meets the host, no unpickling."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CORE = ROOT / "pab_core"

# A part may import parts that stand in a line above its own, never one beside or below it.
ORDER = (
    ("errors", "slots"),
    ("models",),
    ("tensor_files", "prompt_cleaning", "devices", "pixels"),
    ("loading", "text"),
    ("text_encoder_files", "embedding_cache"),
    ("broadcast", "sampling", "noise_sampling", "autoencoders", "text_encoder_loading", "hub_transfer", "video_io"),
    ("sizes", "prompt_scores", "conditioning", "frame_input", "hub"),
    ("checkpoints", "denoising", "chaining", "acceleration"),
    ("tasks", "settings", "results"),
    ("pipeline",),
    ("offload",),
    ("parallel",),
    ("evaluate", "demo"),
    ("terminal", "cli_options"),
    ("app",),
    ("cli_measuring", "cli_workers"),
    ("cli_app", "cli_calibrate", "cli_comm", "cli_quality", "cli_rivals", "cli_scaling", "cli_timing", "cli_vbench"),
    ("cli_bench",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
# The package's own __init__ names its API; it imports when asked, so it stands outside the order.
OUTSIDE = {"__init__"}
# What may be imported from outside, for the parts that promise to stand on little.
LIBRARIES = {
    "errors": set(),
    "models": {"torch"},
    "broadcast": {"torch", "pydantic"},
    "sampling": {"torch"},
    "noise_sampling": {"torch", "diffusers"},
    "loading": {"torch", "safetensors"},
    "text": {"torch"},
    "prompt_cleaning": {"diffusers"},
}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "server",
}
# Ways to run code that comes with data.
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(path: Path) -> str:
    """The part of pab_core that a file belongs to: a package or a module at the top."""
    first = path.relative_to(CORE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of everything a file imports, anywhere in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (".".join([*module, alias.name]) for alias in node.names)


def core_part(name: str) -> str | None:
    """The part of pab_core that an imported name lies in."""
    head, *rest = name.split(".")
    if head != "pab_core":
        return None
    return rest[0] if rest and rest[0] in RANK else "__init__"


def test_every_part_has_its_place():
    unplaced = {part_of(path) for path in sources(CORE)} - RANK.keys() - OUTSIDE
    assert not unplaced, f"give {unplaced} a place in ORDER"


def test_the_reader_of_imports_sees_all_forms():
    found = set(imports(CORE / "broadcast" / "run.py")) | set(imports(CORE / "pipeline.py"))
    assert {"torch.Tensor", "pab_core.models.layers.Branch", "pab_core.broadcast.schedule.ScheduleTable"} <= found
    assert "pab_core.autoencoders.choose_tiling" in found  # imported inside a function
    assert core_part("pab_core.models.layers.Branch") == "models"
    assert core_part("pab_core.PabError") == "__init__"
    assert core_part("torch") is None


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    own = part_of(path)
    if own in OUTSIDE:
        return
    for name in imports(path):
        other = core_part(name)
        if other is None or other == own:
            continue
        assert other != "__init__", f"{name}: import it from the module where it is defined"
        assert RANK[other] < RANK[own], f"{own} must not import {name}"


@pytest.mark.parametrize("part", LIBRARIES)
def test_low_parts_stand_on_little(part: str):
    for path in sources(CORE):
        if part_of(path) != part:
            continue
        heads = {name.split(".")[0] for name in imports(path)}
        foreign = heads - {"pab_core"} - set(sys.stdlib_module_names)
        assert foreign <= LIBRARIES[part], f"{path.name} imports {foreign - LIBRARIES[part]}"


def test_the_host_is_met_under_nodes_only():
    paths = [*sources(CORE), *sources(ROOT / "tests" / "core"), ROOT / "__init__.py"]
    for path in paths:
        if path.is_file():
            assert not {name.split(".")[0] for name in imports(path)} & HOST, path
            if CORE in path.parents:
                assert "nodes" not in {name.split(".")[0] for name in imports(path)}, path


def test_nothing_unpickles():
    for path in [*sources(CORE), *sources(ROOT / "nodes")]:
        assert not {name.split(".")[0] for name in imports(path)} & UNPICKLERS, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec"}, f"{path}: {called}"
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
            if called in {"np.load", "numpy.load"}:
                assert "allow_pickle=True" not in ast.unparse(node), path


def test_help_and_schedule_start_without_the_slow_libraries():
    """A second and more each: torch is for what computes, transformers and diffusers for what loads a model."""
    script = (
        "import sys; import pab_core.cli; a = {'torch', 'rich.progress'} & set(sys.modules); import pab_core.pipeline; "
        "import pab_core.broadcast.picture; b = {'transformers', 'diffusers', 'imageio_ffmpeg'} & set(sys.modules); "
        "print(sorted(a), sorted(b))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "[] []", done.stdout + done.stderr
