"""Which policies the studio offers for a model: the published levels, and what was calibrated for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from pab_core.app.compare_page import ComparePage
from pab_core.app.create_page import CreatePage
from pab_core.app.explore_page import ExplorePage
from pab_core.app.labels import Labels
from pab_core.app.models import Offered, offered_models
from pab_core.app.offering import calibrated_levels, first_level, level_choices
from pab_core.app.request import ClipRequest
from pab_core.app.service import Studio
from pab_core.app.settings import StudioSettings
from pab_core.app.sharing import workflow_for
from pab_core.broadcast.calibrated import PACKAGED, calibrated_names, own_path
from pab_core.checkpoints import DEMOS, SAMPLERS
from pab_core.models.registry import MODELS
from pab_core.settings import schedule_for


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def offer(name: str) -> Offered:
    spec = MODELS[name]
    return Offered(name, name, spec, SAMPLERS[spec.family])


def write(name: str, computed_every: int, depth: int = 28) -> None:
    """A user's own schedule of Latte."""
    rule = {"kinds": ["spatial"], "source": [step - step % computed_every for step in range(50)]}
    about = {"family": "latte", "depth": depth}
    named = f"calibrated-{name}" if name else "calibrated"
    schedule = {"pab_schedule": 1, "name": named, "model": about, "rules": [rule], "run_steps": 50}
    own_path("latte", depth, name).write_text(json.dumps(schedule), encoding="utf-8")


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_each_demo_model_has_a_calibrated_policy_and_its_fastest(name: str):
    found, spec = offer(name), MODELS[name]
    assert calibrated_levels(found) == ("calibrated", "calibrated-fast")
    shares = {
        one: schedule_for(spec, one, found.sampler).reused_share() for one in calibrated_names(spec.family, spec.depth)
    }
    assert {min(shares, key=lambda one: shares[one]), max(shares, key=lambda one: shares[one])} == {
        "calibrated", "calibrated-fast",
    }  # fmt: skip
    assert [words for words, _ in level_choices(found, "en")] == [
        "Off", "Calibrated", "Calibrated, fast", "Quality", "Balanced", "Fast",
    ]  # fmt: skip
    assert ("校准", "calibrated") in level_choices(found, "zh")
    assert first_level(found) == "calibrated"


def test_what_nobody_measured_is_offered_but_is_not_the_first(own: Path):
    found = offer("open-sora")
    assert calibrated_levels(found) == ("calibrated", "calibrated-fast")
    assert first_level(found) == "quality"
    note = json.loads((PACKAGED / "stdit3-28.json").read_text(encoding="utf-8"))["note"]
    assert "not measured" in note
    (own / "stdit3-28.json").write_text((PACKAGED / "stdit3-28.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert first_level(found) == "calibrated"  # the user calibrated it here


def test_a_model_without_one_has_the_published_levels_alone():
    assert calibrated_levels(offer("latte")) == ()
    assert first_level(offer("latte")) == "quality"
    assert [name for _, name in level_choices(offer("latte"), "en")] == ["off", "quality", "balanced", "fast"]


def test_a_users_own_are_offered_and_a_broken_file_is_not(own: Path):
    write("quick", 5)
    write("quiet", 2)
    (own / "latte-28-broken.json").write_text("{", encoding="utf-8")
    assert calibrated_levels(offer("latte")) == ("calibrated-quiet", "calibrated-quick")
    assert ("Calibrated, quiet", "calibrated-quiet") in level_choices(offer("latte"), "en")
    assert ("校准（quick）", "calibrated-quick") in level_choices(offer("latte"), "zh")
    assert first_level(offer("latte")) == "quality"
    write("", 3)
    assert calibrated_levels(offer("latte")) == ("calibrated-quiet", "calibrated", "calibrated-quick")
    assert first_level(offer("latte")) == "calibrated"


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    made = Studio(StudioSettings(tmp_path, device="cpu"))
    made.offered = {name: offer(name) for name in ("demo", "latte")}
    return made


def test_the_choices_follow_the_model_and_what_it_has_not_is_chosen_no_longer(studio: Studio):
    with gr.Blocks():
        labels, language, job = Labels(), gr.State("en"), gr.BrowserState("")
        create = CreatePage(studio, labels, language, job)
        compare = ComparePage(studio, labels, language, job, create)
    policy, known = create.fill("demo", "latte", "en")[-2:]
    assert ("Calibrated", "calibrated") in policy["choices"]
    assert known["levels"]["quality"] == ["quality", 2, 4, 6, True, 0.3, 0.87]
    assert [level for _, level in policy["choices"]] == [*known["levels"], "custom"]
    assert (known["first"], known["before"]) == ("calibrated", "quality")
    policy, known = create.fill("latte", "demo", "zh")[-2:]
    assert ("校准", "calibrated") not in policy["choices"]
    assert policy["choices"][-1] == ("自定义", "custom")
    assert "value" not in policy  # what was chosen since is the browser's to know
    assert not known["kept"]
    left, right = compare.offer("demo", "en", "calibrated", "calibrated")
    assert "value" not in left | right
    left, right = compare.offer("latte", "en", "calibrated", "calibrated")
    assert (left["value"], right["value"]) == ("off", "as_create")
    assert [name for _, name in right["choices"]] == ["as_create", "quality", "balanced", "fast"]


def test_fields_that_were_filled_in_for_a_model_keep_what_is_in_them(studio: Studio):
    with gr.Blocks():
        create = CreatePage(studio, Labels(), gr.State("en"), gr.BrowserState(""))
    first, again = create.fill("latte", "demo", "en"), create.fill("latte", "latte", "en")
    assert [one["value"] for one in first[1:3]] == ["512x512", "16"]
    assert first[3:5] == [50, 7.5]
    assert not any("value" in one for one in again[1:3])
    assert again[3:5] == [gr.skip(), gr.skip()]
    assert again[-1] == {**first[-1], "kept": True, "before": "quality"}


def test_what_a_model_does_not_take_is_left_out_and_waits_for_one_that_does(studio: Studio):
    with gr.Blocks():
        create = CreatePage(studio, Labels(), gr.State("en"), gr.BrowserState(""))
    for model, negative, picture in (("latte", "blurry", ""), ("demo", "", "a" * 32)):
        fields = ("a red ball", "blurry", model, "", "", None, None, "1", "off", "off")
        sliders = (1, 1, 1, False, 0.3, 0.87)
        request, _ = create.read((*fields, *sliders, ("a" * 32, ""), "en"))
        assert (request.model, request.negative, request.picture) == (model, negative, picture)


def test_explore_begins_with_what_was_calibrated_and_tells_what_its_maker_noted(studio: Studio, folder: Path):
    studio.offered = offered_models([str(folder)])
    with gr.Blocks():
        page = ExplorePage(studio, Labels(), gr.State("en"), gr.BrowserState(""))
    shown, length = page.show("demo", "en")
    assert "at most 33 videos" in length
    assert shown.index("<code>calibrated</code>") < shown.index("<code>pab246</code>")
    assert shown.count("Chosen by trials, not by ranges") == 2
    spec = MODELS["demo"]
    note = json.loads((PACKAGED / own_path(spec.family, spec.depth).name).read_text(encoding="utf-8"))["note"]
    assert note.replace("'", "&#x27;") in shown
    shown, length = page.show("tiny", "en")
    assert "Chosen by trials" not in shown
    assert "at most 21 videos" in length


def test_a_workflow_carries_the_calibrated_policy_by_name():
    spec = MODELS["demo"]
    fast = calibrated_levels(offer("demo"))[1]
    graph = workflow_for(replace(ClipRequest(prompt="a red ball", seed="1"), policy=fast), spec)
    (node,) = (node for node in graph["nodes"] if node["type"] == "PABBroadcast")
    assert node["widgets_values"][:7] == [fast, 0, 0, 0, False, 0, 0]
