"""VBench's prompts and names, and how its own package is called, by a stand-in that records the call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_cli import pab

from pab_core.errors import PabError
from pab_core.evaluate.vbench import HOW_TO_GET, UNFILTERED, Video, find_info, installed, read_suite, run_vbench

ENTRIES = [
    {"prompt_en": "a red ball, rolling", "dimension": ["subject_consistency", "motion_smoothness"]},
    {"prompt_en": "a still cube", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red ball, rolling", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
]
STAND_IN = """
import json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.given, self.output = [str(device), full_info_dir], output_path
    def build_full_dimension_list(self):
        return ["color", "temporal_flickering"]
    def evaluate(self, videos_path, name, dimension_list=None, **more):
        told = [*self.given, sorted(os.listdir(videos_path)), dimension_list]
        with open(os.path.join(self.output, name + "_eval_results.json"), "w") as file:
            json.dump({dimension: [0.5, told] for dimension in dimension_list}, file)
"""
FILTER = """
import os, shutil
def keep_first(args):
    target = os.path.join(args.result_path, "filtered_videos")
    os.makedirs(target)
    first = sorted(os.listdir(args.videos_path))[0]
    shutil.copy(os.path.join(args.videos_path, first), os.path.join(target, first))
def register_subparsers(subparser):
    parser = subparser.add_parser("static_filter")
    parser.add_argument("--videos_path")
    parser.add_argument("--result_path")
    parser.set_defaults(func=keep_first)
"""


@pytest.fixture
def info(tmp_path: Path) -> Path:
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    return path


def test_the_suite_has_as_many_videos_as_its_authors_ask_for(info: Path):
    suite = read_suite(info)
    assert len(suite) == 5 + 25
    assert suite[4].name == "a red ball, rolling-4"
    assert read_suite(info, ["color"]) == [Video("a red ball, rolling", i) for i in range(5)]
    assert len(read_suite(info, samples=2)) == 4
    with pytest.raises(PabError, match=r"no dimension 'colour'.*Known are color, motion_smoothness"):
        read_suite(info, ["colour"])


@pytest.mark.parametrize("text", ["[", "{}", '[{"prompt": "x"}]', "[1]"])
def test_what_is_no_list_of_prompts(info: Path, text: str):
    info.write_text(text if text != "{}" else '{"a": 1}', encoding="utf-8")
    with pytest.raises(PabError, match="is no list of VBench's prompts"):
        read_suite(info)


def test_a_prompt_that_is_no_name_is_refused(info: Path):
    info.write_text(json.dumps([{"prompt_en": "a/b", "dimension": ["color"]}]), encoding="utf-8")
    with pytest.raises(PabError, match="cannot be a file's name"):
        read_suite(info)


def test_without_the_package_one_sentence_says_how_to_get_it(folder: Path, tmp_path: Path, info: Path):
    assert installed() is None
    with pytest.raises(PabError, match="pip install vbench"):
        find_info(None, None)
    result = pab("bench", "vbench", "--model", folder, "-o", tmp_path / "a")
    assert result.exit_code == 2
    assert "--info" in result.stderr


def test_videos_are_made_once_under_its_names(folder: Path, tmp_path: Path, info: Path):
    out = tmp_path / "a"
    given = ("bench", "vbench", "--model", folder, "--info", info, "--dimension", "color", "--samples", "2", "-o", out)
    result = pab(*given)
    assert result.exit_code == 0, result.output
    assert HOW_TO_GET in result.stdout
    videos = out / "tiny-pab246"
    assert sorted(p.name for p in videos.iterdir()) == ["a red ball, rolling-0.mp4", "a red ball, rolling-1.mp4"]
    before = (videos / "a red ball, rolling-0.mp4").stat().st_mtime_ns
    told = json.loads(pab(*given, "--json").stdout)
    assert told == {"videos": str(videos), "count": 2, "scores": None}
    assert (videos / "a red ball, rolling-0.mp4").stat().st_mtime_ns == before


@pytest.fixture
def package(tmp_path: Path, info: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in, where every Python started from here finds it."""
    folder = tmp_path / "site" / "vbench"
    (folder / "cli").mkdir(parents=True)
    (folder / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    (folder / "utils.py").write_text("def init_submodules(names): print('models of', names)", encoding="utf-8")
    (folder / "cli" / "__init__.py").touch()
    (folder / "cli" / "static_filter.py").write_text(FILTER, encoding="utf-8")
    info.rename(folder / "VBench_full_info.json")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


def test_its_own_package_judges(folder: Path, tmp_path: Path, package: Path):
    given = ("--dimension", "color", "--samples", "1", "-o", tmp_path / "a", "--device", "cpu", "--json")
    told = json.loads(pab("bench", "vbench", "--model", folder, "--python", sys.executable, *given).stdout)
    _, (device, prompts, videos, dimensions) = told["scores"]["color"]
    assert (device, Path(prompts)) == ("cpu", package / "VBench_full_info.json")
    assert videos == ["a red ball, rolling-0.mp4"]
    assert dimensions == ["color"]
    result = pab("bench", "vbench", "--model", folder, *given[2:-1], "--dimension", "temporal_flickering")
    assert UNFILTERED in result.stderr
    (package / "__init__.py").write_text("raise RuntimeError('no network')", encoding="utf-8")
    result = pab("bench", "vbench", "--model", folder, *given)
    assert result.exit_code == 2
    assert "VBench's package failed: RuntimeError: no network" in result.stderr


def test_on_a_gpu_still_videos_are_filtered_first(tmp_path: Path, package: Path):
    videos = tmp_path / "out" / "tiny-off"
    videos.mkdir(parents=True)
    for i in range(3):
        (videos / f"a still cube-{i}.mp4").touch()
    found = run_vbench(package / "VBench_full_info.json", videos, tmp_path / "out", [], "cuda")
    assert list(found) == ["color", "temporal_flickering"]
    assert len(found["color"][1][2]) == 3
    assert found["temporal_flickering"][1][2:] == [["a still cube-0.mp4"], ["temporal_flickering"]]
    assert "models of ['dynamic_degree']" in (tmp_path / "out" / "vbench.txt").read_text(encoding="utf-8")


def test_an_environment_without_it(folder: Path, tmp_path: Path):
    given = ("bench", "vbench", "--model", folder, "-o", tmp_path / "a", "--python")
    assert "vbench is not installed in the environment of" in pab(*given, sys.executable).stderr
    assert "could not be asked for vbench" in pab(*given, tmp_path / "nowhere").stderr
