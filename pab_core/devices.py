"""The device that computes: which it is, and how much memory it has free."""

import torch

from .errors import PabError


def check_device(device: str | torch.device | None) -> torch.device:
    """None: the GPU if there is one, else the CPU. PabError where there is no such device."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PabError(f"The device '{device}' cannot be used ({reason}); choose another, such as cpu.") from None
    return found


def free_bytes(device: torch.device) -> int | None:
    """Memory that a computation may take on a device; None where that is not known."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds without using it is as good as free.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
