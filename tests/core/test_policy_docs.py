"""The figures of docs/policies.md are what the program draws, its tables what was measured, its policies all there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_cli import pab

from pab_core.broadcast import find_policy
from pab_core.broadcast.calibrated import PACKAGED, calibrated_names
from pab_core.broadcast.predictors import HISTORY
from pab_core.checkpoints import DEMOS, SAMPLERS
from pab_core.evaluate.metrics import Summary
from pab_core.evaluate.packaged import packaged_file
from pab_core.models.registry import MODELS
from pab_core.settings import schedule_for

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


def measured(model: str) -> list[dict[str, Any]]:
    return json.loads(packaged_file(model, "quality.json").read_text(encoding="utf-8"))["policies"]


def told(found: dict[str, Any]) -> str:
    return Summary(found["count"], found["mean"], found["error"], 0).text


@pytest.mark.parametrize("model", sorted(DEMOS))
def test_a_table_says_what_was_measured(model: str):
    lines = PAGE.split(f"(policies/measured/{model}.png)")[1].split("\n\n")[1].splitlines()[2:]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = measured(model)
    assert [cells[0] for cells in shown] == [row["policy"] for row in rows]
    for (_, speedup, reused, *distances, less, followed), row in zip(shown, rows, strict=True):
        assert (speedup, followed) == (f"{row['speedup']:.2f}x", told(row["adherence"]))
        assert float(reused.removesuffix("%")) == pytest.approx(100 * row["reused"], abs=0.51)
        assert distances == [told(row[name]) if name in row else "-" for name in ("psnr", "ssim", "lpips")]
        assert less == (f"{told(row['less_rival']['lpips'])} ({row['rival']})" if "rival" in row else "-")


@pytest.mark.parametrize("model", sorted(DEMOS))
def test_the_calibrated_schedules_are_those_that_were_measured(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another search's schedules would need another `pab bench quality`."""
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path))
    spec, reused = MODELS[model], {row["policy"]: row["reused"] for row in measured(model)}
    names = calibrated_names(spec.family, spec.depth)
    assert len(names) == 4
    for name in names:
        table = schedule_for(spec, name, SAMPLERS[spec.family])
        assert table.reused_share() == pytest.approx(reused[name], abs=1e-4)
        (row,) = set(table.source.values())
        file = PACKAGED / f"{spec.family}-{spec.depth}{name.removeprefix('calibrated')}.json"
        note = json.loads(file.read_text(encoding="utf-8"))["note"]
        assert note.startswith(f"{len(set(row))} of {len(row)} calls computed; ")
