"""Models from the Hugging Face Hub into a folder that the caller names: which files, and where they go."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import PabError
from .hub_transfer import Count, HubFile, Progress, explained, fetch, link_twin, without_bars

PATTERNS = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt", "LICENSE*")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SPARE_BYTES = 2**26  # that a download leaves free


@dataclass(frozen=True)
class Source:
    """A part of a model on the Hub."""

    repo: str
    subfolder: str  # of the repository; empty: its top
    target: str  # that part's folder in the model's folder


# The encoder and tokenizer of T5 v1.1 XXL. The authors of Open-Sora and Open-Sora-Plan name DeepFloyd/t5-v1_1-xxl,
# which holds these weights as pickles only.
_TEXT = (
    Source("maxin-cn/Latte-1", "text_encoder", "text_encoder"),
    Source("maxin-cn/Latte-1", "tokenizer", "tokenizer"),
)
_LATTE = ("transformer", "vae", "vae_temporal_decoder", "scheduler")
_PLAN = "LanguageBind/Open-Sora-Plan-v1.1.0"

# Model's name in the registry -> its parts as they were released.
SOURCES: dict[str, tuple[Source, ...]] = {
    "open-sora": (
        Source("hpcai-tech/OpenSora-STDiT-v3", "", "transformer"),
        Source("hpcai-tech/OpenSora-VAE-v1.2", "", "vae"),
        *_TEXT,
    ),
    "latte": (*(Source("maxin-cn/Latte-1", part, part) for part in _LATTE), *_TEXT),
    "open-sora-plan": (Source(_PLAN, "65x512x512", "transformer"), Source(_PLAN, "vae", "vae"), *_TEXT),
    "open-sora-plan-221": (Source(_PLAN, "221x512x512", "transformer"), Source(_PLAN, "vae", "vae"), *_TEXT),
}


# A repository's id -> the model that its transformer is of.
_NAMES = {source.repo: name for name in reversed(SOURCES) for source in SOURCES[name] if source.target == "transformer"}
_ID = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether it reads like owner/name."""
    return _ID.fullmatch(text) is not None


def model_of(hub_id: str) -> str | None:
    """The name under which a released model is known here; None: it is none of those."""
    return _NAMES.get(hub_id)


def folder_of(model: str) -> str:
    """The folder, among downloaded models, of a name of `SOURCES` or the id of any repository."""
    return (model_of(model) or model).replace("/", "--")


def download(
    repo_id: str,
    folder: str | Path,
    patterns: Sequence[str] = PATTERNS,
    progress: Progress | None = None,
    *,
    subfolder: str = "",
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Brings the files of a repository into `folder`, or completes them; returns the folder.

    Args:
        patterns: which files, as shell patterns on their path below `subfolder`.
        progress: called with bytes done and bytes in all; what it raises ends the download and reaches the caller. A
            later call goes on from there.
        subfolder: of the repository, whose files go into `folder` itself; empty: all.
        revision: branch, tag or commit; None: main.
        endpoint: address of the Hub; None: $HF_ENDPOINT or huggingface.co.
        token: for private and gated repositories; None: the one that `hf auth login` keeps.

    Raises:
        PabError: no such repository, only pickles in it, no connection, too little disk, a file that came damaged.
    """
    return _download([Source(repo_id, subfolder, "")], Path(folder), patterns, progress, revision, endpoint, token)


def download_model(
    name: str,
    folder: str | Path,
    progress: Progress | None = None,
    *,
    parts: Iterable[str] | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Brings a model of `SOURCES`, by its name or the id of its repository, into `folder`, each part into a folder of
    its own; else as `download`. Of any other repository all comes as it is.

    A file that the folder of another model beside this one has already, such as the text encoder's, is linked.

    Args:
        parts: only these, such as ("transformer", "vae") for whoever has a T5 encoder; None: all.
    """
    name = model_of(name) or name
    if name not in SOURCES and is_hub_id(name):
        return download(name, folder, progress=progress, endpoint=endpoint, token=token)
    if name not in SOURCES:
        raise PabError(
            f"There is no model named '{name}' to download. Known are {', '.join(SOURCES)}, and any repository of the "
            "Hub as owner/name."
        )
    known = [source.target for source in SOURCES[name]]
    wanted = known if parts is None else list(parts)
    if unknown := sorted(set(wanted) - set(known)):
        raise PabError(f"{name} has no part {', '.join(unknown)}. It has {', '.join(known)}.")
    sources = [source for source in SOURCES[name] if source.target in wanted]
    return _download(sources, Path(folder), PATTERNS, progress, None, endpoint, token, link=True)


def _download(
    sources: Sequence[Source],
    folder: Path,
    patterns: Sequence[str],
    progress: Progress | None,
    revision: str | None,
    endpoint: str | None,
    token: str | None,
    link: bool = False,
) -> Path:
    from huggingface_hub import HfApi

    address = endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    places = (
        f"{address}/{source.repo}{f' ({source.subfolder}/)' if source.subfolder else ''} into {folder / source.target}"
        for source in sources
    )
    by_hand = f"On a machine that has one, fetch the files of {', of '.join(places)}."
    repositories: dict[str, Any] = {}
    for repo in dict.fromkeys(source.repo for source in sources):
        try:
            repositories[repo] = HfApi(endpoint=endpoint, token=token).model_info(
                repo, revision=revision, files_metadata=True, timeout=30
            )
        except Exception as error:
            raise explained(error, repo, by_hand) from None
    files = [
        file
        for source in sources
        for file in _list_files(source, repositories[source.repo], folder, patterns, endpoint)
    ]
    count = Count(sum(file.size for file in files), progress)
    missing = [file for file in files if not file.there]
    count.add(sum(file.size for file in files if file.there))
    if link:
        missing = [file for file in missing if not link_twin(file, folder, count)]
    _check_disk(folder, sum(file.size - file.fetched for file in missing))
    with without_bars():
        for file in missing:
            fetch(file, token, count)
    return folder


def _list_files(
    source: Source, repository: Any, folder: Path, patterns: Sequence[str], endpoint: str | None
) -> list[HubFile]:
    """The files of a source that belong to a model; PabError if there are none, or only pickles.

    repository: huggingface_hub's ModelInfo.
    """
    from huggingface_hub import hf_hub_url

    files, names = [], []
    for entry in repository.siblings or []:
        path = PurePosixPath(entry.rfilename)
        # What a server names must not lead out of the folder.
        if path.is_absolute() or any(part == ".." or ":" in part or "\\" in part for part in path.parts):
            raise PabError(f"{source.repo} names a file '{path}', which has no place in a folder; nothing is fetched.")
        if not path.is_relative_to(source.subfolder):
            continue
        own = path.relative_to(source.subfolder)
        names.append(own)
        if any(fnmatch(str(own), pattern) for pattern in patterns):
            url = hf_hub_url(source.repo, entry.rfilename, revision=repository.sha, endpoint=endpoint)
            checksum = entry.lfs.sha256 if entry.lfs else None
            files.append(HubFile(url, folder / source.target / own, entry.size or 0, checksum, entry.blob_id))
    where = f"{source.repo}/{source.subfolder}".rstrip("/")
    pickled = [name.name for name in names if name.suffix in _PICKLED]
    if pickled and not any(name.suffix == ".safetensors" for name in names):
        raise PabError(
            f"{where} holds weights only as {pickled[0]}, a format that can run code when opened and is never loaded "
            "here; choose a repository that has safetensors files."
        )
    if not files:
        raise PabError(f"{where} holds none of the files that belong to a model ({', '.join(patterns)}).")
    return files


def _check_disk(folder: Path, needed: int) -> None:
    """PabError where the disk of a folder, which may not be there yet, has too little room for that many bytes."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed and free < needed + _SPARE_BYTES:
        raise PabError(
            f"The disk of {folder} has {free / 1e9:.1f} GB free, and the download needs {needed / 1e9:.1f} GB more: "
            "free some space or choose a folder on another disk."
        )
