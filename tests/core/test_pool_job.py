"""Jobs as plain data: through JSON and back, all that a user can ask for stays what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pab_core.broadcast import Window, customise, find_policy, resolve
from pab_core.broadcast.schedule_file import save_schedule, schedule_of
from pab_core.errors import PabError
from pab_core.frame_input import frames_to_video_tensor
from pab_core.models.stdit3 import stdit3_branches
from pab_core.parallel.pool.job import (
    Job,
    ModelSource,
    given_to_plain,
    policy_from_plain,
    policy_to_plain,
    table_from_plain,
    table_to_plain,
    text_of,
    text_to_tensors,
)
from pab_core.tasks import Given
from pab_core.text import TextEmbedding

STEPS = tuple(1000.0 - 50 * i for i in range(20))
BRANCHES = stdit3_branches(28)


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "name", ["off", "pab246", "pab579", "tgate", "delta-dit", "teacache0.2", "scores246", "steps7"]
)
def test_policies_as_objects_and_as_names(name: str):
    policy = find_policy(name, "stdit3", 28)
    back = policy_from_plain(through_json(policy_to_plain(policy)))
    assert back == policy
    assert policy_from_plain(through_json(policy_to_plain(name))) == name


def test_a_policy_changed_by_hand_keeps_every_change():
    policy = customise("pab246", "stdit3", 28, spatial=3, cross=5, mlp=False, window=Window(0.2, 0.9))
    back: Any = policy_from_plain(through_json(policy_to_plain(policy)))
    assert back == policy
    assert resolve(back, STEPS, BRANCHES).source == resolve(policy, STEPS, BRANCHES).source


def test_a_schedule_file_goes_by_its_content(tmp_path: Path):
    table = resolve(find_policy("pab246", "stdit3", 28), STEPS, BRANCHES)
    path = save_schedule(schedule_of(table, "stdit3", 28, name="mine"), tmp_path / "mine.json")
    plain = through_json(policy_to_plain(path))
    path.unlink()
    back = resolve(find_policy(policy_from_plain(plain), "stdit3", 28), STEPS, BRANCHES)
    assert back.source == table.source
    assert back.policy == "mine"


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"form": "os.system"},
        {"form": "policy", "spatial": 0},
        {"form": "policy", "colour": 1},
        {"form": "teacache"},
        {"form": "schedule", "pab_schedule": 1, "model": {"family": "stdit3", "depth": 2}, "rules": [{"kinds": []}]},
    ],
)
def test_a_policy_that_is_none_is_refused(plain: dict):
    with pytest.raises(PabError):
        policy_from_plain(plain)


def test_a_schedule_file_goes_with_its_predictor(tmp_path: Path):
    table = resolve(find_policy("pab246", "stdit3", 28), STEPS, BRANCHES)
    path = save_schedule(schedule_of(table, "stdit3", 28, name="mine"), tmp_path / "mine.json")
    back = policy_from_plain(through_json(policy_to_plain(f"{path}+linear")))
    assert resolve(find_policy(back, "stdit3", 28), STEPS, BRANCHES).predictor == "linear"


@pytest.mark.parametrize("name", ["delta-dit", "pab246+linear", "scores246", "steps7"])
def test_tables_come_back_as_they_were(name: str):
    table = resolve(find_policy(name, "stdit3", 28), STEPS, BRANCHES)
    back = table_from_plain(through_json(table_to_plain(table)))
    assert vars(back) == vars(table)


def test_models_are_named_or_lie_at_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    source = ModelSource.of("own", vae="own/vae", dtype=torch.bfloat16)
    assert source == ModelSource(model=str(tmp_path / "own"), vae=str(tmp_path / "own" / "vae"), dtype="bfloat16")
    assert ModelSource.of("demo").model == "demo"
    with pytest.raises(PabError, match="float64"):
        ModelSource.of("demo", dtype=torch.float64)


def test_given_pictures_go_as_pixels_and_files_by_path(tmp_path: Path):
    pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    video = np.random.default_rng(0).random((5, 20, 30, 3), np.float32)
    given = Given(references=(pixels, tmp_path / "a.png"), strategy="0")
    files, tensors = given_to_plain(given)
    assert files.references == (str(tmp_path / "a.png"),)
    assert (tensors["given.references.0"] == pixels).all()
    for source in (video, list(video), torch.from_numpy(video)):
        files, tensors = given_to_plain(Given(video=source, edit=0.5))
        assert files.edit == 0.5
        job = Job.read(through_json(Job(model=ModelSource(model="demo"), given=files).model_dump(mode="json")))
        found = job.given_with(tensors)
        assert torch.equal(frames_to_video_tensor(found.video, 16, 24), frames_to_video_tensor(video, 16, 24))


def test_embeddings_go_as_tensors():
    text = TextEmbedding(torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), negative=torch.randn(1, 3, 4))
    back = text_of(text_to_tensors(text))
    assert back is not None
    assert back.negative is not None
    assert torch.equal(back.tokens, text.tokens)
    assert text_of({}) is None


@pytest.mark.parametrize(
    ("change", "place"),
    [({"steps": "many"}, "steps"), ({"model": {}}, "model.model"), ({"colour": 1}, "colour"), ({"task": "rm"}, "task")],
)
def test_a_job_that_is_none_names_the_entry(change: dict, place: str):
    with pytest.raises(PabError, match=f"'{place}'"):
        Job.read({"model": {"model": "demo"}, **change})
