"""`pab app`: the studio in a browser. As in cli, what is slow to import is imported inside the command."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import SpeedOption
from .cli_workers import DevicesOption, MethodOption, OnWorkersOption
from .terminal import answered


def app(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="A checkpoint's folder or file, beside demo and what is downloaded; may be repeated."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where videos and history are kept.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: cuda if there is one.")
    ] = None,
    devices: DevicesOption = None,
    method: MethodOption = "auto",
    on_workers: OnWorkersOption = False,
    speed: SpeedOption = "auto",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 7860,
    listen: Annotated[bool, typer.Option("--listen", help="Let other machines in, too.")] = False,
    auth: Annotated[
        str | None,
        typer.Option("--auth", metavar="NAME:PASSWORD", envvar="PAB_AUTH", help="Who may come in.", show_envvar=True),
    ] = None,
    root_path: Annotated[
        str, typer.Option("--root-path", metavar="PATH", help="Behind a reverse proxy, such as /pab.")
    ] = "",
    open_browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Open the studio in a browser: sliders, previews, comparisons, history."""
    with answered():
        from .app.launch import serve, warning_for
        from .app.settings import StudioSettings, default_data, parse_auth

        settings = StudioSettings(
            data=(output or default_data()).expanduser().resolve(),
            models=tuple(model or ()),
            device=device,
            devices=devices,
            method=method,
            workers=on_workers,
            speed=speed,
            host="0.0.0.0" if listen else "127.0.0.1",
            port=port,
            auth=parse_auth(auth) if auth else None,
            root_path=root_path,
        )
        server = serve(settings)
        typer.echo(f"PAB Studio: {server.url}  (videos in {settings.videos}; Ctrl+C ends it)")
        if warning := warning_for(settings):
            typer.echo(f"Warning: {warning}", err=True)
        if open_browser and not listen:
            import webbrowser

            webbrowser.open(server.url)
        server.wait()
