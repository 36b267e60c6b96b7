"""The figures of docs/policies.md are what the program draws, and the page names no policy that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_cli import pab

from pab_core.broadcast import find_policy
from pab_core.broadcast.predictors import HISTORY

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE = (DOCS / "policies.md").read_text(encoding="utf-8")
FIGURES = sorted(path.stem for path in (DOCS / "policies").glob("*.svg"))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_the_schedule_of_today(name: str, tmp_path: Path):
    """Where it does not: pab schedule --model open-sora --policy NAME --svg docs/policies/NAME.svg."""
    path = tmp_path / "a.svg"
    assert pab("schedule", "--model", "open-sora", "--policy", name, "--svg", path).exit_code == 0
    assert path.read_text(encoding="utf-8") == (DOCS / "policies" / f"{name}.svg").read_text(encoding="utf-8")
    assert f"(policies/{name}.svg)" in PAGE


def test_the_page_shows_figures_that_there_are():
    shown = re.findall(r"\((policies/[^)]+)\)", PAGE)
    assert shown
    assert all((DOCS / path).is_file() for path in shown)


def test_the_page_names_policies_that_there_are():
    named = set(re.findall(r"--policy ([a-z0-9+-]+)", PAGE)) - {"teacache"}
    assert {"pab246", "pab246+linear", "pab444"} <= named
    for name in named:
        assert find_policy(name, "stdit3", 28)
    assert all(f"`{predictor}`" in PAGE for predictor in HISTORY)
