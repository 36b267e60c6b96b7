"""`pab bench quality`, `ablation`, `ranges` and `scores`: how near policies stay to the video without reuse, and when.

As in cli, torch is imported inside the commands.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_measuring import (
    BatchOption,
    FolderOption,
    LpipsOption,
    NoLpipsOption,
    PolicyListOption,
    PromptsOption,
    RepeatOption,
    SecondsOption,
    TimedClipsOption,
    clips_of,
    count_of,
    judge_of,
    lpips_of,
    prompts_of,
    resumable,
    seconds_of,
    vmaf_of,
)
from .cli_options import DeviceOption, JsonOption, KeptOption, ModelOption
from .errors import PabError
from .terminal import answered, progress

if TYPE_CHECKING:
    from .broadcast import AnyPolicy
    from .models.registry import ModelSpec

Choose = Callable[["ModelSpec", list[str]], "Sequence[str | AnyPolicy]"]
OtherSpeedsOption = Annotated[
    list[str] | None,
    typer.Option("--speed", metavar="fast|fp8", help="Measure at that speed, too, beside exact; may be repeated."),
]
_LONGEST = 9  # range that a sweep goes to


def command(what: str, told: str, choose: Choose, usual: int, seeds: str) -> Callable[..., None]:
    """A command that compares the policies that `choose` makes of those given, by default on `usual` prompts."""

    def run(
        model: ModelOption = "demo",
        policy: PolicyListOption = None,
        clips: Annotated[
            str | None,
            typer.Option(metavar="N", help=f"Prompts, each with every seed; default: up to {usual}."),
        ] = None,
        seeds: Annotated[str, typer.Option(metavar="N", help="Seeds of each prompt.")] = seeds,
        prompts: PromptsOption = None,
        output: FolderOption = Path(f"pab-{what}"),
        batch: BatchOption = "8",
        kept: KeptOption = "plain",
        speed: OtherSpeedsOption = None,
        repeat: RepeatOption = "3",
        timed_clips: TimedClipsOption = "1",
        lpips: LpipsOption = None,
        no_lpips: NoLpipsOption = False,
        no_vmaf: Annotated[bool, typer.Option("--no-vmaf", help="Measure without VMAF, which is slow.")] = False,
        seconds: SecondsOption = None,
        device: DeviceOption = None,
        as_json: JsonOption = False,
    ) -> None:
        started = time.monotonic()
        with answered():
            from .broadcast.cache import make_store
            from .checkpoints import find_model
            from .devices import check_device
            from .evaluate.quality import measure_quality
            from .evaluate.quality_report import draw_quality
            from .evaluate.quality_speeds import check_beside, load_beside
            from .evaluate.results import write_report
            from .settings import schedule_for

            found = find_model(model)
            found.check_complete()
            spec = found.spec
            policies = choose(spec, policy or [])
            names = [one if isinstance(one, str) else one.name for one in policies]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise PabError(f"The policy {twice} is given twice: give each once.")
            for one in policies:
                schedule_for(spec, one, found.sampler)
            texts = prompts_of(spec, prompts, None if clips is None else count_of(clips, "prompts"), usual)
            chosen = clips_of(texts, range(1, count_of(seeds, "seeds") + 1))
            together, rounds = count_of(batch, "clips"), count_of(repeat, "rounds")
            make_store(kept)
            timed, limit = count_of(timed_clips, "clips"), seconds_of(seconds)
            folder, computes_on, speeds = output.expanduser(), check_device(device), speed or []
            check_beside(spec, speeds, computes_on)
            metric, vmaf = lpips_of(lpips, no_lpips, computes_on), vmaf_of(no_vmaf)
            with resumable(folder), progress() as show:
                show("load", 0, 0)
                pipe, *others = load_beside(found, speeds, computes_on)
                report = measure_quality(
                    pipe,
                    policies,
                    chosen,
                    folder / f"{what}.jsonl",
                    lpips=metric,
                    vmaf=vmaf,
                    judge=judge_of(spec, prompts, texts, computes_on),
                    batch=together,
                    kept=kept,
                    others=others,
                    repeat=rounds,
                    timed_clips=timed,
                    until=None if limit is None else started + limit,
                    on_progress=lambda done, total: show("clips", done, total),
                )
                shown = "psnr" if metric is None else "lpips"
                write_report(folder, what, report, {what: lambda path: draw_quality(report, path, shown)})
            if as_json:
                typer.echo(json.dumps(report.to_json()))
                return
            typer.echo(f"{report.to_markdown()}\n{report.clips} of {len(chosen)} clips, in {folder}")

    run.__doc__ = told
    return run


def given_or_all(spec: "ModelSpec", given: list[str]) -> list[str]:
    """Those given, else every policy that the model has by name."""
    from .broadcast import policy_names

    known = [name for name in policy_names(spec.family, spec.depth) if name != "off"]
    return [name for name in given if name != "off"] or [
        name for name in known if not name.startswith("steps") or spec.steps > 20
    ]


def without_each(spec: "ModelSpec", given: list[str]) -> "list[AnyPolicy]":
    """A policy, and it without each kind that it reuses. PabError where it has no ranges."""
    from .broadcast import Policy, customise, find_policy

    policy = one_of(spec, given)
    base = find_policy(policy, spec.family, spec.depth)
    if not isinstance(base, Policy) or base.is_off:
        raise PabError(f"The policy {policy} has no ranges to leave out: choose one of those named pab.")
    found: list[AnyPolicy] = [base]
    for part in ({"spatial": 1}, {"temporal": 1}, {"cross": 1}, {"mlp": False}):
        changed = customise(base, spec.family, spec.depth, **part)  # pyright: ignore[reportArgumentType]
        if changed != base:
            found.append(changed)
    return found


def each_alone(spec: "ModelSpec", given: list[str]) -> "list[AnyPolicy]":
    """Ranges from 2 on of each kind of attention, in the family's window, nothing else reused."""
    from .broadcast import Policy, customise
    from .broadcast.presets import FAMILIES

    if given:
        raise PabError("The sweep has ranges of its own: leave --policy out.")
    window = FAMILIES[spec.family].window
    off = Policy(name="off", window=window)
    found = []
    for kind in ("spatial", "temporal", "cross"):
        for value in range(2, _LONGEST + 1):
            found.append(customise(off, spec.family, spec.depth, **{kind: value}))  # pyright: ignore[reportArgumentType]
    return found


def scores_too(spec: "ModelSpec", given: list[str]) -> list[str]:
    """A policy that reuses outputs, and the one of the same ranges that reuses scores."""
    policy = one_of(spec, given)
    if not policy.startswith("pab"):
        raise PabError(f"Scores are compared with outputs for a policy named pab, not for {policy}.")
    return [policy, f"scores{policy[3:]}"]


def one_of(spec: "ModelSpec", given: list[str]) -> str:
    """The policy given, else the family's gentlest."""
    from .broadcast.presets import FAMILIES

    if len(given) > 1:
        raise PabError("This compares forms of one policy: give one.")
    return given[0] if given else FAMILIES[spec.family].names[0]


quality = command(
    "quality",
    "Compare policies with the video without reuse, and with fewer steps in the same time, clip by clip.",
    given_or_all,
    64,
    "2",
)
ablation = command(
    "ablation",
    "Leave each part of a policy of ranges out: spatial, temporal and cross-attention, MLP.",
    without_each,
    16,
    "1",
)
ranges = command("ranges", "Sweep the range of each kind of attention alone, from 2 to 9.", each_alone, 16, "1")
scores = command(
    "scores",
    "Reuse attention's scores in place of its outputs, the paper's ablation: time and quality.",
    scores_too,
    16,
    "1",
)
