"""`pab bench differences`, `breakdown` and `sizes`. As in cli, torch is imported inside the commands."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_measuring import (
    CALIBRATION,
    FolderOption,
    PolicyListOption,
    PromptsOption,
    RepeatOption,
    clips_apart,
    clips_of,
    count_of,
    prompts_of,
    resumable,
)
from .cli_options import DeviceOption, JsonOption, ModelOption, StepsOption, frames_of, size_of, whole
from .errors import PabError
from .terminal import answered, progress

if TYPE_CHECKING:
    from .models.registry import ModelSpec


def differences(
    model: ModelOption = "demo",
    clips: Annotated[str, typer.Option(metavar="N", help="Prompts to record.")] = "8",
    prompts: PromptsOption = None,
    output: FolderOption = Path("pab-differences"),
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record how much each kind and block changes from step to step: the U-shape."""
    with answered():
        from .checkpoints import find_model
        from .devices import check_device
        from .evaluate.recording import draw_recording, record
        from .pipeline import Pipeline

        found = find_model(model)
        found.check_complete()
        texts = prompts_of(found.spec, prompts, count_of(clips, "clips"), draw=CALIBRATION)
        chosen = clips_apart(texts)
        folder, computes_on = output.expanduser(), check_device(device)
        with resumable(folder), progress() as show:
            show("load", 0, 0)
            pipe = Pipeline.load(model, device=computes_on)
            report = record(pipe, chosen, folder / "recording.jsonl", lambda done, total: show("record", done, total))
        _tell("differences", report, folder, draw_recording, as_json)


def breakdown(
    model: ModelOption = "demo",
    policy: PolicyListOption = None,
    clips: Annotated[str, typer.Option(metavar="N", help="Clips made together.")] = "1",
    output: FolderOption = Path("pab-breakdown"),
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time each part of a step: kinds of branches, embeddings, final layer, rest."""
    with answered():
        from .checkpoints import find_model
        from .devices import check_device
        from .evaluate.breakdown import draw_breakdown, measure_breakdown
        from .pipeline import Pipeline
        from .settings import schedule_for

        found = find_model(model)
        found.check_complete()
        names = _policies(found.spec, policy)
        for name in names:
            schedule_for(found.spec, name, found.sampler)
        chosen = clips_of(prompts_of(found.spec, None, 1), range(1, count_of(clips, "clips") + 1))
        folder, computes_on = output.expanduser(), check_device(device)
        with progress() as show:
            show("load", 0, 0)
            pipe = Pipeline.load(model, device=computes_on)
            report = measure_breakdown(pipe, names, chosen, lambda done, total: show("runs", done, total))
        _tell("breakdown", report, folder, draw_breakdown, as_json)


def sizes(
    model: ModelOption = "demo",
    policy: PolicyListOption = None,
    length: Annotated[
        list[str] | None, typer.Option("--frames", metavar="N", help="Frames, or 2s, 4s, ...; may be repeated.")
    ] = None,
    size: Annotated[list[str] | None, typer.Option("--size", metavar="WxH", help="In pixels; may be repeated.")] = None,
    steps: StepsOption = None,
    repeat: RepeatOption = "3",
    output: FolderOption = Path("pab-sizes"),
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the denoising against length and size. A model by name that is not downloaded gets random weights."""
    with answered():
        from .devices import check_device
        from .evaluate.latency import draw_latency, measure_latency, usual_sizes

        computes_on, rounds = check_device(device), count_of(repeat, "rounds")
        folder, count = output.expanduser(), whole(steps)
        sides = [size_of(one) for one in size or ()]
        with resumable(folder), progress() as show:
            show("load", 0, 0)
            pipe = pipe_or_random(model, computes_on)
            spec = pipe.spec
            usual = usual_sizes(pipe)
            frames = [frames_of(one) for one in length or ()] or list(dict.fromkeys(case[0] for case in usual))
            rows = [(s["height"], s["width"]) for s in sides] or list(dict.fromkeys(case[1:] for case in usual))
            report = measure_latency(
                pipe,
                [(number, *side) for side in rows for number in frames],
                _policies(spec, policy),
                folder / "sizes.jsonl",
                steps=count,
                repeat=rounds,
                on_progress=lambda done, total: show("sizes", done, total),
            )
        _tell("sizes", report, folder, draw_latency, as_json)


def pipe_or_random(model: str, device: Any, speed: str = "auto") -> Any:
    """The model, or one of its size with random weights where it is known by name and not at hand."""
    from .evaluate.random_weights import random_pipe
    from .models.registry import MODELS
    from .pipeline import Pipeline

    if not _is_absent(model):
        return Pipeline.load(model, device=device, speed=speed)
    typer.echo(f"{MODELS[model].title} is not downloaded: timed with random weights of its size.", err=True)
    return random_pipe(model, device, speed=speed)


def spec_or_known(model: str) -> "ModelSpec":
    """What is known of the model, or of the name of one that is not at hand."""
    from .checkpoints import find_model
    from .models.registry import MODELS

    return MODELS[model] if _is_absent(model) else find_model(model).spec


def _is_absent(model: str) -> bool:
    from .checkpoints import DEMOS, models_folder
    from .models.registry import MODELS

    known = model in MODELS and model not in DEMOS and not Path(model).exists()
    return known and not (models_folder() / model).is_dir()


def check_speeds(wanted: list[str]) -> None:
    """PabError where speeds to compare are not ones that a model can have in turn."""
    from .acceleration.choice import SPEEDS
    from .errors import PabError

    for speed in wanted:
        if speed not in SPEEDS:
            raise PabError(f"There is no speed named '{speed}': choose {', '.join(SPEEDS[:-1])} or {SPEEDS[-1]}.")
    if len(wanted) > 1 and set(wanted) - {"exact", "fast"}:
        raise PabError("Only exact and fast can take turns: fp8 has other weights, and auto is one of the two.")


def _policies(spec: "ModelSpec", given: list[str] | None) -> list[str]:
    """Those given, else the family's gentlest; each once, without off."""
    from .broadcast.presets import FAMILIES

    names = [name for name in given or [FAMILIES[spec.family].names[0]] if name != "off"]
    if len(set(names)) < len(names):
        raise PabError("A policy is given twice: give each once.")
    return names


def _tell(what: str, report: Any, folder: Path, draw: Any, as_json: bool) -> None:
    from .evaluate.results import write_report

    write_report(folder, what, report, {what: lambda path: draw(report, path)})
    typer.echo(json.dumps(report.to_json()) if as_json else f"{report.to_markdown()}\nin {folder}")
