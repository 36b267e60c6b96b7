"""The studio's server over HTTP, with gradio_client as its users have it, on the tiny checkpoint."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from pab_core.app.launch import Server, serve, warning_for
from pab_core.app.settings import Limits, StudioSettings, parse_auth
from pab_core.errors import PabError
from pab_core.evaluate.bench import psnr
from pab_core.pipeline import Pipeline
from pab_core.video_io import read_metadata, read_mp4, write_mp4

LONG = {"steps": 200, "frames": "34"}  # seconds, even on a fast machine


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAB_MODELS", str(data / "none"))
        made = serve(StudioSettings(data, (str(folder),), "cpu", port=0, limits=Limits(queued_each=20)))
    yield made
    made.close()


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Client:
    return connect(server, tmp_path)


def connect(server: Server, downloads: Path, **options: Any) -> Client:
    return Client(server.url, download_files=str(downloads), verbose=False, analytics_enabled=False, **options)


def submit(client: Client, prompt: str = "a red ball", **fields: Any) -> dict[str, Any]:
    fields = {"seed": "1", "model": "tiny", **fields}
    return client.predict(prompt, api_name="/submit", **fields)


def wait(client: Client, job: dict[str, Any]) -> list[dict[str, Any]]:
    return client.predict(job["id"], api_name="/wait")


def test_a_video_is_that_of_the_library(server: Server, client: Client, pipe: Pipeline, tmp_path: Path):
    (made,) = wait(client, submit(client, policy="fast", seed="3"))
    alone = pipe.generate("a red ball", policy="pab579", seed=3)
    assert read_metadata(made["video"]) == alone.metadata
    path = write_mp4(tmp_path / "alone.mp4", alone.frames, alone.fps, alone.metadata)
    assert psnr(*(torch.from_numpy(read_mp4(file)[0]) for file in (made["video"], path))) is None
    assert made["about"]["seconds"]["denoise"] > 0


def test_ten_users_at_once_lose_and_mix_nothing(server: Server, tmp_path: Path):
    def user(number: int) -> tuple[int, list[dict[str, Any]], set[str]]:
        own = connect(server, tmp_path / str(number))
        jobs = [submit(own, f"user {number} video {i}", seed=str(10 * number + i), steps=2) for i in range(2)]
        made = [wait(own, job)[0] for job in jobs]
        return number, made, {job["id"] for job in jobs}

    with ThreadPoolExecutor(10) as pool:
        users = list(pool.map(user, range(10)))
    for number, made, _ in users:
        for i, video in enumerate(made):
            told = read_metadata(video["video"])
            assert (told["prompt"], told["seed"]) == (f"user {number} video {i}", 10 * number + i)
            assert video["about"]["prompt"] == told["prompt"]
    assert len(set.union(*(ids for _, _, ids in users))) == 20
    assert server.studio.queue.counts() == {"waiting": 0, "running": 0}


def test_a_running_and_a_waiting_job_are_cancelled(server: Server, client: Client):
    before = server.studio.history.count("")
    running = submit(client, **LONG)
    waiting = submit(client, **LONG)
    until(lambda: client.predict(running["id"], api_name="/status")["done"] > 0)
    assert client.predict(waiting["id"], api_name="/status")["position"] == 1
    assert client.predict(waiting["id"], api_name="/cancel")["state"] == "cancelled"
    client.predict(running["id"], api_name="/cancel")
    until(lambda: client.predict(running["id"], api_name="/status")["state"] == "cancelled", seconds=5)
    with pytest.raises(AppError, match="was cancelled"):
        wait(client, running)
    assert server.studio.history.count("") == before
    assert not list(server.studio.settings.videos.glob("*.part"))


def test_a_comparison_makes_two_of_one_seed(client: Client):
    job = submit(client, against="off", policy="fast", seed="5")
    first, second = wait(client, job)
    measured = client.predict(job["id"], api_name="/status")["measured"]
    assert [video["about"]["policy"] for video in (first, second)] == ["off", "pab579"]
    assert first["about"]["seed"] == second["about"]["seed"] == 5
    assert measured["speedup"] == pytest.approx(measured["seconds"][0] / measured["seconds"][1], rel=1e-2)
    assert measured["psnr"] > 5
    assert 0 < measured["ssim"] < 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ""}, "prompt: The prompt is empty"),
        ({"size": "13x13"}, "size: .*multiple of 8"),
        ({"steps": 0}, "steps: "),
        ({"seed": "x"}, "seed: The seed must be a whole number"),
        ({"policy": "../x.json"}, "policy: .*not the name of a policy"),
        ({"model": "/etc"}, "model: There is no model named '/etc' here"),
        ({"picture": "../../x"}, "picture: The picture is no longer here"),
        ({"against": "quality"}, "Both sides have the same settings"),
    ],
)
def test_mistakes_are_told_by_field(client: Client, fields: dict[str, Any], words: str):
    with pytest.raises(AppError, match=words):
        submit(client, **{"prompt": "a red ball", **fields})


def test_image_to_video(client: Client, tmp_path: Path):
    Image.new("RGB", (96, 64), (10, 200, 30)).save(tmp_path / "green.png")
    name = client.predict(handle_file(tmp_path / "green.png"), api_name="/picture")
    (made,) = wait(client, submit(client, picture=name, steps=2))
    assert made["request"]["picture"] == name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n and then nothing", "could not be read as a picture"),
        ("text.jpg", b"hello", "could not be read as a picture"),
        ("page.html", b"<script>", "of the kind '.html' are not taken"),
        ("empty.png", b"", "could not be read as a picture"),
    ],
)
def test_broken_uploads_are_refused(
    server: Server, client: Client, tmp_path: Path, name: str, content: bytes, words: str
):
    (tmp_path / name).write_bytes(content)
    kept = set(server.studio.settings.uploads.iterdir())
    with pytest.raises(AppError, match=words):
        client.predict(handle_file(tmp_path / name), api_name="/picture")
    assert set(server.studio.settings.uploads.iterdir()) == kept


@pytest.mark.parametrize("side", [9_000, 20_000])
def test_a_huge_picture_is_refused_by_its_header(client: Client, tmp_path: Path, side: int):
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(AppError, match=r"million (pixels )?are the most"):
        client.predict(handle_file(tmp_path / "huge.png"), api_name="/picture")


def test_a_full_disk_is_told_before_and_while_writing(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch):
    import pab_core.app.making as making

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(AppError, match="disk that keeps the videos is full: 1 MB"):
            submit(client)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = set(server.studio.settings.videos.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(making, "write_thumbnail", full)
        job = submit(client, steps=2)
        with pytest.raises(AppError, match="could not be kept: No space left on device"):
            wait(client, job)
    assert set(server.studio.settings.videos.iterdir()) == before
    assert wait(client, submit(client, steps=2))


def test_the_endpoints_are_named_and_no_others_are_shown(client: Client):
    told: Any = client.view_api(return_format="dict", print_info=False)
    names = {"/submit", "/status", "/wait", "/cancel", "/history", "/schedule", "/picture"}
    assert set(told["named_endpoints"]) == names
    assert not told["unnamed_endpoints"]


def test_schedules_come_with_their_saving(client: Client):
    told = client.predict("fast", "tiny", api_name="/schedule")
    assert told["policy"] == "pab579"
    assert 0 < told["saving"] < 0.5
    assert sum(told["cross"]) > sum(told["spatial"]) > 0


def test_who_names_no_policy_gets_what_the_page_begins_with(client: Client):
    assert client.predict(model="demo", api_name="/schedule")["policy"] == "calibrated"
    assert client.predict(model="tiny", api_name="/schedule")["policy"] == "pab246"
    assert wait(client, submit(client, steps=2))[0]["about"]["policy"] == "pab246"


def test_only_the_videos_are_served(server: Server, client: Client, folder: Path):
    (made,) = wait(client, submit(client, steps=2))
    studio = server.studio
    entry = studio.history.get(made["id"], "")

    def answer(path: object) -> int:
        return httpx.get(f"{server.url}gradio_api/file={path}").status_code

    assert answer(entry.video) == 200
    assert studio.settings.database.is_file()
    secrets = [studio.settings.database, studio.settings.uploads / "x.png", folder / "pab.json", "/etc/passwd"]
    secrets += [f"{studio.settings.videos}/../history.sqlite", Path(__file__)]
    assert {str(path): answer(path) for path in secrets if answer(path) == 200} == {}


def test_the_page_asks_nothing_of_the_network_and_is_no_link(server: Server):
    page = httpx.get(server.url).text
    config = httpx.get(f"{server.url}config").json()
    assert server.url.startswith("http://127.0.0.1:")
    assert config["analytics_enabled"] is False
    assert not config.get("is_share")
    assert "fonts.googleapis" not in page


def test_users_log_in_and_see_only_their_own(folder: Path, tmp_path: Path):
    made = serve(StudioSettings(tmp_path / "data", (str(folder),), "cpu", port=0, auth=parse_auth("ann:a:b")))
    try:
        assert httpx.get(f"{made.url}config").status_code == 401
        ann = connect(made, tmp_path, auth=("ann", "a:b"))
        job = submit(ann, steps=2)
        assert len(wait(ann, job)) == 1
        assert made.studio.history.count("ann") == 1
        assert made.studio.history.count("") == 0
        with pytest.raises(PabError, match="no such job"):
            made.studio.queue.view(job["id"], "")
        entry = made.studio.history.list("ann")[0]
        assert httpx.get(f"{made.url}gradio_api/file={entry.video}").status_code == 401
    finally:
        made.close()


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", ""])
def test_half_an_account_is_refused(text: str):
    with pytest.raises(PabError, match="ann:secret"):
        parse_auth(text)


def test_an_open_studio_is_warned_of():
    assert not warning_for(StudioSettings(Path("x")))
    assert not warning_for(StudioSettings(Path("x"), host="0.0.0.0", auth=("a", "b")))
    assert "--auth" in warning_for(StudioSettings(Path("x"), host="0.0.0.0"))


def test_a_taken_port_is_told(server: Server, folder: Path, tmp_path: Path):
    port = int(server.url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(PabError, match=f"could not be served at 127.0.0.1:{port}"):
        serve(StudioSettings(tmp_path, (str(folder),), "cpu", port=port))


def test_memory_does_not_grow_with_the_videos(server: Server, client: Client):
    def tensors() -> int:
        gc.collect()
        found = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        return sum(tensor.untyped_storage().nbytes() for tensor in found)

    def make(count: int) -> int:
        for _ in range(count):
            wait(client, submit(client, steps=2))
        return tensors()

    assert make(6) <= make(2) + 1_000_000
    assert all(job.view.preview is None for job in server.studio.queue._jobs.values())


def until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
