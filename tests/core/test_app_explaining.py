"""What readers of Chinese are told of errors, warnings and notes that come from below the page, in the core's words."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pab_core.acceleration import cpu, fp8_products, run
from pab_core.acceleration.choice import choose_speed
from pab_core.app.explaining import REMARK, explained
from pab_core.app.illustration import about_calibrated
from pab_core.app.jobs import View, describe_failure
from pab_core.app.request import ClipRequest
from pab_core.app.service import Studio
from pab_core.app.settings import Limits, StudioSettings, not_kept
from pab_core.app.stage import show_progress, show_warnings
from pab_core.broadcast import find_policy
from pab_core.broadcast.calibrated import PACKAGED
from pab_core.checkpoints import find_model
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.parallel.pool.choice import Costs, Plan, Shape, check
from pab_core.parallel.pool.client import _ENDED
from pab_core.parallel.pool.door import _NONE
from pab_core.parallel.pool.failures import Failure, error_of
from pab_core.parallel.pool.roster import Roster
from pab_core.sizes import size_warning
from pab_core.text import TextEmbedding


def said_by(*failure: str) -> str:
    return str(error_of(Failure(1, "cpu", *failure), "in step 3 of 30"))


CASES = {
    "memory here": (lambda: describe_failure(MemoryError()), "内存或显存不足"),
    "memory of a GPU": (lambda: describe_failure(RuntimeError("CUDA out of memory. Tried ...")), "内存或显存不足"),
    "memory of a worker": (lambda: said_by("memory", "tried to allocate"), "内存或显存不足"),
    "a worker that died": (lambda: said_by("gone", "was killed (signal 9)"), "工作进程中断"),
    "a broken connection": (lambda: said_by("peer", "reset by peer"), "工作进程中断"),
    "a pool that ended": (lambda: _ENDED, "工作池"),
    "no pool": (lambda: _NONE, "工作池"),
    "a full disk": (lambda: not_kept("The video", OSError(28, "No space left on device")), "磁盘可能已满"),
    "a bug": (lambda: describe_failure(KeyError("x")), "程序内部出错"),
    "a bug in a worker": (lambda: said_by("bug", "KeyError: 'x'"), "程序内部出错"),
    "what is of no kind": (lambda: said_by("user", "This cannot be."), "未能完成"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_chinese_sentence_goes_before_the_cores(case: str):
    make, words = CASES[case]
    said = make()
    assert explained(said, "en") == said
    told = explained(said, "zh")
    assert words in told
    assert told.endswith(f" {said}")
    shown = show_progress(View("1", "failed", error=said), "zh")
    assert words in shown
    assert words not in show_progress(View("1", "failed", error=said), "en")


@pytest.mark.parametrize("model", ["open-sora", "somebody/something"])
def test_a_model_that_is_not_here_is_told_as_missing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PAB_MODELS", str(tmp_path))
    with pytest.raises(PabError) as told:
        find_model(model)
    assert "模型或文件缺失" in explained(str(told.value), "zh")


def test_a_model_whose_files_went_while_the_studio_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.setenv("PAB_MODELS", str(tmp_path / "none"))
    copy = tmp_path / "tiny"
    shutil.copytree(folder, copy)
    studio = Studio(StudioSettings(tmp_path / "data", (str(copy),), device="cpu"))
    try:
        shutil.rmtree(copy)
        job = studio.submit(ClipRequest(prompt="a red ball", model="tiny", steps=2), "", "")
        end = time.monotonic() + 60
        while not (view := studio.queue.view(job, "")).ended:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert view.state == "failed"
        assert "模型或文件缺失" in show_progress(view, "zh")
    finally:
        studio.close()


def test_what_the_queue_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.setenv("PAB_MODELS", str(tmp_path / "none"))
    wish = ClipRequest(prompt="a red ball", model="tiny", steps=200)
    for limits, words in ((Limits(queued_each=0), "您已有多个视频"), (Limits(queued=0), "队列已满")):
        studio = Studio(StudioSettings(tmp_path, (str(folder),), device="cpu", limits=limits))
        try:
            with pytest.raises(PabError) as told:
                studio.submit(wish, "", "")
            assert words in explained(str(told.value), "zh")
            with pytest.raises(PabError) as told:
                studio.submit(wish, "", "", against="quality")
            assert "左右两侧的设置相同" in explained(str(told.value), "zh")
            with pytest.raises(PabError) as told:
                studio.queue.view("none", "")
            assert "没有这个任务" in explained(str(told.value), "zh")
            with pytest.raises(PabError) as told:
                studio.history.get("none", "")
            assert "历史中没有这个视频" in explained(str(told.value), "zh")
        finally:
            studio.close()


def sizes() -> Iterator[str]:
    """A warning of each kind."""
    yield size_warning(MODELS["demo"], 17, 96, 128)
    yield size_warning(MODELS["demo-latte"], 1, 128, 192)
    for size in ((51, 64, 64), (408, 720, 1280), (17, 144, 256)):
        yield size_warning(MODELS["open-sora"], *size)


def speeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    gpu, bf16 = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(cpu.torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(cpu.torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    yield choose_speed("fast", torch.device("cpu"), bf16)[1]
    yield choose_speed("fast", torch.device("meta"), bf16)[1]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 2080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    for at_hand in (None, object()):
        monkeypatch.setattr(run, "find_spec", lambda _, at_hand=at_hand: at_hand)
        yield choose_speed("auto", gpu, bf16)[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(run, "sdpa_kernel", lambda: None)
    yield choose_speed("auto", gpu, bf16)[1]
    monkeypatch.setattr(run, "why_not", lambda _: None)
    broken = "Triton cannot make kernels on this machine (no compiler): it needs a C compiler such as gcc."
    monkeypatch.setattr(run, "why_no_kernels", lambda _: broken)
    yield choose_speed("auto", gpu, bf16, trying=True)[1]
    yield choose_speed("fp8", gpu, bf16)[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    yield choose_speed("fp8", gpu, torch.float32)[1]
    yield f"{fp8_products.why_not(torch.device('cpu'), bf16)} It runs without that."


def devices() -> Iterator[str]:
    shape, costs = Shape(4, 96, 4, True, 64, 4, 2), Costs(1.0, 1e-5, 1e9)
    yield check(Plan("dsp", 2), 4, shape, costs, 0.5).why
    yield check(Plan("dsp", 2), 2, shape, costs, 2.0).why
    yield check(Plan("none", 1), 2, shape, costs, None).why
    yield check(Plan("none", 1), 2, Shape(1, 96, 4, False, 64, 4, 2), costs, None).why
    places: Any = [SimpleNamespace(device="cuda:0"), SimpleNamespace(device="cuda:1")]
    nothing: Any = None
    roster = Roster(0, places, nothing, nothing, nothing)
    for rank, name in enumerate(("A", "B")):
        member: Any = SimpleNamespace(ready={"name": name, "memory": 8 * 2**30}, kill=lambda _: None)
        roster.members[rank] = member
    roster._note_devices()
    assert len(roster.warnings) == 2
    yield from roster.warnings
    yield f"{said_by('gone', 'was killed (signal 9)')} It was made again, on 1 of the devices that were left."


def notes() -> Iterator[str]:
    """Of the schedules in the package, and as `pab calibrate` and the node Calibrate write them otherwise."""
    for path in sorted(PACKAGED.glob("*-*.json")):
        if not path.stem.endswith(".teacache"):
            yield json.loads(path.read_text(encoding="utf-8"))["note"]
    yield "searched by kind in groups of 2 on 4 clips, costs open-sora: 0.700 of the time, error 1.2e-05"
    yield "searched by block on 4 clips, costs flops: 0.700 of the time, error 0.1, pab246's 0.2, pab357's 0.3"
    yield "searched on 3 clips for 20% less arithmetic"
    yield "proposed from the changes of 3 clips"


def cut_prompts() -> Iterator[str]:
    tokens = torch.zeros(1, 32, 1)
    yield TextEmbedding(tokens, tokens[..., 0].bool(), "it's a ball. And a cube").warning


@pytest.mark.parametrize("make", [sizes, speeds, devices, notes, cut_prompts])
def test_warnings_and_notes_are_in_chinese_with_their_figures(
    make: Callable[..., Iterator[str]], monkeypatch: pytest.MonkeyPatch
):
    for said in make(monkeypatch) if make is speeds else make():
        assert said
        assert explained(said, "en", REMARK) == said
        told = explained(said, "zh", REMARK)
        # In Chinese but for names and what a user wrote.
        words = re.sub(r"“.*”|NVIDIA GeForce RTX|PyTorch|Triton|bfloat16|no compiler|open-sora|torch|Windows", "", told)
        assert not re.search(r"[A-Za-z]{3,}[ ,][a-z]{2,}", words), told
        assert REMARK not in told
        if make in (sizes, notes):
            assert set(re.findall(r"\d+x\d+|0\.\d+", said)) <= set(re.findall(r"\d+x\d+|0\.\d+", told))


def test_what_is_not_known_stays_as_it_is_after_a_word_in_chinese():
    assert explained("Mind the gap.", "zh", REMARK) == f"{REMARK} Mind the gap."
    half = explained("The model runs as it is, which is slower. Mind the gap.", "zh", REMARK)
    assert half.startswith(REMARK)
    assert half.endswith("Mind the gap.")
    assert explained("", "zh", REMARK) == ""


def test_the_page_shows_them_in_its_language():
    said = size_warning(MODELS["demo"], 17, 96, 128)
    assert said in show_warnings([said], "en")
    assert "192x128 像素、34 帧" in show_warnings([said], "zh")
    assert "工作进程未能启动" in show_warnings(["The worker of rank 1 (cpu) could not be started: x. Try again."], "zh")
    policy = find_policy("calibrated", "stdit3", 28)
    assert "22 of 30 calls computed" in about_calibrated(policy, "en", "calibrated_note")
    shown = about_calibrated(policy, "zh", "calibrated_note")
    assert "30 次调用中计算 22 次" in shown
    assert "calls" not in shown
