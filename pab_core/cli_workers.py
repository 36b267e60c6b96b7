"""`pab workers`: a pool of GPU workers in the background, shared by the command line, the app and the nodes.

As in cli, what is slow to import is imported inside the commands.
"""

import json
from typing import Annotated, Any

import typer

from .cli_options import STYLE, JsonOption
from .terminal import answered

# For `pab generate`.
DevicesOption = Annotated[
    str | None, typer.Option("--devices", metavar="LIST", help="Several devices for one video: auto, 0,1 or cpu*2.")
]
MethodOption = Annotated[
    str, typer.Option("--method", metavar="NAME", help="How they share it: auto, dsp, ulysses, megatron, cfg, cfg+dsp.")
]
OnWorkersOption = Annotated[
    bool, typer.Option("--workers", help="On the pool that `pab workers start` has started, its model loaded.")
]

workers = typer.Typer(
    help="A pool of GPU workers in the background, which keep a model loaded.",
    no_args_is_help=True,
    rich_markup_mode=STYLE,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@workers.command()
def start(
    devices: Annotated[str, typer.Option("--devices", metavar="LIST", help="auto (all GPUs), 0,1 or cpu*2.")] = "auto",
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="auto, dsp, ulysses, megatron, cfg, cfg+dsp, ...")
    ] = "auto",
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", metavar="N", help="Devices that share a video; default: all. 1: a video on each."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Loaded at once, not with the first job.")] = None,
    idle: Annotated[
        float | None, typer.Option("--idle", metavar="S", help="Seconds without a job until all memory is given back.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="On all GPUs of a cluster of Ray: its head's host:6379, or auto."
        ),
    ] = None,
) -> None:
    """Start the pool; it stays when this command ends."""
    with answered():
        from .parallel.pool.background import start_in_background

        show_status(start_in_background(devices, method=method, ranks=ranks, model=model, idle=idle, ray=ray))


@workers.command()
def status(as_json: JsonOption = False) -> None:
    """Show the workers, and what they do."""
    with answered():
        from .parallel.pool.door import ask

        found = ask("status")
        if as_json:
            typer.echo(json.dumps(found))
        else:
            show_status(found)


@workers.command()
def stop() -> None:
    """End the pool; what it makes is cancelled."""
    with answered():
        from .parallel.pool.background import stop_in_background

        stop_in_background()
        typer.echo("The pool of workers has ended.")


def show_status(found: dict[str, Any]) -> None:
    typer.echo(f"pool     process {found['pid']}, method {found['method']}, logs in {found['logs']}")
    for row in found["workers"]:
        what = row["state"] + (f", process {row['pid']}" if row["pid"] else "")
        memory = f", {row['memory'] / 2**30:.0f} GiB" if row["memory"] else ""
        name = f" ({row['name']}{memory})" if row["name"] and row["name"] != row["device"] else ""
        typer.echo(f"worker   team {row['team']}, rank {row['rank']}: {row['device']}{name}, {what}")
    for row in found["running"]:
        place = f"{row['stage']} {row['done']}/{row['total']}" if row.get("total") else row.get("stage", "begins")
        typer.echo(f"running  {row['id']}: {place}")
    typer.echo(f"waiting  {len(found['waiting'])}")
    for warning in [*found["warnings"], *found["trouble"]]:
        typer.echo(f"Warning: {warning}", err=True)
