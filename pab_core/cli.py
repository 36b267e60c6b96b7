"""The command line: `pab generate`, `pab schedule`, `pab download`, `pab app`, `pab calibrate`, `pab bench`.

Torch and all that stands on it is imported inside the commands, so that help and mistakes are answered at once.
"""

import json
import secrets
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_app import app as studio
from .cli_bench import bench
from .cli_calibrate import calibrate
from .cli_options import (
    STYLE,
    AspectOption,
    CrossOption,
    DeviceOption,
    FramesOption,
    JsonOption,
    KeptOption,
    KnownModelOption,
    MlpOption,
    ModelOption,
    OffloadOption,
    PolicyOption,
    ResolutionOption,
    SamplerOption,
    SeedOption,
    SizeOption,
    SpatialOption,
    SpeedOption,
    StepsOption,
    TemporalOption,
    TextEncoderOption,
    VaeOption,
    WindowOption,
    frames_of,
    policy_of,
    real,
    sampler_of,
    scores_of,
    size_of,
    whole,
)
from .cli_workers import DevicesOption, MethodOption, OnWorkersOption, workers
from .terminal import answered, prints, progress, summary

app = typer.Typer(
    name="pab",
    help="Text to video with Pyramid Attention Broadcast.",
    no_args_is_help=True,
    rich_markup_mode=STYLE,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench, name="bench")
app.add_typer(workers, name="workers")
app.command(name="app")(studio)
app.command()(calibrate)


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
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What not to show; for Latte and Open-Sora-Plan.")
    ] = None,
    sampler: SamplerOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    resolution: ResolutionOption = None,
    aspect: AspectOption = "16:9",
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Picture to begin with (Open-Sora).")] = None,
    last_image: Annotated[str | None, typer.Option(metavar="FILE", help="Picture to end with.")] = None,
    video: Annotated[str | None, typer.Option(metavar="FILE", help="Video to go on from, or to edit.")] = None,
    edit: Annotated[
        str | None, typer.Option(metavar="X", help="Edit the video: how much of it may change, 0 to 1.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="The end meets the beginning.")] = False,
    strategy: Annotated[str, typer.Option(metavar="TEXT", help="Open-Sora's mask strategy, with --reference.")] = "",
    reference: Annotated[list[str] | None, typer.Option(metavar="FILE", help="May be repeated.")] = None,
    total_frames: Annotated[
        str | None, typer.Option(metavar="N", help="Length of a video made of several clips in a chain.")
    ] = None,
    aesthetic: Annotated[str | None, typer.Option(metavar="X", help="Aesthetic score (Open-Sora): 4 to 7.")] = None,
    motion: Annotated[str | None, typer.Option(metavar="X", help="Motion score (Open-Sora), such as 4.")] = None,
    camera: Annotated[str | None, typer.Option(metavar="MOVE", help="Camera motion (Open-Sora): pan left, ...")] = None,
    vae: VaeOption = None,
    text_encoder: TextEncoderOption = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Keep the transformer's weights in eight bits.")] = False,
    offload: OffloadOption = None,
    kept: KeptOption = "plain",
    speed: SpeedOption = "auto",
    device: DeviceOption = None,
    devices: DevicesOption = None,
    method: MethodOption = "auto",
    on_workers: OnWorkersOption = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite the output file.")] = False,
) -> None:
    """Make a video of a prompt."""
    started = time.perf_counter()
    with answered():
        # All that can be known to be wrong is said before a model is loaded.
        from .acceleration.choice import choose_speed
        from .broadcast.cache import make_store
        from .checkpoints import default_dtype, find_model
        from .devices import check_device
        from .offload import check_mode
        from .offload import offload as lend
        from .pipeline import Pipeline
        from .prompt_cleaning import clean_prompt
        from .settings import check_guidance, check_seed, schedule_for
        from .tasks import Given
        from .video_io import check_output

        clean_prompt(prompt)
        found = find_model(model, vae=vae, text_encoder=text_encoder)
        found.check_complete()
        chosen = policy_of(found.spec, policy, spatial, temporal, cross, mlp, window)
        number = secrets.randbelow(2**32) if seed is None else check_seed(whole(seed))
        scale = None if guidance is None else check_guidance(real(guidance))
        clip = {"steps": whole(steps), "num_frames": frames_of(frames), **size_of(size, resolution, aspect)}
        walk = sampler_of(found.spec, found.sampler, sampler)
        schedule_for(found.spec, chosen, walk, **clip)
        given = Given(
            image, last_image, video, None if edit is None else real(edit), loop, strategy, tuple(reference or ())
        )
        scores = scores_of(aesthetic, motion, camera)
        computes_on = check_device(device)
        make_store(kept)
        dtype, storage = default_dtype(found.spec, computes_on), "fp8" if fp8 else None
        choose_speed(speed, computes_on, dtype)
        mode = None if offload is None else check_mode(offload)
        target = check_output(output, force)

        settings: dict[str, Any] = {
            "negative": negative,
            "policy": chosen,
            "seed": number,
            "guidance": scale,
            "given": given,
            "total_frames": frames_of(total_frames),
            "scores": scores,
            "kept": kept,
            **clip,
        }
        elsewhere = False
        with ExitStack() as stack:
            show = stack.enter_context(progress())
            show("load", 0, 0)

            def tell(event: Any) -> None:
                show(event.stage, event.done, event.total)

            if devices is not None or on_workers:
                from .parallel.pool.asked import chosen_pool
                from .parallel.pool.generating import generate_on_pool
                from .parallel.pool.job import ModelSource

                source = ModelSource.of(model, vae=vae, text_encoder=text_encoder, storage=storage, speed=speed)
                pool = stack.enter_context(chosen_pool(devices, method, on_workers, device=device, offload=offload))
                handed_in = time.perf_counter()
                seconds = {"load": handed_in - started}
                made = generate_on_pool(pool, source, prompt, sampler=sampler, progress=tell, **settings)
                # They start, load, time a step to choose a method, or make other videos first.
                seconds["workers"] = time.perf_counter() - handed_in - sum(made.seconds.values())
                elsewhere = True
            else:
                # What is offloaded waits on the host, in the precision of the device that will compute with it.
                lies_on = computes_on if mode is None else "cpu"
                pipe = Pipeline.from_checkpoint(found, device=lies_on, dtype=dtype, storage=storage, speed=speed)
                if mode is not None:
                    pipe = lend(pipe, mode, computes_on)
                pipe = replace(pipe, sampler=walk)
                seconds = {"load": time.perf_counter() - started}
                made = pipe.generate(prompt, progress=tell, **settings)
            writing = time.perf_counter()
            show("write", 0, 0)
            path = made.save(target, force=force)
        seconds |= made.seconds | {"write": time.perf_counter() - writing}
        for warning in made.warnings:
            typer.echo(f"Warning: {warning}", err=True)
        typer.echo(summary(made, seconds, time.perf_counter() - started, elsewhere))
        typer.echo(f"saved    {path}")


@app.command()
def download(
    model: Annotated[
        str, typer.Argument(help="open-sora, latte, open-sora-plan, open-sora-plan-221, or owner/name on the Hub.")
    ],
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; default: where --model finds it by its name.")
    ] = None,
    no_text_encoder: Annotated[
        bool, typer.Option("--no-text-encoder", help="Leave out T5 (9 GB or more), for those who have it.")
    ] = False,
) -> None:
    """Fetch a released model; what was interrupted goes on from there."""
    with answered():
        from .checkpoints import models_folder
        from .hub import SOURCES, download_model, folder_of, model_of

        target = folder or models_folder() / folder_of(model)
        known = [source.target for source in SOURCES.get(model_of(model) or model, ())]
        parts = [part for part in known if not (no_text_encoder and part in ("text_encoder", "tokenizer"))]
        with progress() as show:
            path = download_model(
                model, target, lambda done, total: show("MB", done // 10**6, total // 10**6), parts=parts
            )
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
    resolution: ResolutionOption = None,
    aspect: AspectOption = "16:9",
    sampler: SamplerOption = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as a picture instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a policy computes and what it reuses, step by step. Needs no weights."""
    with answered():
        from .broadcast.picture import ASCII, Marks, draw_schedule
        from .checkpoints import known_model
        from .settings import clip_size, schedule_for

        spec, walk = known_model(model)
        walk = sampler_of(spec, walk, sampler)
        chosen = policy_of(spec, policy, spatial, temporal, cross, mlp, window)
        clip = {"num_frames": frames_of(frames), **size_of(size, resolution, aspect)}
        table = schedule_for(spec, chosen, walk, whole(steps), **clip)
        if as_json:
            typer.echo(json.dumps({"model": spec.name, **table.to_json()}))
            return
        if svg is not None:
            from .broadcast.picture_svg import draw_schedule_svg
            from .broadcast.whole_file import write_whole

            picture = draw_schedule_svg(table, chosen, font="sans-serif")
            typer.echo(f"saved    {write_whole(svg.expanduser(), picture)}")
            return
        count, tall, wide = clip_size(spec, **clip)
        typer.echo(f"{spec.title}, {table.policy}: {table.steps} steps, {count} frames, {wide}x{tall}\n")
        columns = shutil.get_terminal_size((80, 24)).columns
        marks = Marks() if prints("█░▒─") else ASCII
        typer.echo(draw_schedule(table, chosen, width=columns, marks=marks))


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal lacks must not end the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    app()
