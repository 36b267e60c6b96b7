"""The host's memory: which devices there are, whose turn on them it is, and how it gets room back"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn


def compute_device() -> torch.device:
    return memory.get_torch_device()


def keep_device() -> torch.device:
    """Where modules wait that are not needed at the moment."""
    return memory.unet_offload_device()


def result_device() -> torch.device:
    """Where the host wants what goes from node to node."""
    return memory.intermediate_device()


def managed(module: nn.Module) -> Any:
    """A handle by which the host moves a module between devices. To be kept with the module: the host does not."""
    return ModelPatcher(module, load_device=compute_device(), offload_device=keep_device())


def bring(handle: Any, working_bytes: int = 0) -> None:
    """Has the host bring a module to the compute device whole, with room for `working_bytes` of work beside it."""
    memory.load_models_gpu([handle], memory_required=working_bytes, force_full_load=True)


def kept_elsewhere(count: int, release: Callable[[], None]) -> Any:
    """A handle for a model that takes `count` bytes of the compute device in processes of ours: `bring` makes room for
    it, and the host calls `release` when it unloads models. To be kept as long as they run: the host does not."""
    handle = ModelPatcher(nn.Module(), load_device=compute_device(), offload_device=keep_device(), size=count)
    # The host also detaches, keeping the weights, what it only moves up in its list.
    handle.add_callback(CallbacksMP.ON_DETACH, lambda _, unpatch_all: release() if unpatch_all else None)
    return handle


def make_room(count: int) -> None:
    """Has the host free so many bytes of the compute device, for a model that brings itself there."""
    device = compute_device()
    if device.type != "cpu":
        memory.free_memory(count, device)
