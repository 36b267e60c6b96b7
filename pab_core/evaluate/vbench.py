"""Videos for VBench (arXiv 2311.17982) under the names that it expects, and its own package run on them.

Its prompts come from its package, or from a copy of its VBench_full_info.json; its scores from nowhere but its package.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..broadcast import AnyPolicy
from ..errors import PabError
from ..pipeline import Pipeline

HOW_TO_GET = (
    "VBench's scores come from its own package, which is not installed: pip install vbench, on a machine with a GPU "
    "and a network for its models."
)
_SAMPLES = {"temporal_flickering": 25}  # videos of a prompt, as its authors ask for; of all other dimensions:
_USUAL_SAMPLES = 5
_FORBIDDEN = set("/\\\0")


@dataclass(frozen=True)
class Video:
    """One video of the suite. `name` is the file's, without its ending."""

    prompt: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.prompt}-{self.index}"


def is_installed() -> bool:
    return importlib.util.find_spec("vbench") is not None


def find_info(given: Path | None) -> Path:
    """The list of prompts: the file given, else that in the installed package. PabError where there is neither."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("vbench")
    for folder in list(spec.submodule_search_locations or ()) if spec is not None else []:
        path = Path(folder) / "VBench_full_info.json"
        if path.is_file():
            return path
    raise PabError(f"{HOW_TO_GET} For the videos alone, give its VBench_full_info.json with --info.")


def read_suite(info: Path, dimensions: Sequence[str] = (), samples: int | None = None) -> list[Video]:
    """The videos of some dimensions, of all where none is named; as many of each prompt as the authors ask for, or at
    most `samples`.

    PabError where the file is no such list, or names no such dimension.
    """
    try:
        entries = [(str(e["prompt_en"]), list(e["dimension"])) for e in json.loads(info.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PabError(f"{info} is no list of VBench's prompts ({error}): give its VBench_full_info.json.") from None
    known = sorted({name for _, named in entries for name in named})
    for name in dimensions:
        if name not in known:
            raise PabError(f"VBench has no dimension '{name}' in {info}. Known are {', '.join(known)}.")
    counts: dict[str, int] = {}
    for prompt, named in entries:
        wanted = [_SAMPLES.get(name, _USUAL_SAMPLES) for name in named if not dimensions or name in dimensions]
        if wanted:
            counts[prompt] = max(counts.get(prompt, 0), *wanted)
    for prompt in counts:
        if _FORBIDDEN & set(prompt):
            raise PabError(f"The prompt {prompt!r} cannot be a file's name, which VBench asks for.")
    return [Video(prompt, i) for prompt, n in counts.items() for i in range(n if samples is None else min(n, samples))]


def make_suite(
    pipe: Pipeline,
    policy: str | AnyPolicy,
    videos: Sequence[Video],
    folder: Path,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes those that are not in the folder yet: "PROMPT-INDEX.mp4", with the seed `seed` + INDEX."""
    folder.mkdir(parents=True, exist_ok=True)
    for done, video in enumerate(videos):
        if on_progress is not None:
            on_progress(done, len(videos))
        path = folder / f"{video.name}.mp4"
        if not path.exists():
            pipe.generate(video.prompt, policy=policy, seed=seed + video.index).save(path)
    if on_progress is not None:
        on_progress(len(videos), len(videos))


def run_vbench(
    info: Path, videos: Path, output: Path, name: str, dimensions: Sequence[str], device: Any
) -> dict[str, Any]:
    """Its own evaluation of a folder of videos -> what it writes as NAME_eval_results.json.

    PabError where it is not installed.
    """
    if not is_installed():
        raise PabError(HOW_TO_GET)
    judge = importlib.import_module("vbench").VBench(device, str(info), str(output))
    judge.evaluate(
        videos_path=str(videos), name=name, dimension_list=list(dimensions) or judge.build_full_dimension_list()
    )
    return json.loads((output / f"{name}_eval_results.json").read_text(encoding="utf-8"))
