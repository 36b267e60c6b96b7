"""`pab calibrate`: a schedule made for a model. As in cli, torch is imported inside the command."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_measuring import (
    CALIBRATION,
    BatchOption,
    PromptsOption,
    SecondsOption,
    clips_apart,
    count_of,
    prompts_of,
    resumable,
    seconds_of,
)
from .cli_options import DeviceOption, JsonOption, ModelOption, real
from .errors import PabError
from .terminal import answered, progress


def calibrate(
    model: ModelOption = "demo",
    speedup: Annotated[
        str | None, typer.Option(metavar="X", help="Wanted: so many times as fast, such as 1.3.")
    ] = None,
    error: Annotated[
        str | None,
        typer.Option(metavar="X", help="Or wanted: at most this relative error of the latents, such as 0.05."),
    ] = None,
    like: Annotated[str | None, typer.Option(metavar="POLICY", help="Or wanted: as fast as this policy.")] = None,
    error_like: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Or wanted: the error of this policy.")
    ] = None,
    computed: Annotated[
        str | None, typer.Option(metavar="N", help="Or wanted: so many of a run's calls of the model computed.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The schedule; default: where --policy calibrated finds it."
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--name", metavar="NAME", help="Makes it the policy calibrated-NAME, beside others of the model."),
    ] = "",
    clips: Annotated[str, typer.Option(metavar="N", help="Prompts to calibrate on.")] = "8",
    prompts: PromptsOption = None,
    by: Annotated[
        str, typer.Option("--by", metavar="model|kind|block", help="What is computed together: all, kinds, blocks.")
    ] = "model",
    groups: Annotated[str, typer.Option(metavar="N", help="Parts of the depth that are scheduled apart.")] = "1",
    predictor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What a reused step is given: hold, gate, linear, taylor, or, by model alone, best: linear, taylor or "
            "hold, whichever errs least. Default: best, or by kind or block linear; without a search hold.",
        ),
    ] = None,
    costs: Annotated[
        str, typer.Option(metavar="measured|flops|MODEL", help="Time as measured here, or counted of a released model.")
    ] = "measured",
    batch: BatchOption = "8",
    timed_clips: Annotated[
        str | None,
        typer.Option(
            "--timed-clips", metavar="N", help="Clips made together where time is measured; default: as --batch."
        ),
    ] = None,
    seconds: SecondsOption = None,
    teacache: Annotated[
        bool, typer.Option("--teacache", help="Fit TeaCache's coefficients instead, from the same recording.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of the recording and what was tried; default: beside the output."),
    ] = None,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite the output file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a schedule for a model: record how much it changes from step to step, and search what to reuse.

    Without a wanted speed-up or error, the pyramid that the recording proposes is written. What takes long is kept: the
    same command goes on where it was cut off.
    """
    started = time.monotonic()
    with answered():
        from .broadcast.calibrated import coefficients_path, own_path
        from .checkpoints import find_model
        from .devices import check_device
        from .evaluate.calibration import BEST, Aim, Search, check_together
        from .pipeline import Pipeline
        from .settings import schedule_for

        found = find_model(model)
        found.check_complete()
        spec = found.spec
        calls = None if computed is None else count_of(computed, "computed calls")
        aim = Aim(_number(speedup), _number(error), like, error_like, calls)
        if teacache and not aim.is_none:
            raise PabError("TeaCache decides by its threshold: give --teacache without a wanted speed-up or error.")
        given = predictor or ("hold" if aim.is_none else BEST if by == "model" else "linear")
        together = count_of(batch, "clips")
        timed = together if timed_clips is None else count_of(timed_clips, "clips")
        apart = count_of(groups, "groups", spec.depth)
        search = Search(by, apart, given, costs, together, timed_clips=timed)  # pyright: ignore[reportArgumentType]
        check_together(aim, search, schedule_for(spec, "off", found.sampler).steps)
        for policy in filter(None, (like, error_like)):
            schedule_for(spec, policy, found.sampler)
        usual = coefficients_path(spec.family, spec.depth) if teacache else own_path(spec.family, spec.depth, name)
        target = usual if output is None else output.expanduser()
        check_target(target, force)
        folder = target.with_name(f"{target.stem}.calibration") if work is None else work.expanduser()
        texts = prompts_of(spec, prompts, count_of(clips, "clips"), draw=CALIBRATION)
        chosen = clips_apart(texts)
        limit = seconds_of(seconds)
        computes_on = check_device(device)

        with resumable(folder), progress() as show:
            show("load", 0, 0)
            pipe = Pipeline.load(model, device=computes_on)
            if teacache:
                told = fit_teacache(pipe, chosen, folder, target, show)
            else:
                until = None if limit is None else started + limit
                told = search_schedule(pipe, chosen, folder, target, aim, search, name, until, show)
        if as_json:
            typer.echo(json.dumps(told))
            return
        for key, value in told.items():
            typer.echo(f"{key:13}{value if isinstance(value, str) else json.dumps(value)}")


def search_schedule(
    pipe: Any, clips: Any, folder: Path, target: Path, aim: Any, search: Any, name: str, until: float | None, show: Any
) -> dict[str, Any]:
    """Writes the schedule; -> what to tell of it."""
    from .broadcast.schedule_file import save_schedule
    from .evaluate.calibration import calibrate

    policy = f"calibrated-{name}" if name else "calibrated"
    made = calibrate(pipe, clips, folder, aim, search, name=policy, until=until, on_progress=show)
    save_schedule(made.schedule, target)
    return made.to_json() | {"schedule": str(target), "folder": str(folder)}


def fit_teacache(pipe: Any, clips: Any, folder: Path, target: Path, show: Any) -> dict[str, Any]:
    """Writes the coefficients; -> what to tell of them."""
    from .broadcast.calibrated import write_coefficients
    from .evaluate.recording import fit_polynomial, record

    recording = record(pipe, clips, folder / "recording.jsonl", lambda done, total: show("record", done, total))
    coefficients = fit_polynomial(recording)
    note = f"fitted to {len(clips)} clips of {pipe.spec.name}"
    write_coefficients(target, pipe.spec.family, pipe.spec.depth, coefficients, note)
    told = {"policy": "teacache", "coefficients": list(coefficients), "clips": len(clips)}
    return told | {"file": str(target), "folder": str(folder)}


def check_target(target: Path, force: bool) -> None:
    """PabError where the file is there and must not be overwritten, or is no file to write to."""
    if target.suffix != ".json":
        raise PabError(f"A schedule is a .json file, and {target} is not named so: give another name.")
    if target.is_dir() or (target.exists() and not force):
        raise PabError(f"{target} exists already: give another --output or --name, or --force to overwrite it.")


def _number(text: str | None) -> Any:
    return None if text is None else real(text)
