"""`pab bench rivals`. As in cli, torch is imported inside the command."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_measuring import (
    CALIBRATION,
    BatchOption,
    FolderOption,
    LpipsOption,
    NoLpipsOption,
    PromptsOption,
    RepeatOption,
    SecondsOption,
    TimedClipsOption,
    clips_apart,
    clips_of,
    count_of,
    judge_of,
    lpips_of,
    prompts_of,
    resumable,
    seconds_of,
)
from .cli_options import DeviceOption, JsonOption, ModelOption
from .errors import PabError
from .terminal import answered, progress

WAYS = (
    "model best",
    "model",
    "model linear",
    "model taylor",
    "kind",
    "kind linear",
    "kind taylor",
    "kind gate",
    "kind groups",
)
WAYS += ("block", "block linear")


def rivals(
    model: ModelOption = "demo",
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="POLICY", help="Whose time to match, gentlest first; default: the published ones."),
    ] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            "--way", metavar="WAY", help=f"How to search: {', '.join(WAYS)}; may be repeated; default: model best."
        ),
    ] = None,
    clips: Annotated[str, typer.Option(metavar="N", help="Prompts to compare on, each with every seed.")] = "64",
    seeds: Annotated[str, typer.Option(metavar="N", help="Seeds of each prompt.")] = "2",
    calibration_clips: Annotated[str, typer.Option(metavar="N", help="Other prompts, to calibrate on.")] = "16",
    prompts: PromptsOption = None,
    costs: Annotated[
        str, typer.Option(metavar="measured|flops|MODEL", help="Time as measured here, or counted of a released model.")
    ] = "measured",
    output: FolderOption = Path("pab-rivals"),
    batch: BatchOption = "16",
    repeat: RepeatOption = "3",
    timed_clips: TimedClipsOption = "1",
    lpips: LpipsOption = None,
    no_lpips: NoLpipsOption = False,
    seconds: SecondsOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Calibrate at the time of each published policy, and compare with all rivals on clips never seen."""
    with answered():
        from .broadcast.presets import FAMILIES
        from .checkpoints import find_model
        from .devices import check_device
        from .evaluate.quality_report import draw_quality
        from .evaluate.recording import draw_recording, record
        from .evaluate.results import write_report
        from .evaluate.rivals import compare_rivals
        from .pipeline import Pipeline
        from .settings import schedule_for

        found = find_model(model)
        found.check_complete()
        spec = found.spec
        names = like or list(FAMILIES[spec.family].names)
        for name in names:
            schedule_for(spec, name, found.sampler)
        together = count_of(batch, "clips")
        ways = {name: _way(name, spec.depth, costs, together) for name in way or ["model best"]}
        count, most = count_of(clips, "prompts"), count_of(calibration_clips, "clips")
        if prompts is None:
            texts, own = prompts_of(spec, None, count), prompts_of(spec, None, most, draw=CALIBRATION)
        else:
            every = prompts_of(spec, prompts, count + most)
            texts, own = every[:count], every[count:]
        asked = clips_apart(own)
        seen = clips_of(texts, range(1, count_of(seeds, "seeds") + 1))
        folder, computes_on, limit = output.expanduser(), check_device(device), seconds_of(seconds)
        timed, rounds = count_of(timed_clips, "clips"), count_of(repeat, "rounds")
        metric = lpips_of(lpips, no_lpips, computes_on)
        with resumable(folder), progress() as show:
            show("load", 0, 0)
            pipe = Pipeline.load(model, device=computes_on)
            report = compare_rivals(
                pipe,
                names,
                ways,
                asked,
                seen,
                folder,
                lpips=metric,
                judge=judge_of(spec, prompts, texts, computes_on),
                timed_clips=timed,
                repeat=rounds,
                seconds=limit,
                on_progress=show,
            )
            shown = "psnr" if metric is None else "lpips"
            recording = record(pipe, asked, folder / "recording.jsonl")
            write_report(
                folder,
                "rivals",
                report,
                {
                    "rivals": lambda path: draw_quality(report.quality, path, shown),
                    "differences": lambda path: draw_recording(recording, path),
                },
            )
        if as_json:
            typer.echo(json.dumps(report.to_json()))
            return
        typer.echo(f"{report.to_markdown()}\n{report.quality.clips} of {len(seen)} clips, in {folder}")


def _way(name: str, depth: int, costs: str, batch: int) -> Any:
    """PabError where there is no such way."""
    from .evaluate.calibration import Search

    if name not in WAYS:
        raise PabError(f"There is no way to search named '{name}'. Known are {', '.join(WAYS)}.")
    whole, _, more = name.partition(" ")
    groups = depth if whole == "block" else 2 if more == "groups" else 1
    predictor = more if more in ("best", "linear", "taylor", "gate") else "hold"
    return Search(whole, groups, predictor, costs, batch)  # pyright: ignore[reportArgumentType]
