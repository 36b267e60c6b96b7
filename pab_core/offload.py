"""Low memory: modules, blocks and kept updates are on the device only while it computes with them.

    pipe = Pipeline.load(model, device="cpu", dtype=torch.bfloat16)
    pipe = offload(pipe, "blocks", "cuda")

Weights do not change, so the host keeps them all the time: what leaves the device is dropped there, never copied back.
The hooks are accelerate's. They hold for one stage of the pipeline at a time, not for calls of `forward`: a VAE is
entered by its encode() and decode(), and what ends a stage early, at any place in it, must find its way back too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from .acceleration.choice import choose_speed, use_speed_in_decoding
from .devices import check_device
from .embedding_cache import CachedTextEncoder
from .errors import PabError
from .models.layers import Branch
from .pipeline import Pipeline
from .slots import Slot, side_stream
from .text import TextEmbedding, TextEncoder

Mode = Literal["parts", "blocks"]
MODES: tuple[Mode, ...] = ("parts", "blocks")
_ALIGNMENT = 256  # bytes; of tensors in a packed block, as torch's own allocations are on a GPU


def offload(pipe: Pipeline, mode: Mode, device: str | torch.device | None = None) -> OffloadedPipeline:
    """The same pipeline for a device with little memory. It makes the same videos.

    The modules are shared with `pipe`, which after this has them on the host.

    Args:
        mode: "parts": text encoder, transformer and VAE are on the device one at a time. "blocks": so they are, but of
            the transformer and the text encoder only two blocks at a time, of which one computes and the other comes.
        device: that computes; default: the GPU if there is one, else the CPU, where all this saves nothing.

    Raises:
        PabError: unknown mode, or a device that cannot be used.
    """
    check_mode(mode)
    device = check_device(device)
    given = {f.name: getattr(pipe, f.name) for f in fields(Pipeline)}
    # Block by block, only a block's own forward waits for its weights.
    wanted = pipe.speed if pipe.device.type == device.type else "auto"
    given["speed"], _ = choose_speed("exact" if mode == "blocks" else wanted, device, torch.bfloat16, trying=True)
    text_encoder = pipe.text_encoder
    if text_encoder is not None:
        given["text_encoder"] = _offloaded_text(text_encoder, mode, device)
    blocks = transformer_blocks(pipe.transformer) if mode == "blocks" else ()
    transformer = Lent(pipe.transformer, device, blocks)
    use_speed_in_decoding(given["speed"], device, pipe.vae)  # before Lent notes how its weights lie in memory
    vae = None if pipe.vae is None else Lent(pipe.vae, device)
    return OffloadedPipeline(**given, compute_device=device, lent_transformer=transformer, lent_vae=vae)


def check_mode(mode: str) -> Mode:
    """PabError where there is no such mode."""
    if mode == "parts" or mode == "blocks":
        return mode
    raise PabError(f"There is no way to offload named '{mode}'. Known are {' and '.join(MODES)}.")


@dataclass
class OffloadedPipeline(Pipeline):
    """A pipeline whose modules are on `compute_device` only while they compute; see `offload`.

    Runs side by side take turns with each module.
    """

    compute_device: torch.device = field(kw_only=True)
    lent_transformer: Lent = field(kw_only=True)
    lent_vae: Lent | None = field(kw_only=True)

    @property
    def device(self) -> torch.device:
        return self.compute_device

    def denoise(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.lent_transformer:
            return super().denoise(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Tensor:
        self._vae()
        assert self.lent_vae is not None
        with self.lent_vae:
            return super().decode(*args, **kwargs)

    def encode(self, video: Tensor) -> Tensor:
        self._vae()
        assert self.lent_vae is not None
        with self.lent_vae:
            return super().encode(video)


class Lent:
    """A module that lies on the host, and inside `with` on the device: all of it, or all but its blocks, which come one
    after another as they run.

    One thread at a time has it; others wait. Nested in one thread, the outermost `with` counts.
    """

    def __init__(self, module: nn.Module, device: torch.device, blocks: Sequence[nn.Module] = ()) -> None:
        own = {id(tensor) for block in blocks for tensor in tensors_of(block)}
        self.module = module
        self.part = PartHook([tensor for tensor in tensors_of(module) if id(tensor) not in own], device)
        self.stream = BlockStream(blocks, device) if blocks else None
        self._lock = threading.RLock()
        self._depth = 0
        self.part.init_hook(module)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth > 1:
            return
        try:
            self.part.pre_forward(self.module)
            if self.stream is not None:
                self.stream.open()
        except BaseException:  # such as too little memory for it
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._depth -= 1
            if self._depth == 0:
                if self.stream is not None:
                    self.stream.close()
                self.part.detach_hook(self.module)
        finally:
            self._lock.release()


class PartHook(ModelHook):
    """Brings tensors of a module to the device before it computes; afterwards those of the host take their place."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.tensors = tensors
        self.device = device
        self.kept: list[Tensor] = []  # their values on the host

    def init_hook(self, module: nn.Module) -> nn.Module:
        self.kept = [tensor.data.cpu() for tensor in self.tensors]
        return self.detach_hook(module)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for tensor, value in zip(self.tensors, self.kept, strict=True):
            # A copy even where the device is the CPU: what is tested there is then what happens elsewhere.
            tensor.data = torch.empty_like(value, device=self.device).copy_(value)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.detach_hook(module)
        return output

    def detach_hook(self, module: nn.Module) -> nn.Module:
        for tensor, value in zip(self.tensors, self.kept, strict=True):
            tensor.data = value
        return module


class BlockStream:
    """Blocks that run one after another, in two slots of device memory: while one computes, the next is copied into the
    other, on a GPU by a stream of its own.

    The slots are all that it ever takes, however far the host is ahead of the GPU: a copy waits, on the GPU, until the
    block that the slot held before is done.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks = blocks
        self.device = device
        self.packs = [PackedBlock(block, pin=device.type == "cuda") for block in blocks]
        self.slots: list[Slot] = []
        self.current = 0  # slot of the block that runs

    def open(self) -> None:
        size = max(pack.host.numel() for pack in self.packs)
        side = side_stream(self.device)
        self.slots = [Slot(size, self.device, side), Slot(size, self.device, side)]
        for index, block in enumerate(self.blocks):
            add_hook_to_module(block, BlockHook(self, index))

    def close(self) -> None:
        for block, pack in zip(self.blocks, self.packs, strict=True):
            remove_hook_from_module(block)
            block.__dict__.pop("forward", None)  # the module's own method again, which accelerate hides
            pack.point(pack.host)
        self.slots = []

    def bring(self, index: int) -> None:
        """Puts a block's weights on the device for it to run now, and starts to fetch those of the next one."""
        held = [slot.holds for slot in self.slots]
        if index in held:
            self.current = held.index(index)
        else:
            self.current = 1 - self.current
            self.slots[self.current].fill(index, self.packs[index].host)
        slot = self.slots[self.current]
        slot.wait()
        self.packs[index].point(slot.bytes)
        following = (index + 1) % len(self.packs)
        other = self.slots[1 - self.current]
        if following not in (index, other.holds):
            other.fill(following, self.packs[following].host)

    def done(self, index: int) -> None:
        self.slots[self.current].used()
        self.packs[index].point(self.packs[index].host)


class BlockHook(ModelHook):
    def __init__(self, stream: BlockStream, index: int) -> None:
        self.stream, self.index = stream, index

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.stream.bring(self.index)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.stream.done(self.index)
        return output


class PackedBlock:
    """All tensors of a block in one piece of host memory, so that one copy brings them; `pin`: for the GPU to fetch."""

    def __init__(self, block: nn.Module, pin: bool) -> None:
        self.tensors = tensors_of(block)
        self.starts = [packed_bytes(self.tensors[:count]) for count in range(len(self.tensors))]
        self.host = torch.empty(packed_bytes(self.tensors), dtype=torch.uint8, pin_memory=pin)
        for tensor, place in zip(self.tensors, self._places(self.host), strict=True):
            place.copy_(tensor.data)
            tensor.data = place

    def point(self, memory: Tensor) -> None:
        """Makes the block's tensors those that lie in `memory`, laid out as `host`."""
        for tensor, place in zip(self.tensors, self._places(memory), strict=True):
            tensor.data = place

    def _places(self, memory: Tensor) -> list[Tensor]:
        return [
            memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(self.tensors, self.starts, strict=True)
        ]


class OffloadedTextEncoder(TextEncoder):
    """A text encoder that is on the device only while it encodes."""

    def __init__(self, encoder: TextEncoder, lent: Lent) -> None:
        super().__init__(encoder.model, encoder.tokenizer, encoder.max_length, encoder.cleaning)
        self.lent = lent

    def encode_batch(self, prompts: Sequence[str], negative: str | None = None) -> TextEmbedding:
        with self.lent:
            return super().encode_batch(prompts, negative)


def _offloaded_text(text_encoder: CachedTextEncoder, mode: Mode, device: torch.device) -> CachedTextEncoder:
    """The same cache; the encoder is loaded when it is first needed, as before."""

    def lend(encoder: TextEncoder) -> OffloadedTextEncoder:
        blocks = text_blocks(encoder.model) if mode == "blocks" else ()
        return OffloadedTextEncoder(encoder, Lent(encoder.model, device, blocks)).eval()

    result = CachedTextEncoder(
        lambda: lend(text_encoder.load()), text_encoder.identity, text_encoder.cleaning, text_encoder.cache
    )
    if text_encoder.loaded is not None:
        result.loaded = lend(text_encoder.loaded)
    return result


def transformer_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of any of the families in the order in which they run."""
    branches: Any = transformer.branches
    parts: list[Any] = [part for part in transformer.modules() if part is not transformer and hasattr(part, "branches")]
    blocks: dict[Branch, nn.Module] = {part.branches[0]: part for part in parts}
    return [blocks[branch] for branch in branches if branch in blocks]


def text_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of transformers' T5 encoder in order; none where it is another module."""
    found = getattr(getattr(model, "encoder", None), "block", None)
    return list(found) if isinstance(found, nn.ModuleList) else []


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """Of tensors laid one after another, each at a place where a GPU reads it well."""
    return sum(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return list({id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values())
