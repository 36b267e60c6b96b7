"""A job as plain data, that can be written as JSON: which model, what it is to make, and how.

Tensors go beside it, by name: "text.tokens", "text.mask" and "text.negative" for a prompt that is encoded already,
"latents" for those to decode, and "given.image", "given.last_image", "given.video", "given.references.0", ... for
pictures that come as uint8 [T, H, W, 3] and not as files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ...broadcast import AnyPolicy, MlpRule, Policy, ScheduleTable, Window
from ...broadcast.delta_dit import DeltaDit
from ...broadcast.find import read_files
from ...broadcast.schedule_file import ScheduleFile
from ...broadcast.teacache import TeaCache
from ...errors import PabError
from ...models.layers import Branch
from ...prompt_scores import PromptScores
from ...tasks import Given
from ...text import TextEmbedding

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSource(_Plain):
    """What decides which weights a worker keeps loaded; paths are absolute, for workers run elsewhere."""

    model: str
    vae: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    spare_tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    storage: Literal["fp8"] | None = None
    speed: str = "auto"

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str],
        *,
        vae: str | os.PathLike[str] | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        spare_tokenizer: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        storage: Literal["fp8"] | None = None,
        speed: str = "auto",
    ) -> ModelSource:
        """As `Pipeline.load` takes them."""
        name = next((name for name, found in DTYPES.items() if found == dtype), None)
        if dtype is not None and name is None:
            raise PabError(f"A model is run in float32, bfloat16 or float16, not in {dtype}.")
        return cls.model_validate(
            {
                "model": _absolute(model, named=True),
                "vae": _absolute(vae),
                "text_encoder": _absolute(text_encoder),
                "tokenizer": _absolute(tokenizer),
                "spare_tokenizer": _absolute(spare_tokenizer),
                "dtype": name,
                "storage": storage,
                "speed": speed,
            }
        )


class GivenFiles(_Plain):
    """`tasks.Given`, of files; pictures that are no files come as tensors."""

    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    edit: float | None = None
    loop: bool = False
    strategy: str = ""
    references: tuple[str, ...] = ()


class Scores(_Plain):
    """`prompt_scores.PromptScores`."""

    aesthetic: float | None = None
    motion: float | None = None
    camera: str | None = None


class Job(_Plain):
    """What `Pipeline.generate` takes; None stands for the model's default, and for a seed that the pool draws.

    task: "video": prompt to frames; "denoise": prompt, or an embedding, to latents; "decode": latents to frames;
        "load": the model and nothing else; "measure": a few steps, timed.
    policy: a name, or what `policy_to_plain` made of one.
    previews: small pictures come with the progress.
    """

    model: ModelSource
    task: Literal["video", "denoise", "decode", "load", "measure"] = "video"
    prompt: str = ""
    negative: str | None = None
    policy: str | dict[str, Any] = "off"
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: int | None = None  # that a "denoise" job's model is told
    given: GivenFiles = GivenFiles()
    total_frames: int | None = None
    scores: Scores | None = None
    sampler: str | None = None
    kept: str = "plain"
    previews: bool = False

    @classmethod
    def read(cls, data: Any) -> Job:
        """From plain data; PabError names the entry that is wrong."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise PabError(f"The job's entry '{place}' is not valid: {first['msg']}.") from None

    def prompt_scores(self) -> PromptScores | None:
        return None if self.scores is None else PromptScores(**self.scores.model_dump())

    def given_with(self, tensors: Mapping[str, Tensor]) -> Given:
        """What the video starts from, of files and of tensors."""
        entries: dict[str, Any] = self.given.model_dump()
        for name in ("image", "last_image", "video"):
            if f"given.{name}" in tensors:
                entries[name] = tensors[f"given.{name}"]
        more = [name for name in tensors if name.startswith("given.references.")]
        more.sort(key=lambda name: int(name.rsplit(".", 1)[1]))
        entries["references"] = (*entries["references"], *(tensors[name] for name in more))
        return Given(**entries)


def given_to_plain(given: Given) -> tuple[GivenFiles, dict[str, Tensor]]:
    """-> files by absolute path, and the tensors that go beside the job."""
    from ...frame_input import as_image

    entries: dict[str, Any] = {"edit": given.edit, "loop": given.loop, "strategy": given.strategy}
    tensors: dict[str, Tensor] = {}

    def take(name: str, source: Any) -> str | None:
        if source is None or isinstance(source, (str, os.PathLike)):
            return _absolute(source)
        frames: Any = source if isinstance(source, (list, tuple)) or getattr(source, "ndim", 3) == 4 else [source]
        pictures = [as_image(frame) for frame in frames]
        raw = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(p.height, p.width, 3) for p in pictures]
        tensors[f"given.{name}"] = torch.stack(raw)
        return None

    for name in ("image", "last_image", "video"):
        entries[name] = take(name, getattr(given, name))
    files = (take(f"references.{i}", one) for i, one in enumerate(given.references))
    entries["references"] = tuple(file for file in files if file is not None)
    return GivenFiles(**entries), tensors


def text_to_tensors(text: TextEmbedding) -> dict[str, Tensor]:
    """An embedding as the tensors of a "denoise" job."""
    tensors = {"text.tokens": text.tokens, "text.mask": text.mask}
    return tensors if text.negative is None else {**tensors, "text.negative": text.negative}


def text_of(tensors: Mapping[str, Tensor]) -> TextEmbedding | None:
    """The embedding that came with a job."""
    if "text.tokens" not in tensors:
        return None
    return TextEmbedding(tensors["text.tokens"], tensors["text.mask"], negative=tensors.get("text.negative"))


# --- policies and tables ----------------------------------------------------------------------------------------------


def policy_to_plain(policy: str | os.PathLike[str] | AnyPolicy) -> str | dict[str, Any]:
    """A policy as JSON can hold it: names stay names, files are read, objects become their fields."""
    policy = read_files(policy)
    if isinstance(policy, str):
        return policy
    if isinstance(policy, ScheduleFile):
        return {"form": "schedule", **policy.model_dump(mode="json", exclude_defaults=True), "pab_schedule": 1}
    form = next((form for form, cls in _FORMS.items() if type(policy) is cls), None)
    if form is None:
        raise PabError(f"The policy {policy.name} cannot be sent to workers: give it by its name.")
    return {"form": form, **dataclasses.asdict(policy)}


def policy_from_plain(plain: str | Mapping[str, Any]) -> str | AnyPolicy:
    """The reverse of `policy_to_plain`; PabError where the data is none."""
    if isinstance(plain, str):
        return plain
    entries = dict(plain)
    form = entries.pop("form", None)
    try:
        if form == "schedule":
            return ScheduleFile.model_validate(entries)
        return _build(_FORMS[form], entries)
    except PabError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise PabError(f"The job's policy is not valid ({error}): name one, or give a schedule file.") from None


_FORMS: dict[Any, Any] = {"policy": Policy, "delta-dit": DeltaDit, "teacache": TeaCache}


def _build(cls: Any, entries: Mapping[str, Any]) -> Any:
    """One of the policies' frozen dataclasses from what JSON made of it: tuples have become lists, and parts dicts."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := entries.keys() - known.keys():
        raise KeyError(f"unknown entry {sorted(unknown)[0]}")
    return cls(**{name: _restore(value) for name, value in entries.items() if known[name].init})


def _restore(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _build(MlpRule if "skip" in value else Window, value)
    return tuple(map(_restore, value)) if isinstance(value, (list, tuple)) else value


def table_to_plain(table: ScheduleTable) -> dict[str, Any]:
    """What a result tells of the schedule that its run followed. groups: by the branches' places in it."""
    places = {branch: place for place, branch in enumerate(table.branches)}
    return {
        "policy": table.policy,
        "timesteps": list(table.timesteps),
        "source": [[*dataclasses.astuple(branch), list(row)] for branch, row in table.source.items()],
        "groups": [[places[branch] for branch in group] for group in table.groups],
        "scores": table.scores,
        "sampler_steps": table.sampler_steps,
        "predictor": table.predictor,
    }


def table_from_plain(plain: Mapping[str, Any]) -> ScheduleTable:
    source = {Branch(*entry[:-1]): tuple(entry[-1]) for entry in plain["source"]}
    branches = tuple(source)
    return ScheduleTable(
        plain["policy"],
        tuple(plain["timesteps"]),
        source,
        groups=tuple(tuple(branches[place] for place in group) for group in plain["groups"]),
        scores=plain["scores"],
        sampler_steps=plain["sampler_steps"],
        predictor=plain["predictor"],
    )


def _absolute(path: str | os.PathLike[str] | None, named: bool = False) -> str | None:
    """named: what is no path of this machine is a model's name."""
    if path is None:
        return None
    found = Path(path).expanduser()
    return str(path) if named and not found.exists() else str(found.absolute())
