"""video_io with the real ffmpeg: files are written, read back and interrupted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pab_core import video_io
from pab_core.errors import PabError

NASTY_PROMPTS = [
    "quotes \" and ' and `ticks` and $HOME %PATH% and \\backslash\\",
    "two\nlines\r\nand a\ttab",
    "; # = \\ [section] key=value; -y -i /dev/null",
    ";first\n#second\n[third]\n=fourth\\",
    "一只红球在绿色的地板上滚动 — ünïcödé 🎈👩‍🚀",
    " spaces around ",
    "%d %s {0} '\\''",
    "",
]


def moving_picture(count: int = 12, height: int = 64, width: int = 96) -> np.ndarray:
    """A disc moving over a gradient, saturated colours: [count, height, width, 3] uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    frames = []
    for index in range(count):
        frame = np.stack([x / width * 200, y / height * 200, np.full_like(x, 90)], axis=-1)
        near = np.hypot(x - width * (index + 1) / (count + 1), y - height / 2) < height / 5
        frame[near] = (220, 30, 40)
        frames.append(frame)
    return np.stack(frames).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Writing and reading back


@pytest.mark.parametrize("fps", [16, 24000 / 1001, 7.5])
def test_frames_and_rate_come_back(tmp_path: Path, fps: float):
    frames = moving_picture(12, 128, 192)
    path = video_io.write_mp4(tmp_path / "a.mp4", torch.from_numpy(frames), fps, {"prompt": "a red disc"})
    back, rate = video_io.read_mp4(path)
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    assert rate == pytest.approx(fps, rel=1e-5)
    for index in range(len(frames)):
        # Half-size colour alone costs the red disc's rim this much: crf 1 gives 33.0 at worst, crf 16 32.8.
        assert psnr(back[index], frames[index]) > 32, f"frame {index}"
    # The frames are in order: each is nearest to its own.
    assert [int(np.argmax([psnr(b, f) for f in frames])) for b in back] == list(range(len(frames)))
    assert names(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 60, 200)])
def test_flat_colours_keep_their_value(tmp_path: Path, colour: tuple[int, int, int]):
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 48, 3))
    back, _ = video_io.read_mp4(video_io.write_mp4(tmp_path / "a.mp4", frames, 8, {}))
    assert np.abs(back.astype(int) - frames).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(65, 97), (64, 97), (1, 1), (33, 2)])
def test_odd_sizes_grow_by_a_copy_of_the_edge(tmp_path: Path, height: int, width: int):
    frames = moving_picture(4, height, width)[..., :1].repeat(3, axis=-1)  # grey: half-size colour plays no part
    back, _ = video_io.read_mp4(video_io.write_mp4(tmp_path / "a.mp4", frames, 8, {}))
    assert back.shape == (4, height + height % 2, width + width % 2, 3)
    expected = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert psnr(back, expected) > 35


def test_one_frame_is_a_video(tmp_path: Path):
    back, fps = video_io.read_mp4(video_io.write_mp4(tmp_path / "a.mp4", moving_picture(1), 16, {}))
    assert len(back) == 1
    assert fps == 16


def test_the_file_is_h264_yuv420p_bt709_with_its_index_in_front(tmp_path: Path):
    path = video_io.write_mp4(tmp_path / "a.mp4", moving_picture(), 16, {})
    content = path.read_bytes()
    assert content[4:8] == b"ftyp"
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert b"avc1" in content
    command = [video_io.imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    described = subprocess.run(command, capture_output=True, check=False).stderr.decode()
    assert "yuv420p(tv, bt709" in described


def test_a_smaller_crf_is_closer(tmp_path: Path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 32, 32, 1), dtype=np.uint8).repeat(3, axis=-1)
    quality = []
    for crf in (8, 40):
        back, _ = video_io.read_mp4(video_io.write_mp4(tmp_path / f"{crf}.mp4", frames, 8, {}, crf=crf))
        quality.append(psnr(back, frames))
    assert quality[0] > quality[1] + 10


# Metadata


@pytest.mark.parametrize("prompt", NASTY_PROMPTS)
def test_metadata_comes_back_exactly(tmp_path: Path, prompt: str):
    metadata = {"prompt": prompt, "seed": 2**63 - 1, "policy": {"ranges": [2, 4, 6]}, "guidance": 7.0, "none": None}
    path = video_io.write_mp4(tmp_path / "a.mp4", moving_picture(2), 8, metadata)
    assert video_io.read_metadata(path) == metadata
    assert video_io.read_tags(path).get("title", "") == prompt


def test_metadata_may_be_longer_than_a_command_line(tmp_path: Path):
    metadata = {"prompt": "long " * 600, "workflow": "node; " * 60_000}
    path = video_io.write_mp4(tmp_path / "a.mp4", moving_picture(2), 8, metadata)
    assert video_io.read_metadata(path) == metadata
    assert video_io.read_tags(path)["title"] == metadata["prompt"][:2000]
    assert len(video_io.read_mp4(path)[0]) == 2


def test_a_prompt_that_is_not_valid_text_loses_only_its_title(tmp_path: Path):
    prompt = "zero \0 and half a pair \ud83d end"
    path = video_io.write_mp4(tmp_path / "a.mp4", moving_picture(2), 8, {"prompt": prompt})
    assert video_io.read_metadata(path) == {"prompt": prompt}
    assert video_io.read_tags(path)["title"] == "zero  and half a pair ? end"


def test_a_video_without_settings_gives_none(tmp_path: Path):
    path = video_io.write_mp4(tmp_path / "a.mp4", moving_picture(2), 8, {})
    assert video_io.read_metadata(path) == {}
    arguments = ["-i", str(path), "-c", "copy", "-metadata", "comment=made by hand", str(tmp_path / "b.mp4")]
    video_io.run_ffmpeg(arguments, "copying failed")
    assert video_io.read_metadata(tmp_path / "b.mp4") == {}


def test_settings_that_json_cannot_hold_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(TypeError):
        video_io.write_mp4(tmp_path / "a.mp4", moving_picture(2), 8, {"seed": object()})
    assert names(tmp_path) == []


# Nothing half-done is left


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [1, 5, 12])
def test_cancelling_leaves_nothing(tmp_path: Path, error: type[BaseException], when: int):
    def cancel(done: int, total: int) -> None:
        assert total == 12
        if done == when:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        video_io.write_mp4(tmp_path / "a.mp4", moving_picture(12), 8, {}, progress=cancel)
    assert names(tmp_path) == []


def test_cancelling_keeps_the_file_that_was_there(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def cancel(done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        video_io.write_mp4(path, moving_picture(), 8, {}, force=True, progress=cancel)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.mp4"]
    video_io.write_mp4(path, moving_picture(), 8, {}, force=True)
    assert len(video_io.read_mp4(path)[0]) == 12


def test_a_killed_encoder_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(video_io.subprocess, "Popen", Recorded)

    def kill(done: int, total: int) -> None:
        if done == 3:
            started[0].kill()
            started[0].wait()

    # Far more than a pipe holds, so that the writer must notice.
    frames = moving_picture(20, 256, 256)
    with pytest.raises(PabError, match=r"a\.mp4 was not written: ffmpeg") as caught:
        video_io.write_mp4(tmp_path / "a.mp4", frames, 8, {}, progress=kill)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_killing_the_whole_program_leaves_nothing_under_the_name(tmp_path: Path):
    script = textwrap.dedent(
        """
        import sys, time
        import numpy as np
        from pab_core import video_io

        def slow(done, total):
            print(done, flush=True)
            time.sleep(0.05)

        video_io.write_mp4(sys.argv[1], np.zeros((200, 64, 64, 3), np.uint8), 8, {}, progress=slow)
        """
    )
    root = Path(video_io.__file__).resolve().parent.parent
    command = [sys.executable, "-c", script, str(tmp_path / "a.mp4")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.kill()
    # ffmpeg loses its input and ends on its own; wait, so that it could still do harm.
    time.sleep(1)
    assert not (tmp_path / "a.mp4").exists()
    assert all(name.endswith(".part") for name in names(tmp_path))


def test_what_ffmpeg_says_is_reported(tmp_path: Path):
    with pytest.raises(PabError, match=r"a\.mp4 was not written: ffmpeg says: .*'bad'") as caught:
        video_io.write_mp4(tmp_path / "a.mp4", moving_picture(), 8, {}, crf="bad")  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


# Where a file may go


def test_check_output_accepts_a_new_name_and_leaves_no_trace(tmp_path: Path):
    assert video_io.check_output(tmp_path / "a.MP4") == tmp_path / "a.MP4"
    assert names(tmp_path) == []


def test_check_output_explains_what_is_wrong(tmp_path: Path):
    (tmp_path / "there.mp4").write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    for path, words in [
        (tmp_path / "there.mp4", "already exists"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path, "is a folder"),
        (tmp_path / "a.avi", r"must end in \.mp4"),
        (tmp_path / "a", r"must end in \.mp4"),
        (tmp_path / "missing" / "a.mp4", "does not exist"),
        (tmp_path / "there.mp4" / "a.mp4", "is not a folder"),
        (tmp_path / ("n" * 300 + ".mp4"), "cannot be written"),
    ]:
        with pytest.raises(PabError, match=words):
            video_io.check_output(path)
        with pytest.raises(PabError, match=words):
            video_io.write_mp4(path, moving_picture(2), 8, {})
    assert video_io.check_output(tmp_path / "there.mp4", force=True)
    assert names(tmp_path) == ["folder.mp4", "there.mp4"]
    assert (tmp_path / "there.mp4").read_bytes() == b"x"


def test_a_folder_that_takes_no_files_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Permission bits do not stop root, so the system's refusal is played.
    def refuse(**options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PabError, match="cannot be written: Permission denied"):
        video_io.check_output(tmp_path / "a.mp4")


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "a.mp4"

    def appear(done: int, total: int) -> None:
        path.write_bytes(b"new")

    with pytest.raises(PabError, match="already exists"):
        video_io.write_mp4(path, moving_picture(2), 8, {}, progress=appear)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.mp4"]


# Input that is no video


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        torch.zeros(2, 8, 8, 4, dtype=torch.uint8),
    ],
)
def test_frames_of_another_form_are_refused(tmp_path: Path, frames: Any):
    with pytest.raises(PabError, match=r"\[T, H, W, 3\]"):
        video_io.write_mp4(tmp_path / "a.mp4", frames, 8, {})


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_senseless_frame_rate_is_refused(tmp_path: Path, fps: float):
    with pytest.raises(PabError, match="frame rate"):
        video_io.write_mp4(tmp_path / "a.mp4", moving_picture(2), fps, {})
    with pytest.raises(PabError, match="frame rate"):
        video_io.write_animation(tmp_path / "a.gif", moving_picture(2), fps)


def test_reading_what_is_no_video_is_explained(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    for read in (video_io.read_mp4, video_io.read_metadata):
        with pytest.raises(PabError, match="There is no video file"):
            read(tmp_path / "missing.mp4")
        with pytest.raises(PabError, match="could not be read") as caught:
            read(tmp_path / "text.mp4")
        assert "\n" not in str(caught.value)


# Pictures


def test_contact_sheet(tmp_path: Path):
    frames = moving_picture(5, 10, 20)
    sheet = video_io.contact_sheet(torch.from_numpy(frames), 3, gap=2)
    assert sheet.size == (3 * 20 + 2 * 2, 2 * 10 + 2)
    pixels = np.asarray(sheet)
    assert np.array_equal(pixels[:10, :20], frames[0])
    assert np.array_equal(pixels[12:, 22:42], frames[4])
    assert (pixels[12:, 44:] == 255).all()
    assert video_io.contact_sheet(frames, 99).size == (5 * 20 + 4 * 4, 10)


@pytest.mark.parametrize(("suffix", "quality"), [(".gif", 25), (".webp", 28), (".png", 99)])
def test_animations(tmp_path: Path, suffix: str, quality: float):
    frames = moving_picture(6)
    path = video_io.write_animation(tmp_path / f"a{suffix}", frames, 10)
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 6
        for index in range(6):
            picture.seek(index)
            picture.load()
            assert picture.info["duration"] == 100
            assert picture.info["loop"] == 0
            assert psnr(np.asarray(picture.convert("RGB")), frames[index]) > quality
    assert names(tmp_path) == [path.name]
    with pytest.raises(PabError, match="already exists"):
        video_io.write_animation(path, frames, 10)
    with pytest.raises(PabError, match="must end in"):
        video_io.write_animation(tmp_path / "a.mp4", frames, 10)
