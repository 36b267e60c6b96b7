"""Results that survive an interruption, and the files in which finished ones are handed on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..broadcast.whole_file import whole_file, write_whole
from ..errors import PabError


class ResultFile:
    """JSON lines that grow: the settings first, then what was measured."""

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        first = {"header": json.loads(json.dumps(header))}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            # What follows the last end of a line was cut off in the middle, and is measured again.
            whole = text[: text.rfind("\n") + 1]
            found = [self._read(line) for line in whole.splitlines() if line]
            if not found or found[0] != first:
                raise PabError(
                    f"{path} holds results of other settings: give another folder or file, or remove it to measure "
                    "anew."
                )
            self.lines = found[1:]
            if whole != text:
                write_whole(path, whole)
        else:
            write_whole(path, json.dumps(first) + "\n")

    def add(self, line: dict[str, Any]) -> None:
        """PabError where it cannot be written: what was before it stays, and half a line is taken for none."""
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise PabError(
                f"{self.path} cannot be written ({error}): make room for it. What was measured before is kept, and the "
                "same command goes on from there."
            ) from None
        self.lines.append(line)

    def find(self, **fields: Any) -> dict[str, Any] | None:
        return next((line for line in self.lines if all(line.get(k) == v for k, v in fields.items())), None)

    def _read(self, line: str) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError:
            raise PabError(f"{self.path} is damaged: remove it to measure anew.") from None


def write_report(
    folder: Path, name: str, report: Any, figures: Mapping[str, Callable[[Path], None]] | None = None
) -> list[Path]:
    """NAME.json and NAME.md of a report, and a picture for each of `figures`, all in `folder`; -> their paths."""
    paths = [
        write_whole(folder / f"{name}.json", json.dumps(report.to_json(), indent=2) + "\n"),
        write_whole(folder / f"{name}.md", report.to_markdown()),
    ]
    pictures = ((folder / f"{figure}.png", draw) for figure, draw in (figures or {}).items())
    return [*paths, *(path for path, draw in pictures if write_figure(path, draw))]


def write_figure(path: Path, draw: Callable[[Path], None]) -> bool:
    """A picture, drawn by what needs matplotlib; False, with a warning in the log, where that is not installed: what
    was measured is not lost for that."""
    try:
        with whole_file(path) as part:
            draw(part)
    except ImportError:
        logging.getLogger(__name__).warning(
            "matplotlib is not installed, so there is no %s: pip install matplotlib, and run the same command again.",
            path.name,
        )
        return False
    return True
