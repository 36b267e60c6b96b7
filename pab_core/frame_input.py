"""Pictures and videos from outside -> the tensor that the VAE encodes.

ffmpeg sends one frame at a time, and each is brought to the clip's size at once: memory depends on the clip, not on the
file.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import PabError
from .video_io import NO_WINDOW, existing_file, ffmpeg_command, reason

Picture = Image.Image | np.ndarray | torch.Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# A picture this many times as large as the clip, once scaled to fill it, is all but a line.
MOST_CROPPED = 64


def frames_to_video_tensor(frames: Iterable[Picture], height: int, width: int) -> torch.Tensor:
    """Pictures -> video [1, 3, T, height, width], float32 in [-1, 1].

    Each is scaled (bicubic) until it fills the size, and what is too much is cut off evenly at both sides; a photo is
    first turned as its EXIF entry says.

    Args:
        frames: PIL images, or arrays [H, W, 3] of uint8 or of floats 0..1, or all of them in one [T, H, W, 3]; a fourth
            channel is left out.

    Raises:
        PabError: no frames, or something that is no picture.
    """
    fitted = [fill(as_image(frame), height, width) for frame in frames]
    if not fitted:
        raise PabError("There are no frames: give at least one picture.")
    pixels = torch.from_numpy(np.stack(fitted)).permute(3, 0, 1, 2)[None]
    return pixels.float().div_(127.5).sub_(1)


def read_reference(
    path: str | os.PathLike[str],
    height: int,
    width: int,
    *,
    limit: int,
    last: bool = False,
    fps: float | None = None,
) -> torch.Tensor:
    """A picture or video file -> [1, 3, T, height, width], T = 1 for a picture, at most `limit` for a video.

    `last`, `fps`: as `read_video_frames`. PabError: no such file, or one that holds no pictures.
    """
    if Path(path).suffix.lower() in PICTURES:
        return frames_to_video_tensor([read_picture(path)], height, width)
    return frames_to_video_tensor(read_video_frames(path, limit, last=last, fps=fps), height, width)


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """A picture file -> RGB, turned as its EXIF entry says. PabError when it is not there or no picture."""
    target = Path(path).expanduser()
    if not target.is_file():
        raise PabError(f"There is no picture {target}; check the path.")
    try:
        with Image.open(target) as image:
            return as_image(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PabError(f"{target} could not be read as a picture: it is damaged or of an unknown kind.") from error


def read_video_frames(
    path: str | os.PathLike[str], limit: int, *, last: bool = False, fps: float | None = None
) -> Iterator[np.ndarray]:
    """The first `limit` frames of a video, or the last ones, each [H, W, 3] uint8, in order.

    `fps` drops or repeats frames until there are so many a second; None takes them as they are. PabError when the file
    is not there or holds no video.
    """
    assert limit >= 1
    video = existing_file(path)
    rate = [] if fps is None else ["-vf", f"fps={fps}"]
    if not last:
        yield from _decode(video, [], [*rate, "-frames:v", str(limit)])
        return
    # Enough seconds for any rate of 8 frames a second or more; what is slower is read from its beginning.
    seconds = limit / min(fps or 8, 8) + 2
    try:
        tail = deque(_decode(video, ["-sseof", str(-seconds)], rate), maxlen=limit)
    except PabError:  # a file that does not tell where it ends
        tail = deque(maxlen=limit)
    if len(tail) < limit:
        tail = deque(_decode(video, [], rate), maxlen=limit)
    yield from tail


def as_image(frame: Picture) -> Image.Image:
    """One frame as RGB; a photo is turned as its EXIF entry says. PabError if it is no picture."""
    if isinstance(frame, Image.Image):
        image = ImageOps.exif_transpose(frame)
        if image.mode.startswith("I"):  # 16 bits of grey, of which PIL would cut off what is brighter than 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
        return image.convert("RGB")
    if isinstance(frame, torch.Tensor):
        frame = (frame.float() if frame.is_floating_point() else frame).detach().cpu().numpy()
    pixels = np.asarray(frame)
    if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4) or 0 in pixels.shape:
        raise PabError(f"A frame needs the shape [H, W, 3], but this one has {list(pixels.shape)}.")
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise PabError(f"A frame needs uint8 or floats from 0 to 1, but this one has {pixels.dtype}.")
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def fill(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Scaled to fill that size, cut evenly -> [height, width, 3] uint8."""
    scale = max(height / image.height, width / image.width)
    high, wide = max(round(image.height * scale), height), max(round(image.width * scale), width)
    if high * wide > MOST_CROPPED * height * width:
        raise PabError(
            f"A picture of {image.width}x{image.height} pixels is too narrow for a video of {width}x{height}: almost "
            "all of it would be cut off. Crop it first."
        )
    top, left = round((high - height) / 2), round((wide - width) / 2)
    scaled = image if image.size == (wide, high) else image.resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(scaled)[top : top + height, left : left + width]


def _decode(video: Path, before: list[str], after: list[str]) -> Iterator[np.ndarray]:
    """Frames as ffmpeg sends them, as PPM: each says its own size. The process ends with the generator."""
    arguments = [*before, "-i", f"file:{video}", "-map", "0:v:0", *after]
    arguments += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    # Its messages go to a file: nobody reads a pipe while the frames are read, and a full one would stop both sides.
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            ffmpeg_command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            creationflags=NO_WINDOW,
        )
        pipe, count = process.stdout, 0
        assert pipe is not None
        try:
            while pipe.readline() == b"P6\n":
                width, height = map(int, pipe.readline().split())
                pipe.readline()  # the largest value, 255
                raw = pipe.read(width * height * 3)
                if len(raw) < width * height * 3:
                    break
                count += 1
                yield np.frombuffer(raw, np.uint8).reshape(height, width, 3)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            pipe.close()
        if code != 0 or not count:
            messages.seek(0)
            why = reason(messages.read(), code) if code else "it holds no frames."
            raise PabError(f"{video} could not be read as a video: {why}")
