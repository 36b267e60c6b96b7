"""Frames to files and back: H.264 mp4 with the settings inside, contact sheets, small animated pictures.

ffmpeg comes with the package imageio-ffmpeg; frames go to it and come from it through pipes. A file appears under its
name only when it is complete: it is written beside the target and moved into place at the end.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from .errors import PabError

Frames = np.ndarray | torch.Tensor
Progress = Callable[[int, int], None]

TITLE_LENGTH = 2000
ANIMATIONS = (".gif", ".webp", ".png")

# Without this flag a program without a console gets a console window for every ffmpeg call on Windows.
NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)


def check_output(path: str | os.PathLike[str], force: bool = False, suffixes: tuple[str, ...] = (".mp4",)) -> Path:
    """Says before the work starts whether a file can be written there; returns the path.

    PabError: wrong ending, a folder of that name, a missing or unwritable parent folder, or a file that is already
    there (allowed with ``force``).
    """
    target = Path(path).expanduser()
    try:
        if target.is_dir():
            raise PabError(
                f"{target} is a folder; give the name of a file in it, such as {target / ('out' + suffixes[0])}."
            )
        if target.suffix.lower() not in suffixes:
            raise PabError(f"The output file {target} must end in {' or '.join(suffixes)}; change its name.")
        if not target.parent.is_dir():
            what = "is not a folder" if target.parent.exists() else "does not exist"
            raise PabError(
                f"{target.parent} {what}, so {target.name} cannot be written there; create it or choose another."
            )
        if target.exists() and not force:
            raise PabError(f"{target} already exists; choose another name or allow overwriting it (force).")
        # Permission bits do not tell on every system (Windows, read-only mounts), so a file is really made.
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise PabError(f"{target} cannot be written: {error.strerror}; choose another folder or name.") from error
    return target


def write_mp4(
    path: str | os.PathLike[str],
    frames: Frames,
    fps: float,
    metadata: Mapping[str, Any],
    *,
    force: bool = False,
    crf: int = 16,
    progress: Progress | None = None,
) -> Path:
    """Writes frames [T, H, W, 3] uint8 as H.264 (yuv420p, bt709, index in front) and returns the path.

    An odd height or width grows by one row or column, a copy of the last one: the format only knows even sizes.
    ``metadata`` is stored as JSON in the comment tag, its "prompt" (the first 2000 characters) also as the title.
    ``crf`` 0-51 is the loss, smaller is better.
    ``progress(frames written, frames in all)``; what it raises cancels the writing, and no file stays behind.

    PabError: as ``check_output``; frames or fps that are no video; ffmpeg failed.
    """
    target = check_output(path, force)
    pixels = as_frames(frames)
    if not (math.isfinite(fps) and fps > 0):
        raise PabError(f"The frame rate must be a positive number of frames per second, but is {fps}.")
    count, height, width, _ = pixels.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with complete_file(target, force) as part, tempfile.TemporaryDirectory() as scratch:
        tags = Path(scratch) / "tags.txt"
        tags.write_bytes(settings_file(metadata))
        command = [
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width + width % 2}x{height + height % 2}"),
            *("-framerate", str(Fraction(fps).limit_denominator(100_000)), "-i", "pipe:0"),
            # The settings go by file: a command line is limited in length, to 32 kB on Windows.
            *("-f", "ffmetadata", "-i", str(tags), "-map", "0:v", "-map_metadata", "1"),
            *("-metadata", f"title={title_of(metadata.get('prompt'))}"),
            # At this crf the slower presets take five times as long for a file as large and as near to the frames.
            *("-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf), "-pix_fmt", "yuv420p"),
            # Players guess the colour matrix by size where it is not written; convert to one and name it.
            *("-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"),
            *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
            *("-movflags", "+faststart", "-f", "mp4", str(part)),
        ]
        padded = (np.pad(frame, odd, mode="edge") for frame in pixels)
        feed_ffmpeg(command, padded, count, f"{target.name} was not written", progress)
    return target


def read_mp4(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """Reads a video: frames [T, H, W, 3] uint8 and frames per second. PabError when it is not there or no video."""
    video = existing_file(path)
    # One frame as yuv4mpeg: its header has the size as shown and the exact rate, "YUV4MPEG2 W192 H128 F16:1 ..."
    first = ["-i", str(video), "-map", "0:v:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"]
    header = run_ffmpeg(first, f"{video} could not be read as a video").split(b"\n", 1)[0].decode("ascii", "replace")
    fields = {field[0]: field[1:] for field in header.split()[1:]}
    width, height, fps = int(fields["W"]), int(fields["H"]), Fraction(fields["F"].replace(":", "/"))
    every = ["-i", str(video), "-map", "0:v:0", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    raw = run_ffmpeg(every, f"{video} could not be read as a video")
    return np.frombuffer(bytearray(raw), np.uint8).reshape(-1, height, width, 3), float(fps)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that ``write_mp4`` stored; empty for a video that holds none. PabError when it is no media file."""
    try:
        settings = json.loads(read_tags(path).get("comment", ""))
    except json.JSONDecodeError:
        return {}
    return settings if isinstance(settings, dict) else {}


def read_tags(path: str | os.PathLike[str]) -> dict[str, str]:
    """All tags of a media file, such as title and comment."""
    video = existing_file(path)
    return parse_tags(run_ffmpeg(["-i", str(video), "-f", "ffmetadata", "-"], f"{video} could not be read"))


def contact_sheet(frames: Frames, columns: int, gap: int = 4) -> Image.Image:
    """Frames [T, H, W, 3] uint8 side by side on white, row by row, ``gap`` pixels apart."""
    pixels = as_frames(frames)
    count, height, width, _ = pixels.shape
    columns = min(max(columns, 1), count)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, frame in enumerate(pixels):
        row, column = divmod(index, columns)
        sheet.paste(Image.fromarray(frame), (column * (width + gap), row * (height + gap)))
    return sheet


def write_animation(path: str | os.PathLike[str], frames: Frames, fps: float, *, force: bool = False) -> Path:
    """Writes frames [T, H, W, 3] uint8 as an endless .gif, .webp or animated .png, and returns the path."""
    target = check_output(path, force, ANIMATIONS)
    if not (math.isfinite(fps) and fps > 0):
        raise PabError(f"The frame rate must be a positive number of frames per second, but is {fps}.")
    first, *rest = [Image.fromarray(frame) for frame in as_frames(frames)]
    options: dict[str, Any] = {"quality": 90, "method": 6} if target.suffix.lower() == ".webp" else {}
    with complete_file(target, force) as part:
        kind = target.suffix[1:].upper()
        first.save(part, kind, save_all=True, append_images=rest, duration=1000 / fps, loop=0, **options)
    return target


@contextmanager
def complete_file(target: Path, force: bool) -> Iterator[Path]:
    """Gives a name beside the target; moves that file into place when the block ends well, else removes it."""
    part = target.with_name(f".{secrets.token_hex(6)}{target.suffix}.part")
    try:
        yield part
        # Somebody may have made the file while this one was written.
        check_output(target, force, (target.suffix.lower(),))
        try:
            os.replace(part, target)
        except OSError as error:
            raise PabError(f"{target} cannot be written: {error.strerror}; choose another folder or name.") from error
    finally:
        part.unlink(missing_ok=True)


def as_frames(frames: Frames) -> np.ndarray:
    """Checks for [T, H, W, 3] uint8 with at least one frame; a tensor of any device becomes an array."""
    pixels = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise PabError(
            f"A video needs uint8 frames of shape [T, H, W, 3], but got {pixels.dtype} of shape {list(pixels.shape)}."
        )
    return pixels


def existing_file(path: str | os.PathLike[str]) -> Path:
    video = Path(path).expanduser()
    if not video.is_file():
        raise PabError(f"There is no video file {video}; check the path.")
    return video


def ffmpeg_command(arguments: list[str]) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *arguments]


def run_ffmpeg(arguments: list[str], failure: str) -> bytes:
    """Runs ffmpeg and returns its standard output; ``failure`` opens the sentence when it fails."""
    done = subprocess.run(
        ffmpeg_command(arguments), stdin=subprocess.DEVNULL, capture_output=True, check=False, creationflags=NO_WINDOW
    )
    if done.returncode != 0:
        raise PabError(f"{failure}: {reason(done.stderr, done.returncode)}")
    return done.stdout


def feed_ffmpeg(
    arguments: list[str], frames: Iterator[np.ndarray], count: int, failure: str, progress: Progress | None
) -> None:
    """Runs ffmpeg and sends it the frames; it has ended, whichever way this is left."""
    # Its messages go to a file: nobody reads a pipe while the frames are sent, and a full one would stop both sides.
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            ffmpeg_command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            creationflags=NO_WINDOW,
        )
        pipe = process.stdin
        assert pipe is not None
        sent = 0
        try:
            for frame in frames:
                if not works(pipe.write, np.ascontiguousarray(frame).data):
                    break
                sent += 1
                if progress is not None:
                    progress(sent, count)
            delivered = works(pipe.close) and sent == count
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            works(pipe.close)
        if code != 0 or not delivered:
            messages.seek(0)
            raise PabError(f"{failure}: {reason(messages.read(), code)}")


def works(operation: Callable[..., Any], *arguments: Any) -> bool:
    """False when the pipe is closed at the other end: ffmpeg died, and its own words tell more than the OSError."""
    try:
        operation(*arguments)
    except OSError:
        return False
    return True


def reason(messages: bytes, code: int) -> str:
    """ffmpeg's first line, which names the cause, and its last one, which says what came of it."""
    lines = [
        re.sub(r"\[[^\]]* @ 0x\w+\] ", "", line).strip() for line in messages.decode("utf-8", "replace").splitlines()
    ]
    lines = [line for line in lines if line]
    if lines:
        return "ffmpeg says: " + "; ".join(dict.fromkeys([lines[0], lines[-1]]))
    return f"ffmpeg was ended by signal {-code}." if code < 0 else f"ffmpeg ended with code {code}."


def title_of(prompt: Any) -> str:
    """The prompt as an argument for ffmpeg: valid text, and no more of it than a title bears."""
    text = "" if prompt is None else str(prompt)
    return text[:TITLE_LENGTH].replace("\0", "").encode("utf-8", "replace").decode()


def settings_file(metadata: Mapping[str, Any]) -> bytes:
    """The settings as JSON in a comment tag, as ffmetadata text. Source: ffmpeg-formats, "Metadata".

    ffmpeg misreads a carriage return in such a file and a backslash at the end of a value; JSON in ASCII has neither.
    """
    text = re.sub(r"([=;#\\])", r"\\\1", json.dumps(dict(metadata)))
    return f";FFMETADATA1\ncomment={text}\n".encode("ascii")


def parse_tags(text: bytes) -> dict[str, str]:
    """Reads ffmetadata text; only the tags of the file as a whole, not of streams or chapters."""
    tags: dict[str, str] = {}
    characters = iter(text.decode("utf-8", "replace"))
    name, value = None, ""
    for char in characters:
        if char == "\\":
            value += next(characters, "")
        elif char == "=" and name is None:
            name, value = value, ""
        elif char == "\n":
            if name is None and value.startswith("["):
                break
            if name is not None:
                tags[name] = value
            name, value = None, ""
        else:
            value += char
    return tags
