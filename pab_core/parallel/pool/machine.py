"""What a worker tells of its device when it is ready."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def describe_device(device: str) -> dict[str, Any]:
    """Takes the device, and tells its name, memory in bytes, and how its rank could talk to others.

    RuntimeError or AssertionError where there is no such device.
    """
    found = torch.device(device)
    memory = None
    name = found.type
    if found.type == "cuda":
        torch.cuda.set_device(found)
        properties = torch.cuda.get_device_properties(found)
        memory, name = properties.total_memory, properties.name
    torch.empty(1, device=found)
    talks = dist.is_available()
    return {
        "name": name,
        "memory": memory,
        "gloo": talks and dist.is_gloo_available(),
        "nccl": talks and found.type == "cuda" and dist.is_nccl_available(),
        "torch": torch.__version__,
    }
