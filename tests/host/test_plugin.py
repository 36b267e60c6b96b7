"""The plugin as the real ComfyUI sees it: its nodes, their inputs, its template, and what its registry asks for."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from provision import REPOSITORY, call
from server import ComfyServer

OURS = {
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


def test_nodes_are_there_and_explained(server: ComfyServer) -> None:
    info = server.object_info()
    ours = {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.comfyui-pab"}
    assert {name: node["display_name"] for name, node in ours.items()} == OURS
    for name, node in ours.items():
        assert node["category"] == "video/pyramid attention broadcast"
        assert node["description"]
        assert all(node["output_tooltips"] or [])
        for group in node["input"].values():
            for input_name, (_, *options) in group.items():
                if group is not node["input"].get("hidden"):
                    assert options[0]["tooltip"], (name, input_name)


def test_ranges_and_windows_are_sliders(server: ComfyServer) -> None:
    inputs = server.object_info("PABBroadcast")["PABBroadcast"]["input"]["required"]
    sliders = {name for name, (_, options) in inputs.items() if options.get("display") == "slider"}
    assert sliders == {"spatial_range", "temporal_range", "cross_range", "window_start", "window_stop"}


def test_native_types_where_they_fit(server: ComfyServer) -> None:
    info = server.object_info()
    assert info["PABTextEncode"]["output"] == ["CONDITIONING"]
    assert info["PABSampler"]["output"] == ["LATENT"]
    assert info["PABDecode"]["output"] == ["IMAGE", "VIDEO"]


def test_the_templates_are_listed(server: ComfyServer) -> None:
    listed = server.get("/workflow_templates")["comfyui-pab"]
    assert sorted(listed) == sorted(path.stem for path in (REPOSITORY / "workflows").glob("*.json"))
    assert len(listed) == 9


def test_the_hosts_own_modules_stay_its_own(server: ComfyServer) -> None:
    assert "IMPORT FAILED: " + str(server.base) not in server.log
    assert "(IMPORT FAILED)" not in server.log
    assert "KSampler" in server.object_info()


def test_the_registrys_own_check_passes(tmp_path: Path) -> None:
    quiet = os.environ | {"DO_NOT_TRACK": "1", "HOME": str(tmp_path)}
    tool = (sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate")
    said = call(*tool, cwd=REPOSITORY, env=quiet)
    assert "Warning" not in said
    assert "Error" not in said


def test_the_host_has_all_that_is_used_of_it(server: ComfyServer, tmp_path: Path) -> None:
    # As nodes/host lists it; asked in the host's own interpreter.
    tree = ast.parse((REPOSITORY / "nodes" / "host" / "__init__.py").read_text(encoding="utf-8"))
    (used,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "USED"
    )
    server_parts = used.pop("server")  # its instance is there only in a running host: the routes and texts are tested
    assert server_parts
    code = f"""
import sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import functools, importlib
missing = []
for where, names in {used!r}.items():
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError:  # a class that holds classes, such as comfy_api.latest.io
        above, _, name = where.rpartition(".")
        module = getattr(importlib.import_module(above), name)
    for name in names:
        try:
            functools.reduce(getattr, name.split("."), module)
        except AttributeError:
            missing.append(where + "." + name)
print(missing)
"""
    assert call(str(server.host.python), "-c", code, cwd=server.host.comfyui).strip().splitlines()[-1] == "[]"


# What nodes need when they run, not when the host starts.
LATER = ("accelerate", "bs4", "diffusers", "ftfy", "huggingface_hub", "imageio_ffmpeg", "pydantic", "rich",
         "sentencepiece", "torchmetrics", "transformers", "typer")  # fmt: skip


@pytest.mark.parametrize("gone", [(), LATER])
def test_it_adds_little_to_the_start_and_stands_without_what_is_for_later(
    server: ComfyServer, gone: tuple[str, ...]
) -> None:
    plugin = server.base / "custom_nodes" / "comfyui-pab"
    code = f"""
import sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import asyncio, json, time
import utils.extra_config  # before anything else that is called utils
import comfy_api.latest, comfy_config.config_parser, nodes, server  # the host's own
loop = asyncio.new_event_loop()
server.PromptServer(loop)
sys.modules.update(dict.fromkeys({gone!r}))  # None there makes an import fail
before = set(sys.modules)
start = time.process_time()
loaded = loop.run_until_complete(nodes.load_custom_node({str(plugin)!r}))
seconds = time.process_time() - start
ours = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("PAB")]
print(json.dumps([loaded, seconds, len(ours), sorted(set(sys.modules) - before)]))
"""
    # The processor's time of one thread: the machine may be busy with other things.
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    said = call(str(server.host.python), "-c", code, cwd=server.host.comfyui, env=quiet)
    loaded, seconds, nodes, modules = json.loads(said.strip().splitlines()[-1])
    assert loaded
    assert nodes == len(OURS)
    assert seconds < 0.3
    assert not [name for name in modules if name.split(".")[0] in LATER]


def test_the_log_has_no_warning_of_ours(server: ComfyServer) -> None:
    lines = [line for line in server.log.splitlines() if "comfyui-pab" in line or "pab_core" in line]
    assert not [line for line in lines if "warn" in line.lower() or "fail" in line.lower()]
