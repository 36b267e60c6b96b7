"""The plugin as the real ComfyUI sees it: its nodes, their inputs, its template, and what its registry asks for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from provision import REPOSITORY, call
from server import ComfyServer

OURS = {
    "PABLoadModel": "Load Video DiT (PAB)",
    "PABBroadcast": "Pyramid Attention Broadcast",
    "PABTextEncode": "Text Encode (PAB)",
    "PABSampler": "Video Sampler (PAB)",
    "PABDecode": "Video Decode (PAB)",
}


def test_nodes_are_there_and_explained(server: ComfyServer) -> None:
    info = server.object_info()
    ours = {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.comfyui-pab"}
    assert {name: node["display_name"] for name, node in ours.items()} == OURS
    for name, node in ours.items():
        assert node["category"] == "video/pyramid attention broadcast"
        assert node["description"]
        assert all(node["output_tooltips"])
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


def test_the_template_is_listed(server: ComfyServer) -> None:
    assert server.get("/workflow_templates")["comfyui-pab"] == ["pab_text_to_video"]


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
