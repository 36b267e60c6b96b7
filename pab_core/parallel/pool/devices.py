"""The devices that a user names: "auto", "0,1", "cuda:0", "cpu*2"."""

from __future__ import annotations

import re

from ...errors import PabError

_MOST = 64
_ENTRY = re.compile(r"(?:(?P<gpu>\d+)|cuda(?::(?P<cuda>\d+))?|(?P<other>cpu|mps))(?:\*(?P<times>\d+))?")


def parse_devices(text: str) -> tuple[str, ...]:
    """-> torch's names, one a worker.

    "auto": all GPUs, else Apple's, else the CPU. Numbers are GPUs. "cpu*4": four workers on the CPU.

    Raises:
        PabError: not such a list, a device that this machine has not, or one listed twice.
    """
    entries = [entry.strip().lower() for entry in text.split(",")]
    if entries == ["auto"]:
        return all_devices()
    devices: list[str] = []
    for entry in entries:
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise PabError(
                f"'{entry}' is no device. Write auto, the numbers of GPUs as in 0,1, their names as in cuda:0, or "
                "cpu*2 for two workers on the CPU."
            )
        times = int(found["times"] or 1)
        if found["other"] == "cpu":
            if not 1 <= times <= _MOST:
                raise PabError(f"'{entry}' asks for {times} workers on the CPU; 1 to {_MOST} are possible.")
            devices += ["cpu"] * times
            continue
        if found["times"]:
            raise PabError(f"'{entry}': only the CPU takes several workers; name each GPU once.")
        devices.append(found["other"] or f"cuda:{int(found['gpu'] or found['cuda'] or 0)}")
    for device in devices:
        if device != "cpu" and devices.count(device) > 1:
            raise PabError(f"{device} is listed twice: a GPU takes one worker, name each once.")
    if len({device.split(":")[0] for device in devices}) > 1:
        raise PabError(
            "Workers on GPUs and on the CPU do not go together: the GPUs would wait for the CPU at each step."
        )
    for device in devices:
        _check_there(device)
    return tuple(devices)


def all_devices() -> tuple[str, ...]:
    count = gpu_count()
    if count:
        return tuple(f"cuda:{index}" for index in range(count))
    return ("mps",) if _has_mps() else ("cpu",)


def gpu_count() -> int:
    """Without taking one: a host that only hands out work keeps their memory free."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def _check_there(device: str) -> None:
    if device.startswith("cuda:"):
        count = gpu_count()
        if int(device[5:]) < count:
            return
        there = "This machine has no GPU that torch can use" if not count else f"The GPUs here are 0 to {count - 1}"
        raise PabError(f"There is no {device}. {there}: choose among them, or cpu.")
    if device == "mps" and not _has_mps():
        raise PabError("There is no mps here: that is the GPU of Apple's machines. Choose cpu, or auto.")
