"""What readers of Chinese are told of errors that come from below the page, in the core's own words."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from pab_core.app.explaining import explained
from pab_core.app.jobs import View, describe_failure
from pab_core.app.request import ClipRequest
from pab_core.app.service import Studio
from pab_core.app.settings import Limits, StudioSettings, not_kept
from pab_core.app.stage import show_progress
from pab_core.checkpoints import find_model
from pab_core.errors import PabError
from pab_core.parallel.pool.client import _ENDED
from pab_core.parallel.pool.door import _NONE
from pab_core.parallel.pool.failures import Failure, error_of


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
