"""Save Video (PAB)"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from pab_core import PabError

from . import host
from .host import io


class SaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABSaveVideo",
            display_name="Save Video (PAB)",
            description=(
                "Saves an H.264 mp4 of a quality that you choose, with its workflow inside: dropped on ComfyUI's page, "
                "the file opens the graph that made it."
            ),
            search_aliases=["save mp4", "export video", "video combine"],
            is_output_node=True,
            inputs=[
                io.Video.Input("video", tooltip="From Video Decode (PAB), or any other video."),
                io.String.Input(
                    "filename_prefix",
                    default="video/pab",
                    tooltip="Name of the file in output/; a number is added. %date:yyyy-MM-dd% and the like work.",
                ),
                io.Int.Input(
                    "loss",
                    default=16,
                    min=0,
                    max=40,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Of the compression (crf): 0 none, 16 not visible, 23 smaller files, 40 poor.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, video: Any, filename_prefix: str, loss: int):
        from pab_core.video_io import complete_file, write_mp4

        batch, fps = host.read_video(video)
        if not 0 <= loss <= 51:
            raise PabError(f"The loss {loss} is not from 0 (none) to 51.")
        frames = host.frames_of(batch)
        path, result = host.output_file(filename_prefix, ".mp4", frames.shape[2], frames.shape[1])
        tags = host.workflow_tags(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        tell = host.count_progress()
        with tempfile.TemporaryDirectory() as scratch:
            plain = write_mp4(Path(scratch) / "plain.mp4", frames, fps, {}, crf=loss, progress=tell)
            with complete_file(path, force=False) as part:
                add_tags(plain, part, tags)
        return io.NodeOutput(ui=host.shown_video(result))


def add_tags(source: Path, target: Path, tags: dict[str, Any]) -> None:
    """Copies an mp4 and adds JSON tags under names of our own, where ComfyUI's page looks for them."""
    from pab_core.video_io import run_ffmpeg

    lines = [";FFMETADATA1", *(f"{escaped(name)}={escaped(json.dumps(value))}" for name, value in tags.items())]
    listed = source.with_suffix(".txt")
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    command = ["-i", str(source), "-f", "ffmetadata", "-i", str(listed), "-map", "0", "-map_metadata", "1"]
    command += ["-c", "copy", "-movflags", "+faststart+use_metadata_tags", "-f", "mp4", str(target)]
    run_ffmpeg(command, f"{target.name} was not written")


def escaped(text: str) -> str:
    """As ffmpeg's metadata files want it."""
    return re.sub(r"([=;#\\\n])", r"\\\1", text)
