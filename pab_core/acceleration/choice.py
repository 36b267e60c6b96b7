"""How fast a model is to be run, by name, and what this machine can do of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from ..broadcast import BroadcastRun, ScheduleTable
from ..broadcast.cache import Store
from ..errors import PabError

if TYPE_CHECKING:
    from ..autoencoders import VideoVAE

# exact: the model's own operations; fast: fewer and other kernels, equal within rounding; fp8: that, and products of
# the large linear layers in eight bits; auto: fast where there is a GPU that can, else exact.
Speed = Literal["exact", "fast", "fp8"]
SPEEDS = ("auto", *get_args(Speed))


def choose_speed(wanted: str, device: torch.device, dtype: torch.dtype, *, trying: bool = False) -> tuple[Speed, str]:
    """What is wanted as far as the device can do it; and, where that is less, a sentence that says why.

    Args:
        trying: whether a kernel may be run to see, which takes memory of a GPU: for those who compute there.

    Raises:
        PabError: there is no such name.
    """
    from . import cpu, fp8_products, run

    if wanted not in SPEEDS:
        raise PabError(f"There is no speed named '{wanted}': choose {', '.join(SPEEDS[:-1])} or {SPEEDS[-1]}.")
    if wanted == "exact":
        return "exact", ""
    if wanted == "auto" and device.type != "cuda":
        return "exact", ""
    reason = cpu.why_not() if device.type == "cpu" else run.why_not(device)
    if reason is None and trying and device.type == "cuda":
        reason = run.why_no_kernels(device)
    if reason is not None:
        return "exact", f"{reason} The model runs as it is, which is slower."
    if wanted == "auto":
        return "fast", ""
    if wanted == "fp8":
        reason = fp8_products.why_not(device, dtype)
        if reason is not None:
            return "fast", f"{reason} It runs without that."
    return wanted, ""  # pyright: ignore[reportReturnType]


def transformer_dtype(speed: Speed, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision of the transformer of a model in `dtype`, at a speed that `choose_speed` gave for the device."""
    return torch.bfloat16 if speed == "fast" and device.type == "cpu" else dtype


def use_speed_in_decoding(speed: Speed, device: torch.device, vae: VideoVAE | None) -> None:
    """Lets a loaded autoencoder decode at a speed that `choose_speed` gave for the device; "exact" changes nothing."""
    if vae is None or speed == "exact" or device.type == "cpu":
        return
    from .decoding import use_fast_decoders

    use_fast_decoders(vae)


def make_run(
    speed: Speed, device: torch.device, table: ScheduleTable, store: Store, recorded: bool = True
) -> BroadcastRun:
    """The state of one run at a speed that `choose_speed` gave for the device.

    Args:
        recorded: whether steps of a small clip may be recorded; else each takes the time that it takes alone.
    """
    if speed == "exact" or device.type == "cpu":
        return BroadcastRun(table, store)
    from .recorded_run import RecordedRun
    from .run import FusedRun

    return RecordedRun(table, store) if recorded else FusedRun(table, store)
