"""The studio's history, its shared workflows, its words, and the SVG of a schedule."""

from __future__ import annotations

import json
import re
import sqlite3
import string
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from pab_core.app.comparing import compare_frames
from pab_core.app.create_fields import FIELDS
from pab_core.app.history import History
from pab_core.app.request import ClipRequest
from pab_core.app.sharing import workflow_for
from pab_core.app.texts import _TEXTS, model_title, preferred_language, schedule_texts, text, wrong
from pab_core.broadcast import find_policy
from pab_core.broadcast.picture_svg import draw_schedule_svg
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.settings import schedule_for

ABOUT = {"prompt": "a ball", "seed": 1}
SVG = "{http://www.w3.org/2000/svg}"


def open_history(folder: Path) -> History:
    (folder / "videos").mkdir(exist_ok=True)
    return History(folder / "history.sqlite", folder / "videos")


def add(history: History, video_id: str, owner: str = "", **about: Any) -> None:
    for path in history.files_of(video_id):
        path.write_bytes(b"x")
    history.add(video_id, owner, {"prompt": "a ball"}, {**ABOUT, **about})


def test_videos_survive_a_restart_newest_first(tmp_path: Path):
    history = open_history(tmp_path)
    for i in range(5):
        add(history, f"v{i}", seed=i)
    again = open_history(tmp_path)
    assert [entry.about["seed"] for entry in again.list("")] == [4, 3, 2, 1, 0]
    assert [entry.id for entry in again.list("", limit=2, offset=1)] == ["v3", "v2"]
    assert again.count("") == 5


def test_deleting_takes_the_files_along(tmp_path: Path):
    history = open_history(tmp_path)
    add(history, "a")
    add(history, "b")
    history.files_of("a")[0].with_suffix(".json").write_text("{}")
    history.delete("a", "")
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["pab-b.jpg", "pab-b.mp4"]
    with pytest.raises(PabError, match="no such video"):
        history.get("a", "")


def test_nobody_sees_or_deletes_the_videos_of_another(tmp_path: Path):
    history = open_history(tmp_path)
    add(history, "a", owner="ann")
    assert history.list("bob") == []
    for use in (history.get, history.delete):
        with pytest.raises(PabError, match="no such video"):
            use("a", "bob")
    assert history.get("a", "ann").video.is_file()


def test_a_video_removed_by_hand_is_left_out(tmp_path: Path):
    history = open_history(tmp_path)
    add(history, "a")
    add(history, "b")
    history.files_of("a")[0].unlink()
    assert [entry.id for entry in history.list("")] == ["b"]


def test_a_broken_or_full_database_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    history = open_history(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(PabError, match="disk is full"):
        history.list("")
    monkeypatch.undo()
    (tmp_path / "history.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(PabError, match="history could not be read"):
        open_history(tmp_path)


@pytest.mark.parametrize(
    ("request_", "broadcast", "sampler"),
    [
        (ClipRequest(prompt="a ball", seed="7"), ["pab246", 0, 0, 0, True, 0, 0], [7, "fixed", 30, 4.0, 192, 128, 34]),
        (
            ClipRequest(
                prompt='a "ball"',
                seed="9",
                policy="fast",
                spatial=3,
                mlp=False,
                window="0.2:0.8",
                size="96x64",
                frames="17",
                steps=12,
                guidance=2,
            ),
            ["pab579", 3, 0, 0, False, 0.2, 0.8],
            [9, "fixed", 12, 2.0, 96, 64, 17],
        ),
        (
            ClipRequest(prompt="x", policy="off", temporal=4, seed="1"),
            ["off", 0, 4, 0, False, 0, 0],
            [1, "fixed", 30, 4.0, 192, 128, 34],
        ),
    ],
)
def test_a_shared_workflow_is_the_template_with_the_values(
    request_: ClipRequest, broadcast: list[Any], sampler: list[Any]
):
    template = json.loads((Path(__file__).parents[2] / "workflows" / "pab_text_to_video.json").read_text("utf-8"))
    graph = workflow_for(request_, MODELS["demo"])
    widgets = {node["type"]: node["widgets_values"] for node in graph["nodes"]}
    assert widgets["PABLoadModel"][:1] == ["demo"]
    assert widgets["PABTextEncode"][0] == request_.prompt
    assert widgets["PABBroadcast"][:7] == broadcast
    assert widgets["PABSampler"][:7] == sampler
    assert graph["links"] == template["links"]
    assert [node["type"] for node in graph["nodes"]] == [node["type"] for node in template["nodes"]]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"picture": "a" * 32}, ["first_frame"]),
        ({"last_picture": "b" * 32}, ["last_frame"]),
        ({"picture": "a" * 32, "last_picture": "b" * 32}, ["first_frame", "last_frame"]),
    ],
)
def test_a_shared_workflow_of_a_video_from_pictures_asks_for_them(given: dict[str, str], named: list[str]):
    graph = workflow_for(ClipRequest(prompt="a ball", seed="1", **given), MODELS["demo"])  # pyright: ignore[reportArgumentType]
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) == graph["last_node_id"]
    links = {link[0]: link for link in graph["links"]}
    assert len(links) == len(graph["links"]) == graph["last_link_id"]
    for number, source, out, target, place, kind in graph["links"]:
        output, entry = nodes[source]["outputs"][out], nodes[target]["inputs"][place]
        assert number in output["links"]
        assert entry["link"] == number
        assert output["type"] == entry["type"] == kind
    (sampler,) = (node for node in graph["nodes"] if node["type"] == "PABSampler")
    (link,) = (entry["link"] for entry in sampler["inputs"] if entry["name"] == "given")
    condition = nodes[links[link][1]]
    assert condition["type"] == "PABGiven"
    linked = {entry["name"]: links[entry["link"]] for entry in condition["inputs"] if entry["link"] is not None}
    assert list(linked) == named
    assert {nodes[found[1]]["type"] for found in linked.values()} == {"LoadImage"}


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("key", sorted(_TEXTS))
def test_both_languages_say_the_same_with_the_same_values(key: str):
    english, chinese = (text(key, language) for language in ("en", "zh"))
    assert english
    assert chinese
    fields = [sorted(name for _, name, _, _ in string.Formatter().parse(words) if name) for words in (english, chinese)]
    assert fields[0] == fields[1]


def test_most_words_are_translated():
    same = {key for key, (english, chinese) in _TEXTS.items() if english == chinese}
    assert same == {"prompt_hint", "mlp_row"}


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_wrong_with_a_field_is_also_told_in_chinese(field: str):
    assert wrong(field, "It is 3.", "en") == "It is 3."
    told = wrong(field, "It is 3.", "zh")
    assert re.search(r"[\u4e00-\u9fff].* It is 3\.$", told)
    assert wrong(field, "", "zh") == ""


def test_models_have_titles():
    assert [model_title("demo", "demo", language) for language in ("en", "zh")] == ["The demo model", "演示模型"]
    assert model_title("open-sora", "Open-Sora 1.2", "zh") == "Open-Sora 1.2"


@pytest.mark.parametrize(
    ("accepted", "language"), [("zh-CN,zh;q=0.9", "zh"), ("en-US", "en"), ("", "en"), ("de,zh;q=0.2", "en")]
)
def test_the_browsers_language_is_taken(accepted: str, language: str):
    assert preferred_language(accepted) == language


# --------------------------------------------------------------------------------------------------------------- svg


@pytest.mark.parametrize("model", ["demo", "latte", "open-sora-plan"])
@pytest.mark.parametrize("name", ["off", "pab246", "pab579"])
def test_the_svg_fills_each_cell_as_far_as_it_is_computed(model: str, name: str):
    spec = MODELS[model]
    policy = find_policy(name, spec.family, spec.depth)
    table = schedule_for(spec, name)
    picture = ET.fromstring(draw_schedule_svg(table, policy, width=2000))
    rows = {group.get("data-kind"): group for group in picture.iter(f"{SVG}g") if group.get("data-kind")}
    assert list(rows) == table.kinds
    for kind in table.kinds:
        filled = sum(float(rect.get("height", 0)) for rect in rows[kind].iter(f"{SVG}rect") if rect.get("style"))
        assert filled / 18 == pytest.approx(table.steps * (1 - table.reused_share(kind)), abs=0.05)
        shown = [element.text for element in rows[kind].iter(f"{SVG}text")][-1]
        assert shown == f"{table.reused_share(kind):.0%}"
        assert len(rows[kind].findall(f"{SVG}line")) == (kind != "mlp" and name != "off")


def test_the_svg_stays_in_its_box_and_small_cells_are_joined():
    spec = MODELS["open-sora-plan"]
    table = schedule_for(spec, "pab246")
    for width in (300, 560):
        text_ = draw_schedule_svg(table, find_policy("pab246", spec.family, spec.depth), width=width)
        picture = ET.fromstring(text_)
        box = [float(part) for part in picture.get("viewBox", "").split()]
        for rect in picture.iter(f"{SVG}rect"):
            x, y, w, h = (float(rect.get(name, 0)) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= box[2] + 0.01
            assert 0 <= y <= y + h <= box[3] + 0.01
        cells = len(picture.findall(f".//{SVG}g[@data-kind='spatial']/{SVG}rect"))
        assert cells < table.steps


def test_the_svg_speaks_and_escapes():
    spec = MODELS["demo"]
    table = schedule_for(spec, "pab246")
    words = schedule_texts("zh") | {"title": "<b>&\"'"}
    picture = ET.fromstring(draw_schedule_svg(table, None, texts=words))
    assert picture.get("role") == "img"
    title = picture.find(f"{SVG}title")
    assert title is not None
    assert title.text == "<b>&\"'"
    assert "空间" in (picture.get("aria-label") or "")
    assert not re.search(r"url\(|http://(?!www\.w3\.org)", draw_schedule_svg(table))


# ----------------------------------------------------------------------------------------------------------- compare


def test_what_is_measured_of_two_videos():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
    b = (a.int() + torch.randint(-40, 40, a.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    found = compare_frames(b, a)
    assert found["identical"] is False
    assert 15 < found["psnr"] < 30
    assert 0.5 < found["ssim"] < 1
    same = compare_frames(a, a)
    assert same["identical"] is True
    assert same["ssim"] == pytest.approx(1)
    tiny = compare_frames(a[:, :8, :8], b[:, :8, :8])
    assert "ssim" not in tiny  # smaller than its window


def test_the_packages_workflow_is_the_templates():
    """A copy, for what is installed without the repository; an editable install may put nothing else in its place."""
    root = Path(__file__).parents[2]
    name = "workflows/pab_text_to_video.json"
    assert (root / "pab_core" / name).read_bytes() == (root / name).read_bytes()
