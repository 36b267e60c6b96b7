"""What the command line shows: progress, the summary of a run, and how a command ends."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from .errors import PabError

if TYPE_CHECKING:
    from .results import Generation

# Torch's words for it, on a GPU, on Windows and elsewhere; only the first has an exception of its own.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")

_SECONDS_BETWEEN_LINES = 15.0  # of progress in a log, where no bar can be drawn


@contextmanager
def answered() -> Iterator[None]:
    """Turns what ends a command into one line and an exit code; anything else that is raised is a bug."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Cancelled; nothing was written.", err=True)
        raise typer.Exit(130) from None
    except PabError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        typer.echo(
            "Error: There is not enough memory for this clip; choose a smaller --size or fewer --frames.", err=True
        )
        raise typer.Exit(2) from None


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows on stderr how far a command is: a bar on a terminal, a line now and then in a log.

    What it gives takes (stage, done, total), total 0 where the length is not known.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    count, left = TextColumn("{task.fields[count]}"), TextColumn("{task.fields[left]}")
    columns = ("{task.description:8}", BarColumn(), count, TimeRemainingColumn(), left)
    with Progress(*columns, console=console, transient=True) as bar:
        current: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in current:
                for task in current.values():
                    bar.remove_task(task)
                current.clear()
                current[stage] = bar.add_task(stage, total=total or None, count="", left="left" if total else "")
            bar.update(current[stage], completed=done, count=_count(done, total))

        yield show


def _lines() -> Callable[[str, int, int], None]:
    last = time.monotonic()

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            typer.echo(f"{stage} {_count(done, total)}".rstrip(), err=True)

    return show


def _count(done: int, total: int) -> str:
    return f"{done}/{total}" if total else ""


def summary(made: "Generation", seconds: dict[str, float], total: float, elsewhere: bool = False) -> str:
    """elsewhere: whether other processes made it, of whose memory nothing is known here."""
    from .evaluate.machine import peak_gpu_memory, peak_memory

    about, table = made.metadata, made.table
    count, height, width, _ = made.frames.shape
    memory, gpu = peak_memory(), peak_gpu_memory()
    peaks = [f"{memory / 1e6:.0f} MB" if memory else "not known here"] + ([f"GPU {gpu / 1e6:.0f} MB"] if gpu else [])
    return "\n".join(
        [
            f"video    {count} frames, {width}x{height}, {made.fps} fps, {about['steps']} steps, seed {about['seed']}",
            f"time     {', '.join(f'{stage} {s:.2f} s' for stage, s in seconds.items())}; total {total:.2f} s",
            f"reused   {shares({kind: table.reused_share(kind) for kind in table.kinds})} ({table.policy})",
            f"memory   peak {', '.join(peaks)}{' without the workers' if elsewhere else ''}",
        ]
    )


def shares(reused: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in reused.items())


def prints(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
