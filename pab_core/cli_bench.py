"""`pab bench`: measure. As in cli, torch is imported inside the commands."""

import json
from typing import Annotated

import typer

from .cli_comm import comm
from .cli_options import (
    STYLE,
    DeviceOption,
    FramesOption,
    JsonOption,
    ModelOption,
    PolicyOption,
    SeedOption,
    SizeOption,
    StepsOption,
    frames_of,
    size_of,
    whole,
)
from .cli_quality import ablation, quality, ranges, scores
from .cli_rivals import rivals
from .cli_scaling import scaling
from .cli_timing import breakdown, check_speeds, differences, pipe_or_random, sizes, spec_or_known
from .cli_vbench import vbench
from .terminal import answered, progress, shares

bench = typer.Typer(help="Measure.", no_args_is_help=True, rich_markup_mode=STYLE)
bench.command(name="quality")(quality)
bench.command(name="ablation")(ablation)
bench.command(name="ranges")(ranges)
bench.command(name="scores")(scores)
bench.command(name="differences")(differences)
bench.command(name="breakdown")(breakdown)
bench.command(name="sizes")(sizes)
bench.command(name="rivals")(rivals)
bench.command(name="comm")(comm)
bench.command(name="scaling")(scaling)
bench.command(name="vbench")(vbench)


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

        tokens = whole(text_tokens)
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
    speeds: Annotated[
        list[str] | None,
        typer.Option("--speed", metavar="exact|fast|fp8", help="May be repeated, but for fp8; default: auto."),
    ] = None,
    text_tokens: Annotated[
        str, typer.Option(metavar="N", help="Length of the random text where the model is not downloaded.")
    ] = "300",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the denoising with and without broadcast, in turn, and compare the videos.

    A released model that is not downloaded is timed with random weights of its size, which the output says.
    """
    with answered():
        from .broadcast import preset_names
        from .devices import check_device
        from .evaluate.bench import check_rounds, measure_speed
        from .settings import check_seed, schedule_for

        spec = spec_or_known(model)
        # Fewer steps are the honest rival of any reuse.
        count = whole(steps)
        rival = ["steps20"] if (count if isinstance(count, int) else spec.steps) > 20 else []
        names = [name for name in policy or (*preset_names(spec.family), *rival) if name != "off"]
        rounds = check_rounds(whole(repeat))
        number, clip = check_seed(whole(seed)), {"num_frames": frames_of(frames), **size_of(size)}
        for name in names:
            schedule_for(spec, name, steps=whole(steps), **clip)
        target, tokens, wanted = check_device(device), whole(text_tokens), speeds or ["auto"]
        check_speeds(wanted)
        with progress() as show:
            show("load", 0, 0)
            pipe = pipe_or_random(model, target, speed=wanted[0] if len(wanted) == 1 else "exact")
            report = measure_speed(
                pipe,
                names,
                speeds=None if len(wanted) == 1 else wanted,  # pyright: ignore[reportArgumentType]
                text_tokens=tokens,
                seed=number,
                repeat=rounds,
                steps=whole(steps),
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
        for note in pipe.notes:
            typer.echo(f"Warning: {note}\n", err=True)
        typer.echo("policy    speed  median s  speed-up  PSNR dB    difference  peak GiB  reused")
        for row in report.rows:
            near = ("identical" if not row.difference else "-") if row.psnr is None else f"{row.psnr:.2f}"
            peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}"
            typer.echo(
                f"{row.policy:9} {row.speed:6} {row.median:8.2f}  {row.speedup:7.2f}x  {near:9}  {row.difference:10.1e}"
                f"  {peak:>8}  {shares(row.reused)}"
            )


@bench.command()
def memory(
    model: ModelOption = "demo",
    policy: PolicyOption = "pab246",
    steps: StepsOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the denoising's peak memory: weights whole or offloaded, reused results on the device or off it."""
    with answered():
        from .checkpoints import find_model
        from .devices import check_device
        from .evaluate.memory import describe_memory, measure_memory, usual_cases
        from .pipeline import Pipeline
        from .settings import schedule_for

        spec = find_model(model).spec
        clip = {"num_frames": frames_of(frames), **size_of(size)}
        schedule_for(spec, policy, steps=whole(steps), **clip)
        target = check_device(device)
        with progress() as show:
            show("load", 0, 0)
            report = measure_memory(
                Pipeline.load(model, device=target),
                usual_cases(policy, target),
                steps=whole(steps),
                **clip,
                on_run=lambda done, total: show("runs", done, total),
            )
        typer.echo(json.dumps(report.to_json()) if as_json else describe_memory(report))
