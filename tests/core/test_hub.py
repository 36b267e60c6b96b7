"""Downloads from a Hub on this machine: whole, broken off and gone on with, damaged, without room or network."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import COMMIT, Hub, serve

from pab_core import hub as hub_module
from pab_core import hub_transfer
from pab_core.checkpoints import find_model
from pab_core.errors import PabError
from pab_core.hub import SOURCES, download, download_model, folder_of
from pab_core.models.registry import MODELS

SIZE = 1_000_000
PIECE = 2**16


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a file of a megabyte were one of gigabytes, and the wait before a new try were over."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """One repository with a model at its top, its VAE in a folder, and files that nobody needs."""
    made = Hub()
    made.repositories["someone/model"] = {
        "README.md": b"hello",
        "config.json": b'{"model_type": "STDiT3"}',
        "model.safetensors": content(1),
        "training_state.pt": content(2, 100),
        "vae/config.json": b"{}",
        "vae/model.safetensors": content(3, 1000),
    }
    with serve(made):
        yield made


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


WANTED = ("config.json", "model.safetensors", "vae/config.json", "vae/model.safetensors")


class Cancelled(InterruptedError):
    """What a node may raise: it is an OSError too, and none the less not to be explained away."""


class Bar:
    """Notes what a progress callback is told; cancels after so many bytes."""

    def __init__(self, cancel_at: int | None = None):
        self.told: list[tuple[int, int]] = []
        self.cancel_at = cancel_at

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if self.cancel_at is not None and done >= self.cancel_at:
            raise Cancelled


def test_a_repository_comes_whole_and_what_is_not_needed_stays_away(hub: Hub, tmp_path: Path):
    bar = Bar()
    folder = download("someone/model", tmp_path / "new" / "model", progress=bar, endpoint=hub.address)
    repository = hub.repositories["someone/model"]
    assert files(folder) == {name: repository[name] for name in WANTED}
    total = sum(len(repository[name]) for name in WANTED)
    assert bar.told[0] == (0, total)
    assert bar.told[-1] == (total, total)
    assert all(a <= b for (a, _), (b, _) in zip(bar.told, bar.told[1:], strict=False))
    assert len(bar.told) > SIZE / PIECE  # it moves within a file


def test_a_subfolder_goes_into_the_folder_itself(hub: Hub, tmp_path: Path):
    download("someone/model", tmp_path, subfolder="vae", endpoint=hub.address)
    assert sorted(files(tmp_path)) == ["config.json", "model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == content(3, 1000)


def test_patterns(hub: Hub, tmp_path: Path):
    download("someone/model", tmp_path, ["*.json"], endpoint=hub.address)
    assert sorted(files(tmp_path)) == ["config.json", "vae/config.json"]


def test_a_second_call_fetches_nothing(hub: Hub, tmp_path: Path):
    download("someone/model", tmp_path, endpoint=hub.address)
    hub.served.clear()
    bar = Bar()
    download("someone/model", tmp_path, progress=bar, endpoint=hub.address)
    assert hub.served == {}
    assert bar.told[-1][0] == bar.told[-1][1]


def test_a_cancelled_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path):
    with pytest.raises(Cancelled):
        download("someone/model", tmp_path, progress=Bar(cancel_at=SIZE // 2), endpoint=hub.address)
    (partial,) = tmp_path.glob("model.safetensors*")
    assert partial.name.endswith(".part"), "an unfinished file has not the name of a finished one"
    kept = partial.stat().st_size
    assert SIZE / 3 < kept < SIZE
    hub.served.clear()
    bar = Bar()
    download("someone/model", tmp_path, progress=bar, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)
    assert hub.served["model.safetensors"] == SIZE - kept
    assert bar.told[0][0] < kept <= bar.told[2][0], "the bar begins where the download goes on"
    assert bar.told[-1][0] == bar.told[-1][1]
    assert not list(tmp_path.rglob("*.part"))


def test_a_broken_connection_is_taken_up_again(hub: Hub, tmp_path: Path):
    hub.cut["model.safetensors"] = SIZE // 2
    download("someone/model", tmp_path, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)
    assert hub.served["model.safetensors"] < SIZE + 2 * PIECE


def test_a_server_that_cannot_go_on_begins_again(hub: Hub, tmp_path: Path):
    with pytest.raises(Cancelled):
        download("someone/model", tmp_path, progress=Bar(cancel_at=SIZE // 2), endpoint=hub.address)
    hub.knows_ranges = False
    bar = Bar()
    download("someone/model", tmp_path, progress=bar, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)
    assert bar.told[-1][0] == bar.told[-1][1]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_deleted_and_named(hub: Hub, tmp_path: Path, name: str):
    hub.damaged.add(name)
    with pytest.raises(PabError, match=rf"{name} came damaged: its checksum is not the one that the Hub names"):
        download("someone/model", tmp_path, endpoint=hub.address)
    assert not list(tmp_path.glob(f"{name}*"))
    hub.damaged.clear()
    download("someone/model", tmp_path, endpoint=hub.address)
    assert (tmp_path / name).read_bytes() == hub.repositories["someone/model"][name]


def test_a_damaged_piece_from_before_is_found_too(hub: Hub, tmp_path: Path):
    with pytest.raises(Cancelled):
        download("someone/model", tmp_path, progress=Bar(cancel_at=SIZE // 2), endpoint=hub.address)
    (partial,) = tmp_path.glob("model.safetensors*")
    partial.write_bytes(b"x" + partial.read_bytes()[1:])
    with pytest.raises(PabError, match=r"model\.safetensors came damaged"):
        download("someone/model", tmp_path, endpoint=hub.address)
    download("someone/model", tmp_path, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)


def test_a_file_of_another_version_is_replaced_and_its_pieces_are_not_mixed(hub: Hub, tmp_path: Path):
    with pytest.raises(Cancelled):
        download("someone/model", tmp_path, progress=Bar(cancel_at=SIZE // 2), endpoint=hub.address)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    hub.repositories["someone/model"]["model.safetensors"] = content(9)
    download("someone/model", tmp_path, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(9)
    assert (tmp_path / "config.json").read_bytes() == b'{"model_type": "STDiT3"}'


def test_a_server_that_goes_away_while_sending(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = hub_transfer.Sink.write

    def write(self: Any, data: bytes) -> int:
        hub.status = 503  # whoever asks again is turned away
        return real(self, data)

    monkeypatch.setattr(hub_transfer.Sink, "write", write)
    hub.cut["model.safetensors"] = SIZE // 2
    with pytest.raises(PabError, match=r"What was fetched is kept: start the download again, and it goes on there"):
        download("someone/model", tmp_path, ["model.safetensors"], endpoint=hub.address)
    monkeypatch.undo()
    hub.status = 200
    hub.served.clear()
    download("someone/model", tmp_path, ["model.safetensors"], endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)
    assert hub.served["model.safetensors"] < SIZE


def test_no_network_says_what_to_put_where(tmp_path: Path):
    with serve(Hub()) as gone:
        address = gone.address
    with pytest.raises(PabError) as caught:
        download_model("open-sora-plan-221", tmp_path / "plan", endpoint=address)
    told = str(caught.value)
    assert told.startswith("There is no connection to the Hub (")
    repository = f"{address}/LanguageBind/Open-Sora-Plan-v1.1.0"
    assert f"fetch the files of {repository} (221x512x512/) into {tmp_path / 'plan' / 'transformer'}" in told
    assert f"of {repository} (vae/) into {tmp_path / 'plan' / 'vae'}" in told
    assert f"of {address}/maxin-cn/Latte-1 (text_encoder/) into {tmp_path / 'plan' / 'text_encoder'}" in told
    assert not (tmp_path / "plan").exists()


def test_offline_mode_counts_as_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PabError, match=r"There is no connection to the Hub \(.*offline"):
        download("someone/model", tmp_path, endpoint=hub.address)


@pytest.mark.parametrize(
    ("repo", "status", "words"),
    [
        ("someone/else", 200, "The Hub has no someone/else, or it is private"),
        ("someone/model", 500, r"The Hub does not give someone/model \(status 500\)"),
        ("no such name", 200, "'no such name' is no name of a repository"),
    ],
)
def test_a_repository_that_is_not_to_be_had(hub: Hub, tmp_path: Path, repo: str, status: int, words: str):
    hub.status = status
    with pytest.raises(PabError, match=words):
        download(repo, tmp_path, endpoint=hub.address)


def test_too_little_disk_is_told_before_anything_is_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=700_000))
    with pytest.raises(PabError, match=r"has 0\.0 GB free, and the download needs 0\.0 GB more: free some space"):
        download("someone/model", tmp_path / "new", endpoint=hub.address)
    assert hub.served == {}
    assert not (tmp_path / "new").exists()


def test_only_what_is_missing_needs_room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Cancelled):
        download("someone/model", tmp_path, progress=Bar(cancel_at=SIZE // 2), endpoint=hub.address)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=SIZE * 2 // 3))
    monkeypatch.setattr(hub_module, "_SPARE_BYTES", 0)
    download("someone/model", tmp_path, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)


def test_a_disk_that_fills_up_keeps_what_is_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = hub_transfer.Sink.write

    def write(self: Any, data: bytes) -> int:
        if self.length > SIZE // 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(hub_transfer.Sink, "write", write)
    with pytest.raises(
        PabError, match=r"The disk is full, and model\.safetensors is not whole: free some space\. What"
    ):
        download("someone/model", tmp_path, endpoint=hub.address)
    monkeypatch.undo()
    hub.served.clear()
    download("someone/model", tmp_path, endpoint=hub.address)
    assert (tmp_path / "model.safetensors").read_bytes() == content(1)
    assert hub.served["model.safetensors"] < SIZE / 2


def test_a_folder_that_cannot_be_made(hub: Hub, tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PabError, match=r"cannot be written \(.*\); choose another folder"):
        download("someone/model", tmp_path / "file", endpoint=hub.address)


def test_pickles_only_are_refused(hub: Hub, tmp_path: Path):
    hub.repositories["someone/old"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(PabError, match=r"someone/old holds weights only as pytorch_model\.bin, a format that can run"):
        download("someone/old", tmp_path, endpoint=hub.address)
    assert files(tmp_path) == {}


def test_an_empty_place(hub: Hub, tmp_path: Path):
    with pytest.raises(PabError, match="someone/model/transformer holds none of the files that belong to a model"):
        download("someone/model", tmp_path, subfolder="transformer", endpoint=hub.address)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a\\..\\..\\evil.json", "c:evil.json"])
def test_a_file_that_leads_out_of_the_folder(hub: Hub, tmp_path: Path, name: str):
    hub.repositories["someone/evil"] = {name: b"{}", "model.safetensors": b""}
    with pytest.raises(PabError, match="which has no place in a folder; nothing is fetched"):
        download("someone/evil", tmp_path / "in", endpoint=hub.address)
    assert files(tmp_path) == {}


def released(hub: Hub) -> None:
    """All repositories of SOURCES with small files, as they are laid out on the Hub."""
    for source in {source for sources in SOURCES.values() for source in sources}:
        repository = hub.repositories.setdefault(source.repo, {"README.md": b""})
        folder = source.subfolder and source.subfolder + "/"
        seed = sum(map(ord, source.repo + source.subfolder))
        if source.target == "tokenizer":
            repository |= {f"{folder}spiece.model": b"s", f"{folder}tokenizer_config.json": b"{}"}
        elif source.target == "scheduler":
            repository[f"{folder}scheduler_config.json"] = b"{}"
        else:
            repository |= {f"{folder}config.json": b"{ }", f"{folder}model.safetensors": content(seed, 5000)}
    hub.repositories["maxin-cn/Latte-1"]["t2v_v20240523.pt"] = b"pickle"


@pytest.mark.parametrize("name", SOURCES)
def test_every_known_model_gets_its_parts(hub: Hub, tmp_path: Path, name: str):
    released(hub)
    folder = download_model(name, tmp_path / name, endpoint=hub.address)
    there = files(folder)
    for part in ("transformer", "vae", "text_encoder"):
        assert {f"{part}/config.json", f"{part}/model.safetensors"} <= there.keys()
    assert {"tokenizer/spiece.model", "tokenizer/tokenizer_config.json"} <= there.keys()
    assert ("vae_temporal_decoder/model.safetensors" in there) == (name == "latte")
    assert not any(path.endswith((".pt", ".md")) for path in there)
    for source in SOURCES[name]:
        for path, body in hub.repositories[source.repo].items():
            if source.subfolder and path.startswith(source.subfolder + "/"):
                assert there[f"{source.target}/{path.removeprefix(source.subfolder + '/')}"] == body


def test_the_known_models_are_those_of_the_registry():
    assert set(SOURCES) <= set(MODELS)


def test_a_models_repository_stands_for_its_name(hub: Hub, tmp_path: Path):
    released(hub)
    download_model("hpcai-tech/OpenSora-STDiT-v3", tmp_path / "id", endpoint=hub.address)
    download_model("open-sora", tmp_path / "name", endpoint=hub.address)
    assert files(tmp_path / "id") == files(tmp_path / "name")
    assert folder_of("hpcai-tech/OpenSora-STDiT-v3") == "open-sora"
    assert folder_of("LanguageBind/Open-Sora-Plan-v1.1.0") == "open-sora-plan"


def test_any_other_repository_comes_as_it_is_and_is_found_by_its_id(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    hub.repositories["someone/my-model"] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    monkeypatch.setenv("PAB_MODELS", str(tmp_path))
    with pytest.raises(PabError, match=r"no such repository has been downloaded .*`pab download someone/my-model`"):
        find_model("someone/my-model")
    download_model("someone/my-model", tmp_path / folder_of("someone/my-model"), endpoint=hub.address)
    assert find_model("someone/my-model").spec.family == find_model(folder).spec.family


def test_parts_can_be_left_out(hub: Hub, tmp_path: Path):
    released(hub)
    download_model("open-sora", tmp_path, parts=["transformer", "vae"], endpoint=hub.address)
    assert {path.split("/")[0] for path in files(tmp_path)} == {"transformer", "vae"}
    with pytest.raises(
        PabError, match=r"open-sora has no part unet\. It has transformer, vae, text_encoder, tokenizer"
    ):
        download_model("open-sora", tmp_path, parts=["unet"], endpoint=hub.address)
    with pytest.raises(PabError, match=r"There is no model named 'sora' to download\. Known are open-sora, latte"):
        download_model("sora", tmp_path, endpoint=hub.address)


def test_a_text_encoder_that_another_model_has_is_linked(hub: Hub, tmp_path: Path):
    released(hub)
    download_model("latte", tmp_path / "latte", endpoint=hub.address)
    first = tmp_path / "latte" / "text_encoder" / "model.safetensors"
    hub.ranges.clear()
    bar = Bar()
    download_model("open-sora", tmp_path / "open-sora", bar, endpoint=hub.address)
    assert (tmp_path / "open-sora" / "text_encoder" / "model.safetensors").samefile(first)
    assert "text_encoder/model.safetensors" not in dict(hub.ranges)
    assert bar.told[-1][0] == bar.told[-1][1]
    # One of the right size that is not right is not taken.
    first.unlink()
    first.write_bytes(bytes(5000))
    (tmp_path / "open-sora" / "text_encoder" / "model.safetensors").unlink()
    download_model("open-sora", tmp_path / "open-sora", endpoint=hub.address)
    assert "text_encoder/model.safetensors" in dict(hub.ranges)
    assert (tmp_path / "open-sora" / "text_encoder" / "model.safetensors").read_bytes() != bytes(5000)


def test_the_hub_of_the_tests_answers_as_the_real_one_does(hub: Hub):
    """huggingface_hub's own ways work on it as well."""
    from huggingface_hub import HfApi, hf_hub_url

    about = HfApi(endpoint=hub.address).model_info("someone/model", files_metadata=True)
    sizes = {entry.rfilename: entry.size for entry in about.siblings or []}
    assert about.sha == COMMIT
    assert sizes["model.safetensors"] == SIZE
    assert hf_hub_url("a/b", "c/d.json", revision="e", endpoint=hub.address) == f"{hub.address}/a/b/resolve/e/c/d.json"
