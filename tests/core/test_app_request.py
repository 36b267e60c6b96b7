"""What the studio refuses, beside which field; and how levels and sliders become policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pab_core.app.models import Offered, offered_models
from pab_core.app.pictures import find_picture
from pab_core.app.request import ClipRequest, FieldErrors, check_request, preset_values, with_sliders
from pab_core.app.settings import Limits
from pab_core.broadcast import Policy, find_policy, preset_names
from pab_core.checkpoints import SAMPLERS
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.settings import schedule_for

PROMPT = "a red ball"


@pytest.fixture(scope="module")
def offered() -> dict[str, Offered]:
    """The models as they are known without weights."""
    return {name: Offered(name, name, spec, SAMPLERS[spec.family]) for name, spec in MODELS.items()}


def check(offered: dict[str, Offered], **fields: Any):
    def no_picture(name: str) -> Path:
        return find_picture(name, Path("nowhere"))

    return check_request(ClipRequest(**{"prompt": PROMPT, **fields}), offered, Limits(), no_picture)


@pytest.mark.parametrize(
    ("field", "fields", "words"),
    [
        ("prompt", {"prompt": "  "}, "The prompt is empty"),
        ("prompt", {"prompt": "x" * 5000}, "4000 are the most"),
        ("model", {"model": "../../etc"}, "no model named"),
        ("negative", {"negative": "blurry"}, "no negative prompt"),
        ("size", {"size": "190x128"}, "multiple of 8"),
        ("size", {"size": "big"}, "is not a size"),
        ("size", {"size": "4096x4096"}, "more than this studio makes"),
        ("frames", {"frames": "35"}, "do not fit"),
        ("frames", {"frames": "many"}, "whole number"),
        ("frames", {"frames": "1700"}, "408 are the most"),
        ("steps", {"steps": 0}, "step"),
        ("steps", {"steps": 30.5}, "whole number"),
        ("steps", {"steps": 5000}, "250 are the most"),
        ("guidance", {"guidance": -1}, "from 0 to 100"),
        ("seed", {"seed": "-1"}, "whole number from 0"),
        ("seed", {"seed": "abc"}, "whole number from 0"),
        ("policy", {"policy": "pab2"}, "no policy named 'pab2'"),
        ("policy", {"policy": "/etc/passwd"}, "not the name of a policy"),
        ("policy", {"policy": "secrets.json"}, "not the name of a policy"),
        ("policy", {"window": "0.9:0.1"}, "reversed or empty"),
        ("policy", {"spatial": 0}, "below 1"),
        ("policy", {"spatial": 2.5}, "whole number of steps"),
        ("picture", {"picture": "../../../etc/passwd"}, "no longer here"),
        ("picture", {"model": "latte", "picture": "0" * 32}, "text alone"),
    ],
)
def test_each_mistake_is_told_beside_its_field(
    offered: dict[str, Offered], field: str, fields: dict[str, Any], words: str
):
    with pytest.raises(FieldErrors) as told:
        check(offered, **fields)
    assert list(told.value.by_field) == [field]
    assert words in told.value.by_field[field]


def test_all_mistakes_are_told_at_once(offered: dict[str, Offered]):
    with pytest.raises(FieldErrors) as told:
        check(offered, prompt="", size="1x1", steps=-1, seed="x", window="1")
    assert set(told.value.by_field) == {"prompt", "size", "steps", "seed", "policy"}


@pytest.mark.parametrize("model", ["demo", "open-sora", "latte", "open-sora-plan"])
@pytest.mark.parametrize(("level", "place"), [("quality", 1), ("balanced", 2), ("fast", 3)])
def test_levels_are_the_published_policies(offered: dict[str, Offered], model: str, level: str, place: int):
    spec = MODELS[model]
    clip = check(offered, model=model, policy=level)
    name = preset_names(spec.family)[place]
    assert clip.policy == find_policy(name, spec.family, spec.depth)
    assert clip.table.source == schedule_for(spec, name, SAMPLERS[spec.family]).source
    assert (clip.num_frames, clip.height, clip.width) == (spec.num_frames, spec.height, spec.width)


@pytest.mark.parametrize("level", ["off", "quality", "fast"])
def test_sliders_left_alone_change_nothing(level: str):
    """The window's ends are shown to two places: 26/30 must not become 0.87."""
    spec = MODELS["demo"]
    request = ClipRequest(prompt=PROMPT, policy=level)
    assert with_sliders(request, spec, preset_values(level, spec)) == request


def test_sliders_change_what_they_name(offered: dict[str, Offered]):
    spec = MODELS["demo"]
    values = preset_values("quality", spec) | {"spatial": 3, "mlp": False, "stop": 0.5}
    request = with_sliders(ClipRequest(prompt=PROMPT), spec, values)
    assert request == ClipRequest(prompt=PROMPT, spatial=3, mlp=False, window="0.3:0.5")
    policy = check(offered, **request.to_json()).policy
    assert isinstance(policy, Policy)
    assert (policy.spatial, policy.temporal, policy.cross) == (3, 4, 6)
    assert (policy.window.start, policy.window.stop, policy.mlp_spatial) == (0.3, 0.5, ())


def test_a_calibrated_policy_has_no_ranges_and_a_slider_that_is_moved_begins_from_off(offered: dict[str, Offered]):
    spec = MODELS["demo"]
    request = ClipRequest(prompt=PROMPT, policy="calibrated")
    values = preset_values("calibrated", spec)
    assert values == preset_values("off", spec)  # which is what moving one begins from
    assert with_sliders(request, spec, values) == request
    clip = check(offered, **request.to_json())
    assert clip.policy == find_policy("calibrated", spec.family, spec.depth)
    assert clip.table.reused_share() > 0.2
    moved = with_sliders(request, spec, values | {"cross": 4})
    assert moved == replace(request, policy="off", cross=4)
    assert check(offered, **moved.to_json()).table.reused_share() > 0
    with pytest.raises(FieldErrors, match="no ranges or window to change"):
        check(offered, policy="calibrated", cross=4)  # as a program may ask
    with pytest.raises(FieldErrors, match="No schedule has been calibrated for a latte model"):
        check(offered, model="latte", policy="calibrated")


def test_defaults_are_the_models_and_a_seed_is_drawn(offered: dict[str, Offered]):
    clips = [check(offered) for _ in range(2)]
    assert clips[0].seed != clips[1].seed
    assert clips[0].request.seed == str(clips[0].seed)
    again = check(offered, **clips[0].request.to_json())
    assert replace(again, table=clips[0].table) == clips[0]


def test_browsers_whole_numbers_are_whole(offered: dict[str, Offered]):
    clip = check(offered, steps=12.0, spatial=3.0, seed=" 7 ")
    assert (clip.steps, clip.table.steps, clip.seed) == (12, 12, 7)


def test_requests_survive_as_json():
    request = ClipRequest(prompt=PROMPT, steps=3, mlp=False)
    assert ClipRequest.from_json(request.to_json() | {"of a later version": 1}) == request


def test_models_are_those_at_hand(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PAB_MODELS", str(tmp_path))
    (tmp_path / "latte").mkdir()  # a download that has just begun
    found = offered_models([str(folder)])
    assert list(found) == ["tiny", "demo", "demo-latte", "demo-plan"]
    assert found["tiny"].source == str(folder)
    with pytest.raises(PabError):
        offered_models([str(tmp_path / "none")])
