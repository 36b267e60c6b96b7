"""VBench's prompts and names, and how its own package is called, by a stand-in that records the call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_cli import pab

from pab_core.errors import PabError
from pab_core.evaluate.vbench import HOW_TO_GET, Video, find_info, read_suite, run_vbench

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
        return ["color"]
    def evaluate(self, videos_path, name, dimension_list=None, **more):
        told = {"color": [0.5, [*self.given, sorted(os.listdir(videos_path)), dimension_list]]}
        with open(os.path.join(self.output, name + "_eval_results.json"), "w") as file:
            json.dump(told, file)
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
    assert "vbench" not in sys.modules
    with pytest.raises(PabError, match="pip install vbench"):
        find_info(None)
    with pytest.raises(PabError, match="pip install vbench"):
        run_vbench(info, tmp_path, tmp_path, "a", [], "cpu")
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


def test_its_own_package_judges(folder: Path, tmp_path: Path, info: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "site" / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    info.rename(package / "VBench_full_info.json")
    monkeypatch.syspath_prepend(str(package.parent))
    try:
        given = ("--dimension", "color", "--samples", "1", "-o", tmp_path / "a", "--device", "cpu", "--json")
        told = json.loads(pab("bench", "vbench", "--model", folder, *given).stdout)
    finally:
        sys.modules.pop("vbench", None)
    _, (device, prompts, videos, dimensions) = told["scores"]["color"]
    assert (device, Path(prompts)) == ("cpu", package / "VBench_full_info.json")
    assert videos == ["a red ball, rolling-0.mp4"]
    assert dimensions == ["color"]
