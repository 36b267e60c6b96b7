"""Pictures and videos from files and from memory -> what the VAE encodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pab_core.errors import PabError
from pab_core.frame_input import fill, frames_to_video_tensor, read_picture, read_reference, read_video_frames
from pab_core.video_io import read_mp4, write_animation, write_mp4

EXIF_ORIENTATION = 0x0112


def counting(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Grey frames [count, height, width, 3], each brighter than the one before."""
    grey = np.arange(count, dtype=np.float64) * 200 / count + 20
    return np.broadcast_to(grey[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def quarters(height: int = 40, width: int = 60) -> np.ndarray:
    """Red and green above, blue and white below."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    picture[height // 2 :, width // 2 :] = 255
    return picture


def brightness(frames: Any) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in frames]


# From memory


def test_every_form_of_frames_gives_the_same_tensor():
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    forms: list[Any] = [
        frames,
        list(frames),
        torch.from_numpy(frames),
        torch.from_numpy(frames).float() / 255,
        frames.astype(np.float64) / 255,
        [Image.fromarray(frame) for frame in frames],
        np.concatenate([frames, np.full((3, 16, 24, 1), 7, np.uint8)], axis=-1),
        (frame for frame in frames),
    ]
    expected = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    for form in forms:
        video = frames_to_video_tensor(form, 16, 24)
        assert video.shape == (1, 3, 3, 16, 24)
        assert video.dtype == torch.float32
        torch.testing.assert_close(video, expected)
    assert expected.min() == -1
    assert expected.max() == 1


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (40, 40), (41, 97), (8, 120), (120, 9)])
@pytest.mark.parametrize("target", [(32, 48), (48, 32), (30, 71)])
def test_a_picture_is_scaled_to_fill_and_cut_in_the_middle(size: tuple[int, int], target: tuple[int, int]):
    """Against the plain description: one side fits, the other is cut evenly."""
    (height, width), (high, wide) = size, target
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    filled = fill(image, high, wide)
    assert filled.shape == (high, wide, 3)
    if high / height > wide / width:
        scaled = np.asarray(image.resize((round(width * high / height), high), Image.Resampling.BICUBIC))
        left = round((scaled.shape[1] - wide) / 2)
        expected = scaled[:, left : left + wide]
    else:
        scaled = np.asarray(image.resize((wide, round(height * wide / width)), Image.Resampling.BICUBIC))
        top = round((scaled.shape[0] - high) / 2)
        expected = scaled[top : top + high]
    assert (filled == expected).all()


def test_a_line_is_no_picture():
    with pytest.raises(PabError, match="10000x2 pixels is too narrow for a video of 48x32"):
        fill(Image.new("RGB", (10_000, 2)), 32, 48)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "There are no frames"),
        (np.zeros((2, 8, 8), np.uint8), r"shape \[H, W, 3\], but this one has \[8, 8\]"),
        (np.zeros((1, 8, 8, 2), np.uint8), r"\[8, 8, 2\]"),
        (np.zeros((1, 0, 8, 3), np.uint8), r"\[0, 8, 3\]"),
        (np.zeros((1, 8, 8, 3), np.int64), "uint8 or floats from 0 to 1, but this one has int64"),
    ],
)
def test_what_is_no_frame_is_explained(frames: Any, words: str):
    with pytest.raises(PabError, match=words):
        frames_to_video_tensor(frames, 8, 8)


# Picture files


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".PNG"])
def test_a_picture_file(tmp_path: Path, suffix: str):
    path = tmp_path / f"two words{suffix}"
    Image.fromarray(quarters()).save(path)
    video = read_reference(path, 40, 60, limit=17)
    assert video.shape == (1, 3, 1, 40, 60)
    corners = ((video[0, :, 0, [5, 5, 35, 35], [5, 55, 5, 55]] + 1) * 127.5).round()
    expected = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]).T
    assert (corners - expected).abs().max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright(tmp_path: Path, orientation: int):
    turned = {
        1: quarters(),
        2: np.fliplr(quarters()),
        3: np.rot90(quarters(), 2),
        4: np.flipud(quarters()),
        5: quarters().swapaxes(0, 1),
        6: np.rot90(quarters(), 1),
        7: np.rot90(quarters(), 2).swapaxes(0, 1),
        8: np.rot90(quarters(), -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "photo.png", exif=exif)
    assert (np.asarray(read_picture(tmp_path / "photo.png")) == quarters()).all()
    with Image.open(tmp_path / "photo.png") as image:  # as an app hands it over
        video = frames_to_video_tensor([image], 40, 60)
    assert torch.equal(video, frames_to_video_tensor([quarters()], 40, 60))


@pytest.mark.parametrize(("mode", "mid"), [("L", 128), ("I;16", 32768), ("I", 32768), ("P", 128), ("RGBA", 128)])
def test_grey_and_other_modes(tmp_path: Path, mode: str, mid: int):
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((8, 8), mid, np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.fromarray(np.full((8, 8), 128, np.uint8)).convert(mode)
    image.save(tmp_path / "grey.tiff")
    with Image.open(tmp_path / "grey.tiff") as saved:
        assert saved.mode == mode
    grey = np.asarray(read_picture(tmp_path / "grey.tiff"))
    assert grey.shape == (8, 8, 3)
    assert abs(float(grey.mean()) - 128) <= 1


def test_bad_picture_files_are_explained(tmp_path: Path):
    with pytest.raises(PabError, match=r"There is no picture .*none\.png; check the path"):
        read_reference(tmp_path / "none.png", 8, 8, limit=1)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(PabError, match=r"text\.jpg could not be read as a picture"):
        read_reference(tmp_path / "text.jpg", 8, 8, limit=1)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noisy.save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:6000])
    with pytest.raises(PabError, match=r"half\.png could not be read"):
        read_reference(tmp_path / "half.png", 8, 8, limit=1)


def test_a_picture_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PabError, match=r"a\.png could not be read"):
        read_picture(tmp_path / "a.png")


# Video files


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 frames at 24 a second, each a little brighter."""
    return write_mp4(tmp_path_factory.mktemp("films") / "a film; 100%d.mp4", counting(200), 24, {}, crf=4)


@pytest.mark.parametrize("limit", [1, 17, 200, 500])
@pytest.mark.parametrize("last", [False, True])
def test_the_first_or_last_frames_of_a_video(film: Path, limit: int, last: bool):
    every = read_mp4(film)[0]
    frames = np.stack(list(read_video_frames(film, limit, last=last)))
    assert (frames == (every[-limit:] if last else every[:limit])).all()


def test_the_last_frames_of_a_slow_video(tmp_path: Path):
    path = write_mp4(tmp_path / "slow.mp4", counting(40), 2, {})
    frames = np.stack(list(read_video_frames(path, 17, last=True)))
    assert (frames == read_mp4(path)[0][-17:]).all()


def test_only_as_much_of_a_long_video_is_read_as_is_asked_for(film: Path, monkeypatch: pytest.MonkeyPatch):
    from pab_core import frame_input

    decoded: list[int] = []
    plain = frame_input._decode

    def counted(*arguments: Any):
        decoded.append(0)
        for frame in plain(*arguments):
            decoded[-1] += 1
            yield frame

    monkeypatch.setattr(frame_input, "_decode", counted)
    assert len(list(read_video_frames(film, 17))) == 17
    assert len(list(read_video_frames(film, 17, last=True))) == 17
    assert decoded[0] == 17
    assert len(decoded) == 2, "the end is found without reading from the beginning"
    assert decoded[1] < 120


def test_a_reader_that_is_left_early_ends_its_process(film: Path):
    reader = read_video_frames(film, 200)
    assert next(reader).shape == (32, 48, 3)
    reader.close()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StopIteration):
        next(reader)


def test_another_rate(film: Path):
    assert len(list(read_video_frames(film, 500, fps=12))) == 100
    every, half = brightness(read_video_frames(film, 200)), brightness(read_video_frames(film, 100, fps=12))
    assert half == pytest.approx(every[::2], abs=2)
    assert len(list(read_video_frames(film, 17, last=True, fps=48))) == 17


def test_a_video_is_brought_to_size(film: Path):
    video = read_reference(film, 24, 24, limit=5, last=True)
    assert video.shape == (1, 3, 5, 24, 24)
    assert brightness((video[0].permute(1, 2, 3, 0) + 1) * 127.5) == pytest.approx(
        brightness(counting(200)[-5:]), abs=2
    )


def test_an_animated_gif_is_a_video(tmp_path: Path):
    path = write_animation(tmp_path / "a.gif", counting(6), 10)
    for last in (False, True):
        frames = brightness(read_video_frames(path, 4, last=last))
        assert frames == pytest.approx(brightness(counting(6)[2:] if last else counting(6)[:4]), abs=3)


def test_bad_video_files_are_explained(tmp_path: Path):
    with pytest.raises(PabError, match=r"There is no video file .*none\.mp4"):
        read_reference(tmp_path / "none.mp4", 8, 8, limit=1)
    (tmp_path / "text.mp4").write_text("no video")
    for last in (False, True):
        with pytest.raises(PabError, match=r"text\.mp4 could not be read as a video: ffmpeg says"):
            read_reference(tmp_path / "text.mp4", 8, 8, limit=1, last=last)
    with pytest.raises(PabError, match="There is no video file"):
        read_reference(tmp_path, 8, 8, limit=1)
