"""Videos for VBench (arXiv 2311.17982) under the names that it expects, and its own package run on them.

Its prompts come from its package, or from a copy of its VBench_full_info.json; its scores from nowhere but its package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..broadcast import AnyPolicy
from ..errors import PabError
from ..pipeline import Pipeline

HOW_TO_GET = (
    "VBench's scores come from its own package, which is not installed: it needs older packages than this one, so pip "
    "install vbench in an environment of its own, on a machine with a GPU and a network for its models, and give that "
    "environment's Python with --python."
)
UNFILTERED = (
    "temporal_flickering was judged without VBench's filter of still videos, which needs a GPU: it is not comparable "
    "with published scores."
)
# Given as text to the Python that has the package: run as a file, its neighbours here would come before packages.
_JUDGE = Path(__file__).with_name("vbench_judge.py")
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


def installed(python: str | None = None) -> Path | None:
    """The folder of its package in the environment of a Python, None: this one's; None where it is not there."""
    asked = "import importlib.util as u; s = u.find_spec('vbench'); print(s.origin if s else '')"
    try:
        found = subprocess.run([python or sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PabError(
            f"{python} could not be asked for vbench ({error}): give the Python of an environment."
        ) from None
    origin = found.stdout.strip()
    return Path(origin).parent if origin else None


def find_info(given: Path | None, package: Path | None) -> Path:
    """The list of prompts: the file given, else that in the package. PabError where there is neither."""
    if given is not None:
        return given
    if package is not None and (path := package / "VBench_full_info.json").is_file():
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
    for left in folder.glob(".*.part"):  # of a run that was killed; the package would take its ending for the videos'
        left.unlink()
    for done, video in enumerate(videos):
        if on_progress is not None:
            on_progress(done, len(videos))
        path = folder / f"{video.name}.mp4"
        if not path.exists():
            pipe.generate(video.prompt, policy=policy, seed=seed + video.index).save(path)
    if on_progress is not None:
        on_progress(len(videos), len(videos))


def run_vbench(
    info: Path,
    videos: Path,
    output: Path,
    dimensions: Sequence[str],
    device: Any,
    python: str | None = None,
) -> dict[str, Any]:
    """Its own evaluation of a folder of videos, in the environment of a Python -> dimension: [score, each video's].

    What it says goes to vbench.txt in `output`.

    PabError where it fails, with the last that it said.
    """
    output, name = output.resolve(), videos.name
    given = {"device": str(device), "info": str(info.resolve()), "output": str(output), "name": name}
    given |= {"videos": str(videos.resolve()), "dimensions": list(dimensions)}
    command = [python or sys.executable, "-c", _JUDGE.read_text(encoding="utf-8"), json.dumps(given)]
    with (output / "vbench.txt").open("w", encoding="utf-8") as said:
        result = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False)
    if result.returncode != 0:
        lines = (output / "vbench.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise PabError(
            f"VBench's package failed: {lines[-1] if lines else 'it said nothing'}. All that it said is in "
            f"{output / 'vbench.txt'}; the videos are made, so the same command judges them again."
        )
    return json.loads((output / f"{name}_eval_results.json").read_text(encoding="utf-8"))
