"""`pab bench comm`. As in cli, torch is imported inside the command."""

import json
from typing import Annotated

import typer

from .cli_options import JsonOption, whole
from .terminal import answered


def comm(
    ranks: Annotated[
        str, typer.Option("--ranks", "-n", metavar="N", help="GPUs; as many processes are started.")
    ] = "8",
    model: Annotated[str, typer.Option("--model", "-m", help="open-sora, latte or open-sora-plan.")] = "open-sora",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", help="megatron, ulysses, dsp, or cfg+ one of them; may be repeated; default: the first three."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="May be repeated; default: off and pab246.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count what GPUs tell each other for one video, and extrapolate its latency. Needs no weights and no GPU."""
    with answered():
        from .evaluate.comm import PAPER_METHODS, PAPER_POLICIES, describe_comm, measure_comm
        from .evaluate.links import describe_latency, latency_to_json

        report = measure_comm(model, whole(ranks), method or PAPER_METHODS, policy or PAPER_POLICIES)
        if as_json:
            typer.echo(json.dumps(report.to_json() | latency_to_json()))
            return
        typer.echo(describe_comm(report))
        typer.echo()
        typer.echo(describe_latency())
