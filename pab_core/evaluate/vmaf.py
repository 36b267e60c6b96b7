"""VMAF (Netflix, model vmaf_v0.6.1) by an ffmpeg that was built with libvmaf: 100 = as good as the reference.

Its model was trained on films seen at 1080p; of small clips its numbers serve for comparison only.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import PabError
from ..video_io import NO_WINDOW, reason
from .metrics import check_videos

ABSENT = "VMAF is left out: the ffmpeg at hand was built without libvmaf; put one that has it on the path."


@dataclass(frozen=True)
class Vmaf:
    """Compares videos with the given program."""

    program: str

    @classmethod
    def find(cls, programs: Iterable[str] | None = None) -> Vmaf | None:
        """With the first of the programs that has the filter: by default the system's ffmpeg, then that of the package
        imageio-ffmpeg. None where none has it."""
        for program in _ffmpegs() if programs is None else programs:
            done = _run([program, "-hide_banner", "-filters"], None)
            if done is not None and " libvmaf " in done.stdout.decode(errors="replace"):
                return cls(program)
        return None

    def __call__(self, video: Tensor, reference: Tensor) -> float:
        """Two videos uint8 [T, H, W, 3] -> the mean over the frames; NaN where ffmpeg finds no number.

        PabError where they are not of one shape, or ffmpeg fails.
        """
        check_videos(video, reference)
        _, height, width, _ = video.shape
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25"]
        # One name for its report, in the folder where it runs: a path would have to be escaped for the filter.
        pair = "[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]libvmaf=log_fmt=json:log_path=vmaf.json"
        with tempfile.TemporaryDirectory() as folder:
            given = []
            for name, one in (("video.rgb", video), ("reference.rgb", reference)):
                (Path(folder) / name).write_bytes(one.cpu().contiguous().numpy().tobytes())
                given += [*raw, "-i", name]
            command = [self.program, "-hide_banner", "-loglevel", "error", *given, "-lavfi", pair, "-f", "null", "-"]
            done = _run(command, folder)
            report = Path(folder) / "vmaf.json"
            if done is None or done.returncode != 0 or not report.is_file():
                told = "it did not start" if done is None else reason(done.stderr, done.returncode)
                raise PabError(f"VMAF could not be measured with {self.program}: {told}")
            found = json.loads(report.read_text(encoding="utf-8"))["pooled_metrics"]["vmaf"]["mean"]
        return float(found) if found is not None else math.nan


def _ffmpegs() -> list[str]:
    import imageio_ffmpeg

    return [*filter(None, [shutil.which("ffmpeg")]), imageio_ffmpeg.get_ffmpeg_exe()]


def _run(command: list[str], folder: str | None) -> subprocess.CompletedProcess[bytes] | None:
    try:
        return subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False, creationflags=NO_WINDOW
        )
    except OSError:
        return None
