"""The command line: `pab generate`, `pab schedule`, `pab bench`.

Torch and all that stands on it is imported inside the commands, so that help and mistakes are answered at once.
"""

import json
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import PabError
from .terminal import answered, prints, progress, shares, summary

if TYPE_CHECKING:
    from .broadcast import Policy
    from .models.registry import ModelSpec

# Boxes and colours are for people at a terminal; pipes and logs get plain lines.
_STYLE: Any = "rich" if sys.stderr.isatty() and sys.stdout.isatty() else None
app = typer.Typer(
    name="pab",
    help="Text to video with Pyramid Attention Broadcast.",
    no_args_is_help=True,
    rich_markup_mode=_STYLE,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=_STYLE)
app.add_typer(bench, name="bench")

# Numbers arrive as text: the core says itself, in its own words, what it does not take.
ModelOption = Annotated[str, typer.Option("--model", "-m", help="demo, or the folder of a checkpoint.")]
KnownModelOption = Annotated[str, typer.Option("--model", "-m", help="demo, open-sora, latte, or a folder.")]
PolicyOption = Annotated[str, typer.Option("--policy", "-p", help="off, pab246, pab357, pab579, or any pabXYZ.")]
SpatialOption = Annotated[str | None, typer.Option("--spatial", metavar="N", help="Range of spatial attention.")]
TemporalOption = Annotated[str | None, typer.Option("--temporal", metavar="N", help="Range of temporal attention.")]
CrossOption = Annotated[str | None, typer.Option("--cross", metavar="N", help="Range of cross-attention.")]
MlpOption = Annotated[bool | None, typer.Option("--mlp/--no-mlp", help="MLP broadcast on or off.")]
WindowOption = Annotated[
    str | None,
    typer.Option("--window", metavar="A:B", help="Part of the run in which attention is reused, such as 0.3:0.85."),
]
StepsOption = Annotated[str | None, typer.Option("--steps", metavar="N", help="Denoising steps.")]
FramesOption = Annotated[str | None, typer.Option("--frames", metavar="N", help="Length of the clip.")]
SizeOption = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Size in pixels, such as 192x128.")]
SeedOption = Annotated[str | None, typer.Option("--seed", metavar="N", help="Default: a random one, which is told.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: cuda if there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.callback()
def _pab() -> None:
    pass


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in quotes.", show_default=False)],
    model: ModelOption = "demo",
    policy: PolicyOption = "off",
    seed: SeedOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 file to write.")] = Path("out.mp4"),
    spatial: SpatialOption = None,
    temporal: TemporalOption = None,
    cross: CrossOption = None,
    mlp: MlpOption = None,
    window: WindowOption = None,
    steps: StepsOption = None,
    guidance: Annotated[str | None, typer.Option(metavar="X", help="Scale of classifier-free guidance.")] = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite the output file.")] = False,
) -> None:
    """Make a video of a prompt."""
    started = time.perf_counter()
    with answered():
        # All that can be known to be wrong is said before a model is loaded.
        from .checkpoints import find_model
        from .pipeline import Pipeline, check_device, check_guidance, check_seed, schedule_for
        from .text import clean_prompt
        from .video_io import check_output

        clean_prompt(prompt)
        spec, _ = find_model(model)
        chosen = _policy(spec, policy, spatial, temporal, cross, mlp, window)
        number = secrets.randbelow(2**32) if seed is None else check_seed(_whole(seed))
        scale = None if guidance is None else check_guidance(_real(guidance))
        clip = {"steps": _whole(steps), "num_frames": _whole(frames), **_size(size)}
        schedule_for(spec, chosen, **clip)
        check_device(device)
        target = check_output(output, force)

        with progress() as show:
            show("load", 0, 0)
            pipe = Pipeline.load(model, device=device)
            seconds = {"load": time.perf_counter() - started}
            made = pipe.generate(
                prompt,
                policy=_policy(pipe.spec, policy, spatial, temporal, cross, mlp, window),
                seed=number,
                guidance=scale,
                progress=lambda event: show(event.stage, event.done, event.total),
                **clip,
            )
            writing = time.perf_counter()
            show("write", 0, 0)
            path = made.save(target, force=force)
        seconds |= made.seconds | {"write": time.perf_counter() - writing}
        for warning in made.warnings:
            typer.echo(f"Warning: {warning}", err=True)
        typer.echo(summary(made, seconds, time.perf_counter() - started))
        typer.echo(f"saved    {path}")


@app.command()
def schedule(
    model: KnownModelOption = "demo",
    policy: PolicyOption = "pab246",
    spatial: SpatialOption = None,
    temporal: TemporalOption = None,
    cross: CrossOption = None,
    mlp: MlpOption = None,
    window: WindowOption = None,
    steps: StepsOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a policy computes and what it reuses, step by step. Needs no weights."""
    with answered():
        from .broadcast.picture import ASCII, Marks, draw_schedule
        from .checkpoints import known_model
        from .pipeline import clip_size, schedule_for

        spec, flow = known_model(model)
        chosen = _policy(spec, policy, spatial, temporal, cross, mlp, window)
        clip = {"num_frames": _whole(frames), **_size(size)}
        table = schedule_for(spec, chosen, flow, _whole(steps), **clip)
        if as_json:
            typer.echo(json.dumps({"model": spec.name, **table.to_json()}))
            return
        count, tall, wide = clip_size(spec, **clip)
        typer.echo(f"{spec.title}, {table.policy}: {table.steps} steps, {count} frames, {wide}x{tall}\n")
        columns = shutil.get_terminal_size((80, 24)).columns
        marks = Marks() if prints("█░▒─") else ASCII
        typer.echo(draw_schedule(table, chosen, width=columns, marks=marks))


@bench.command()
def flops(
    model: Annotated[str, typer.Option("--model", "-m", help="open-sora, latte or open-sora-plan.")] = "open-sora",
    policy: PolicyOption = "pab246",
    text_tokens: Annotated[
        str | None, typer.Option("--text-tokens", metavar="N", help="Tokens of the prompt; default: the paper's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the FLOPs of one video at the paper's settings, full size. Needs no weights."""
    with answered():
        from .evaluate.flops import describe_flops, video_flops

        tokens = _whole(text_tokens)
        (report,) = video_flops(model, [policy], tokens)
        typer.echo(json.dumps(report.to_json()) if as_json else describe_flops(report, tokens))


@bench.command()
def speed(
    model: ModelOption = "demo",
    policy: Annotated[list[str] | None, typer.Option("--policy", "-p", help="May be repeated; default: all.")] = None,
    repeat: Annotated[str, typer.Option(metavar="N", help="Rounds; the median is told.")] = "3",
    seed: SeedOption = "1",
    steps: StepsOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the denoising with and without broadcast, in turn, and compare the videos."""
    with answered():
        from .broadcast import preset_names
        from .checkpoints import find_model
        from .evaluate.bench import check_rounds, measure_speed
        from .pipeline import Pipeline, check_device, check_seed, schedule_for

        spec, _ = find_model(model)
        names = [name for name in policy or preset_names(spec.family) if name != "off"]
        rounds = check_rounds(_whole(repeat))
        number, clip = check_seed(_whole(seed)), {"num_frames": _whole(frames), **_size(size)}
        for name in names:
            schedule_for(spec, name, steps=_whole(steps), **clip)
        check_device(device)
        with progress() as show:
            show("load", 0, 0)
            report = measure_speed(
                Pipeline.load(model, device=device),
                names,
                seed=number,
                repeat=rounds,
                steps=_whole(steps),
                **clip,
                on_run=lambda done, total: show("runs", done, total),
            )
        if as_json:
            typer.echo(json.dumps(report.to_json()))
            return
        machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
        about = report.settings
        typer.echo(f"{report.model}, {report.weights} weights; {machine}")
        typer.echo(
            f"{about['num_frames']} frames, {about['width']}x{about['height']}, {about['steps']} steps, "
            f"{about['repeat']} rounds in turn\n"
        )
        typer.echo("policy    median s  speed-up  PSNR dB    reused")
        for row in report.rows:
            near = "identical" if row.psnr is None else f"{row.psnr:.2f}"
            typer.echo(f"{row.policy:9} {row.median:8.2f}  {row.speedup:7.2f}x  {near:9}  {shares(row.reused)}")


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal lacks must not end the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    app()


# ------------------------------------------------------------------------------------------------- reading options


def _whole(text: str | None) -> Any:
    """A whole number if it is one; else the text as it is, which the core refuses in its own words."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def _real(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _size(text: str | None) -> dict[str, Any]:
    if text is None:
        return {"height": None, "width": None}
    width, found, height = text.lower().replace("×", "x").partition("x")
    if not (found and width.strip().isdecimal() and height.strip().isdecimal()):
        raise PabError(f"'{text}' is not a size: write the width and the height in pixels, as in 192x128.")
    return {"height": int(height), "width": int(width)}


def _policy(
    spec: "ModelSpec",
    name: str,
    spatial: str | None = None,
    temporal: str | None = None,
    cross: str | None = None,
    mlp: bool | None = None,
    window: str | None = None,
) -> "Policy":
    from .broadcast import Window, customise

    return customise(
        name,
        spec.family,
        spec.depth,
        spatial=_whole(spatial),
        temporal=_whole(temporal),
        cross=_whole(cross),
        mlp=mlp,
        window=None if window is None else Window.parse(window),
    )
