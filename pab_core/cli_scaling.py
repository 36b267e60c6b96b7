"""`pab bench scaling`. As in cli, torch is imported inside the command."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_measuring import FolderOption, resumable
from .cli_options import JsonOption, SpeedOption, real, whole
from .errors import PabError
from .terminal import answered, progress

if TYPE_CHECKING:
    from .evaluate.scaling import Asked
    from .evaluate.scaling_report import ScalingReport


def scaling(
    devices: Annotated[
        str, typer.Option("--devices", metavar="N,N,...", help="How many; more than there are is told and left out.")
    ] = "1,2,4,8",
    clip: Annotated[
        list[str] | None,
        typer.Option("--clip", help="open-sora-480p-2s, latte, ...; may be repeated; default: all five."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="May be repeated; default: dsp, cfg+dsp, ulysses, megatron."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="May be repeated; default: off, pab246 (Latte: pab236), calibrated."),
    ] = None,
    speed: SpeedOption = "auto",
    minutes: Annotated[
        str, typer.Option(metavar="M", help="Of the whole; what does not fit is told, and left to the next start.")
    ] = "9",
    device: Annotated[
        str | None, typer.Option("--device", metavar="cuda|cpu", help="Default: cuda if there is one.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small models and clips, to try it out; always on a CPU.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Measure nothing: table and figure of a scaling.json or .jsonl."),
    ] = None,
    output: FolderOption = Path("pab-scaling"),
    as_json: JsonOption = False,
) -> None:
    """Time one clip on 1, 2, 4, 8 devices of this machine, with random weights; needs no downloads."""
    with answered():
        begin, folder = time.monotonic(), output.expanduser()
        if source is not None:
            from .evaluate.scaling_report import read_report

            _tell(read_report(source), folder, as_json)
            return
        asked = _asked(devices, clip, method, policy, speed, minutes, device, tiny)
        from .evaluate.scaling import measure_scaling
        from .evaluate.scaling_report import report_of
        from .evaluate.scaling_world import RankLost

        with resumable(folder), progress() as show:
            show("start", 0, 0)

            def on_row(done: int, total: int, line: Mapping[str, Any] | None) -> None:
                show("cells", done, total)
                if line is not None:
                    typer.echo(_line(done, total, line), err=True)

            try:
                measured = measure_scaling(asked, folder / "scaling.jsonl", on_row, begin=begin)
            except RankLost as lost:
                typer.echo(f"{lost}\n{lost.log}", err=True)
                raise typer.Exit(1) from None
        for note in measured.notes:
            typer.echo(f"Note: {note}", err=True)
        _tell(report_of(measured), folder, as_json)
        if measured.lost:
            typer.echo(f"The end of that rank's log:\n{measured.log}", err=True)
            raise typer.Exit(1)


def _asked(
    devices: str,
    clips: list[str] | None,
    methods: list[str] | None,
    policies: list[str] | None,
    speed: str,
    minutes: str,
    device: str | None,
    tiny: bool,
) -> Asked:
    from .evaluate.scaling import Asked
    from .evaluate.scaling_cases import METHODS, find_workloads

    counts = [whole(part.strip()) for part in devices.split(",")]
    kind, limit = device or _usual_device(), real(minutes)
    if not isinstance(limit, float):
        raise PabError(f"The time is a number of minutes above 0, not {minutes!r}.")
    if kind == "cpu" and not tiny:
        typer.echo("On a CPU only small models and clips are measured, to try the command out.", err=True)
    return Asked(
        find_workloads(clips or []),
        tuple(policies or ()),
        tuple(methods or METHODS),
        tuple(dict.fromkeys(counts)),
        kind,
        tiny or kind == "cpu",
        speed,
        limit,
    )


def _usual_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _line(done: int, total: int, line: Mapping[str, Any]) -> str:
    from .evaluate.scaling_estimate import cell_of

    if line["seconds"] is None:
        return f"{done}/{total}  {cell_of(line)}: not enough memory"
    part = "" if line["steps_measured"] == line["steps"] else f" (by {line['steps_measured']} of {line['steps']} steps)"
    return f"{done}/{total}  {cell_of(line)}: {line['seconds']:.3f} s{part}"


def _tell(report: ScalingReport, folder: Path, as_json: bool) -> None:
    from .broadcast.whole_file import whole_file
    from .evaluate.results import write_report
    from .evaluate.scaling_report import draw_scaling

    write_report(folder, "scaling", report)
    try:
        for end in ("png", "svg"):
            with whole_file(folder / f"scaling.{end}") as part:
                draw_scaling(report, part)
    except ImportError:
        typer.echo(
            "matplotlib is not installed, so there is no figure: make it elsewhere with --from scaling.json.", err=True
        )
    typer.echo(json.dumps(report.to_json()) if as_json else f"{report.to_markdown()}\nin {folder}")
