"""Results that survive an interruption, and the files in which finished ones are handed on."""

from __future__ import annotations

import json
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
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
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
    for figure, draw in (figures or {}).items():
        with whole_file(folder / f"{figure}.png") as part:
            draw(part)
        paths.append(folder / f"{figure}.png")
    return paths
