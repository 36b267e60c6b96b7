"""What a user filled in, on the page or through the API, and the checked clip that becomes of it.

Everything that the command line refuses is refused here by the same functions, in the same words; what is added is the
field that each sentence belongs to.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..broadcast import AnyPolicy, Policy, ScheduleTable, Window, customise, find_policy, policy_names, preset_names
from ..broadcast.presets import FAMILIES
from ..cli_options import frames_of, size_of, whole
from ..conditioning import check_takes_frames
from ..errors import PabError
from ..models.registry import ModelSpec
from ..noise_sampling import NoiseSampler
from ..prompt_cleaning import clean_prompt
from ..settings import check_guidance, check_seed, clip_size, schedule_for
from .models import Offered
from .settings import Limits

RANGES = ("spatial", "temporal", "cross")
_POLICY = re.compile(r"[a-z0-9-]{1,40}")  # the core takes paths of files, too: users must not reach them
LEVELS = ("quality", "balanced", "fast")  # the published policies of each family, gentlest first


@dataclass(frozen=True)
class ClipRequest:
    """One video as asked for; None and "" stand for the model's default. Nothing here is checked."""

    prompt: str = ""
    model: str = "demo"
    negative: str = ""
    size: str = ""  # "192x128"
    frames: str = ""  # "34" or "2s"
    steps: Any = None
    guidance: Any = None
    seed: str = ""
    policy: str = "quality"  # a level, "off", or the name of a policy
    spatial: Any = None  # None: as the policy has it
    temporal: Any = None
    cross: Any = None
    mlp: bool | None = None
    window: str = ""  # "0.3:0.85"
    picture: str = ""  # name of a checked upload
    last_picture: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> ClipRequest:
        """Leaves out what a later version may have written."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in known.items() if name in names})


@dataclass(frozen=True)
class Clip:
    """A request that can be made."""

    request: ClipRequest  # with the seed written out
    offered: Offered
    prompt: str
    negative: str | None
    policy: AnyPolicy
    table: ScheduleTable
    seed: int
    steps: int | None
    guidance: float | None
    num_frames: int
    height: int
    width: int
    picture: Path | None = None
    last_picture: Path | None = None


class FieldErrors(PabError):
    """What is wrong with a request, by field."""

    def __init__(self, by_field: Mapping[str, str]):
        super().__init__(" ".join(dict.fromkeys(by_field.values())))
        self.by_field = dict(by_field)


def policy_name(level: str, family: str) -> str:
    """ "balanced" -> "pab357", the family's; other names stay as they are."""
    return preset_names(family)[1 + LEVELS.index(level)] if level in LEVELS else level


def level_of(policy: str) -> str | None:
    """ "pab357" -> "balanced", of whichever family; None for what is no published policy."""
    names = {name: level for family in FAMILIES for level, name in zip(LEVELS, preset_names(family)[1:], strict=True)}
    return names.get(policy)


def preset_values(level: str, spec: ModelSpec) -> dict[str, Any]:
    """What the sliders show for a level or policy: ranges, mlp, and the window's ends to two places."""
    policy = find_policy(policy_name(level, spec.family), spec.family, spec.depth)
    if not isinstance(policy, Policy):
        policy = Policy()  # of a form without ranges
    # Off has the whole run for its window: what a slider would begin with is the family's.
    window = FAMILIES[spec.family].window if policy.is_off else policy.window
    return {
        **{kind: policy.range_of(kind) for kind in RANGES},
        "mlp": bool(policy.mlp_spatial or policy.mlp_temporal),
        "start": round(window.start, 2),
        "stop": round(window.stop, 2),
    }


def with_sliders(request: ClipRequest, spec: ModelSpec, values: Mapping[str, Any]) -> ClipRequest:
    """The request with what the sliders add to its policy; one that stands where the policy has it adds nothing.

    A policy without ranges has nothing that one could be added to: "off" takes its place, which the sliders show of it.
    """
    name = request.policy
    usual = preset_values(name, spec)
    if values != usual and not isinstance(find_policy(policy_name(name, spec.family), spec.family, spec.depth), Policy):
        name = "off"
    own = {kind: None if values[kind] == usual[kind] else values[kind] for kind in RANGES}
    moved = (values["start"], values["stop"]) != (usual["start"], usual["stop"])
    return replace(
        request,
        policy=name,
        **own,
        mlp=None if values["mlp"] == usual["mlp"] else values["mlp"],
        window=f"{values['start']:g}:{values['stop']:g}" if moved else "",
    )


def policy_for(request: ClipRequest, spec: ModelSpec) -> AnyPolicy:
    """PabError for an unknown name, a range or a window that cannot be."""
    if not _POLICY.fullmatch(request.policy):
        raise PabError(
            f"'{request.policy[:40]}' is not the name of a policy. Known are {', '.join(LEVELS)} and "
            f"{', '.join(policy_names(spec.family, spec.depth))}."
        )
    return customise(
        policy_name(request.policy, spec.family),
        spec.family,
        spec.depth,
        **{kind: _number(getattr(request, kind)) for kind in RANGES},
        mlp=request.mlp,
        window=Window.parse(request.window) if request.window else None,
    )


def check_request(
    request: ClipRequest,
    offered: Mapping[str, Offered],
    limits: Limits,
    find_picture: Callable[[str], Path],
) -> Clip:
    """PabError of class FieldErrors that says all that is wrong."""
    wrong: dict[str, str] = {}

    @contextmanager
    def of_field(name: str) -> Iterator[None]:
        try:
            yield
        except PabError as error:
            wrong.setdefault(name, str(error))

    if request.model not in offered:
        known = ", ".join(offered)
        raise FieldErrors({"model": f"There is no model named '{request.model}' here. Known are {known}."})
    model = offered[request.model]
    spec = model.spec
    with of_field("prompt"):
        if len(request.prompt) > limits.prompt:
            raise PabError(f"The prompt has {len(request.prompt)} characters; {limits.prompt} are the most.")
        clean_prompt(request.prompt)
    with of_field("negative"):
        if request.negative and not isinstance(model.sampler, NoiseSampler):
            raise PabError(f"{spec.title} takes no negative prompt: leave it empty.")
    height = width = frames = None
    with of_field("size"):
        height, width = (size_of(request.size.strip() or None)[side] for side in ("height", "width"))
        _, high, wide = clip_size(spec, None, height, width)
        if high * wide > limits.pixels:
            raise PabError(f"{wide}x{high} is more than this studio makes: {limits.pixels:,} pixels are the most.")
    with of_field("frames"):
        frames = frames_of(request.frames or None)
        count = clip_size(spec, frames, None, None)[0]
        if count > limits.frames:
            raise PabError(f"{count} frames are more than this studio makes: {limits.frames} are the most.")
    steps, guidance, seed = _number(request.steps), _number(request.guidance), 0
    with of_field("steps"):
        if isinstance(steps, int) and steps > limits.steps:
            raise PabError(f"{steps} steps are more than this studio makes: {limits.steps} are the most.")
        schedule_for(spec, "off", model.sampler, steps)
    with of_field("guidance"):
        guidance = None if guidance is None else check_guidance(guidance)
    with of_field("seed"):
        text = str(request.seed).strip()
        seed = check_seed(whole(text)) if text else secrets.randbelow(2**32)
    policy = None
    with of_field("policy"):
        policy = policy_for(request, spec)
    pictures: dict[str, Path | None] = {"picture": None, "last_picture": None}
    for name in pictures:
        with of_field("picture"):
            if getattr(request, name):
                check_takes_frames(spec)
                pictures[name] = find_picture(getattr(request, name))
    if wrong or policy is None:
        raise FieldErrors(wrong)
    with of_field("policy"):
        num_frames, height, width = clip_size(spec, frames, height, width)
        table = schedule_for(spec, policy, model.sampler, steps, num_frames, height, width)
        return Clip(
            replace(request, seed=str(seed)),
            model,
            request.prompt,
            request.negative or None,
            policy,
            table,
            seed,
            steps,
            guidance,
            num_frames,
            height,
            width,
            **pictures,
        )
    raise FieldErrors(wrong)


def _number(value: Any) -> Any:
    """A browser's 30.0 is 30; text from the API is taken where it is a number, else left for the core to refuse."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return whole(value) if isinstance(value, str) and value.strip() else (None if value == "" else value)
