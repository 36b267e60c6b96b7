"""`pab bench vbench`. As in cli, torch is imported inside the command."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .cli_measuring import FolderOption, count_of, resumable
from .cli_options import DeviceOption, JsonOption, ModelOption, PolicyOption
from .errors import PabError
from .terminal import answered, progress


def vbench(
    model: ModelOption = "demo",
    policy: PolicyOption = "pab246",
    dimension: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of VBench's sixteen; may be repeated; default: all.")
    ] = None,
    samples: Annotated[str | None, typer.Option(metavar="N", help="At most so many videos of a prompt.")] = None,
    info: Annotated[
        Path | None, typer.Option(metavar="FILE", help="VBench_full_info.json; default: that of the package vbench.")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="FILE", help="Of an environment with vbench; default: this one.")
    ] = None,
    output: FolderOption = Path("pab-vbench"),
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make VBench's videos, named as it expects, and run the package vbench on them where it is installed."""
    with answered():
        from .checkpoints import find_model
        from .devices import check_device
        from .evaluate.vbench import (
            HOW_TO_GET,
            UNFILTERED,
            find_info,
            installed,
            make_suite,
            read_suite,
            run_vbench,
        )
        from .pipeline import Pipeline
        from .settings import schedule_for

        found = find_model(model)
        found.check_complete()
        table = schedule_for(found.spec, policy, found.sampler)
        package = installed(python)
        if python is not None and package is None:
            raise PabError(f"vbench is not installed in the environment of {python}: pip install vbench there.")
        source = find_info(None if info is None else info.expanduser(), package)
        suite = read_suite(source, dimension or (), None if samples is None else count_of(samples, "videos"))
        folder, computes_on = output.expanduser(), check_device(device)
        videos = folder / f"{found.spec.name}-{table.policy}".replace("/", "_")
        with resumable(folder), progress() as show:
            show("load", 0, 0)
            pipe = Pipeline.load(model, device=computes_on)
            make_suite(pipe, policy, suite, videos, on_progress=lambda done, total: show("videos", done, total))
            scores = None
            if package is not None:
                show("judge", 0, 0)
                scores = run_vbench(source, videos, folder, dimension or (), computes_on, python)
                if "temporal_flickering" in scores and computes_on.type == "cpu":
                    typer.echo(UNFILTERED, err=True)
        if as_json:
            typer.echo(json.dumps({"videos": str(videos), "count": len(suite), "scores": scores}))
            return
        typer.echo(f"{len(suite)} videos in {videos}")
        typer.echo(HOW_TO_GET if scores is None else json.dumps({name: value[0] for name, value in scores.items()}))
