"""Offloading changes where weights and kept updates lie, and nothing else: to the bit, also after a run that failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import WRITERS, random_pipe
from torch import Tensor, nn

from pab_core.broadcast.host_cache import HostCache
from pab_core.errors import PabError
from pab_core.evaluate.live_bytes import LiveBytes
from pab_core.models.fp8 import Fp8Linear, Quantiser, large_linears, replace_linears
from pab_core.offload import MODES, Mode, OffloadedPipeline, offload, tensors_of, transformer_blocks
from pab_core.pipeline import Pipeline
from pab_core.results import Progress

PROMPT = "a red ball rolls left over a green floor"
FAMILIES = tuple(WRITERS)


class Stop(Exception):
    """What a caller raises from `progress` to cancel."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {family: write(place / family) for family, write in WRITERS.items()}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[[str], Pipeline]:
    return lambda family: Pipeline.load(folders[family], device="cpu")


def addresses(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors_of(module)]


@contextmanager
def stays_home(*modules: nn.Module) -> Iterator[None]:
    """Before and after, all tensors lie at the same places of the host, and forward is the modules' own."""
    before = [addresses(module) for module in modules]
    yield
    assert [addresses(module) for module in modules] == before
    for module in modules:
        assert not any(hasattr(part, "_hf_hook") or "forward" in vars(part) for part in module.modules())


def on_device(pipe: OffloadedPipeline, home: list[int]) -> list[str]:
    """Names of the transformer's tensors that are away from their places on the host."""
    names = [name for name, _ in (*pipe.transformer.named_parameters(), *pipe.transformer.named_buffers())]
    now = addresses(pipe.transformer)
    return [name for name, here, there in zip(names, now, home, strict=True) if here != there]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_videos_are_the_same_to_the_bit_again_and_again(load: Callable[[str], Pipeline], family: str, mode: Mode):
    plain, pipe = load(family), offload(load(family), mode, "cpu")
    for policy, seed in (("pab246", 1), ("off", 2)):
        expected = plain.generate(PROMPT, policy=policy, seed=seed)
        assert pipe.text_encoder is not None
        pipe.text_encoder.encode_pair(PROMPT)
        encoder = pipe.text_encoder.encoder.model
        with stays_home(pipe.transformer, pipe.vae, encoder):  # type: ignore[arg-type]
            made = pipe.generate(PROMPT, policy=policy, seed=seed)
        assert torch.equal(made.frames, expected.frames)
        assert made.metadata == expected.metadata
    assert isinstance(replace(pipe, sampler=pipe.sampler), OffloadedPipeline)


@pytest.mark.parametrize("mode", MODES)
def test_text_and_given_frames_are_encoded_alike(load: Callable[[str], Pipeline], mode: Mode):
    plain, pipe = load("stdit3"), offload(load("stdit3"), mode, "cpu")
    for prompt in (PROMPT, "a blue cube"):
        assert torch.equal(pipe.encode_prompt(prompt).tokens, plain.encode_prompt(prompt).tokens)
    video = torch.rand(1, 3, 17, 32, 48) * 2 - 1
    assert torch.equal(pipe.encode(video), plain.encode(video))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_blocks_at_most_are_on_the_device(load: Callable[[str], Pipeline], family: str):
    pipe = offload(load(family), "blocks", "cpu")
    home = addresses(pipe.transformer)
    blocks = transformer_blocks(pipe.transformer)
    assert len(blocks) == 2 * pipe.spec.depth
    names = {id(part): name for name, part in pipe.transformer.named_modules()}
    inside = [tuple(name for name in dict(block.named_parameters(names[id(block)]))) for block in blocks]
    every = {name for block in inside for name in block}
    seen: list[list[int]] = []

    def watch(module: nn.Module, args: Any) -> None:
        away = on_device(pipe, home)
        # What stands outside the blocks is there all the time.
        assert {name for name in away if name not in every} == {
            name for name, _ in (*pipe.transformer.named_parameters(), *pipe.transformer.named_buffers())
        } - every
        seen.append([place for place, block in enumerate(inside) if set(block) & set(away)])

    handles = [block.register_forward_pre_hook(lambda block, args: None) for block in blocks]
    handles += [next(block.children()).register_forward_pre_hook(watch) for block in blocks]
    try:
        pipe.generate(PROMPT, seed=1, steps=4)
    finally:
        for handle in handles:
            handle.remove()
    # Each runs from the device in its turn. The one that is fetched meanwhile lies in a slot, not yet in its tensors.
    assert seen[: 2 * len(blocks)] == [[place] for place in range(len(blocks))] * 2


def test_memory_is_that_of_the_blocks_that_are_there(load: Callable[[str], Pipeline]):
    config = {"hidden_size": 64, "depth": 6, "num_heads": 2, "caption_channels": 16, "model_max_length": 8}
    size: dict[str, Any] = {"num_frames": 17, "height": 32, "width": 32}

    def peak(mode: Mode | None) -> int:
        pipe = random_pipe("stdit3", config, **size, steps=2)
        weights = sum(tensor.nbytes for tensor in tensors_of(pipe.transformer))
        if mode is not None:
            pipe = offload(pipe, mode, "cpu")
        text = load("stdit3").encode_prompt("a ball")
        text = replace(text, tokens=text.tokens[:, :8], mask=text.mask[:, :8])
        with LiveBytes() as live:
            pipe.denoise(pipe.prepare_latents(1), text, pipe.schedule("off"))
        return live.peak + (weights if mode is None else 0)

    transformer = random_pipe("stdit3", config).transformer
    weights = sum(tensor.nbytes for tensor in tensors_of(transformer))
    blocks = [sum(tensor.nbytes for tensor in tensors_of(block)) for block in transformer_blocks(transformer)]
    whole, parts, in_blocks = peak(None), peak("parts"), peak("blocks")
    assert parts == whole
    assert whole - in_blocks == pytest.approx(sum(blocks) - 2 * max(blocks), rel=0.01)
    assert sum(blocks) > 0.8 * weights


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_cut_off_leaves_all_on_the_host(load: Callable[[str], Pipeline], family: str, mode: Mode):
    plain, pipe = load(family), offload(load(family), mode, "cpu")
    assert pipe.vae is not None

    def cancel(event: Progress) -> None:
        if event.stage == stage:
            raise Stop

    for stage in ("denoise", "decode"):  # noqa: B007 - read by cancel
        with stays_home(pipe.transformer, pipe.vae), pytest.raises(Stop):
            pipe.generate(PROMPT, policy="pab246", seed=7, progress=cancel)
    assert torch.equal(pipe.generate(PROMPT, seed=1).frames, plain.generate(PROMPT, seed=1).frames)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_inside_a_module_leaves_all_on_the_host(
    load: Callable[[str], Pipeline], mode: Mode, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    plain, pipe = load("stdit3"), offload(load("stdit3"), mode, "cpu")
    assert pipe.text_encoder is not None
    assert pipe.vae is not None
    encoder = pipe.text_encoder.encoder.model
    places = {
        "text": text_place(encoder),
        "denoise": transformer_blocks(pipe.transformer)[2].attn,
        "decode": pipe.vae.spatial_vae,  # type: ignore[union-attr]
    }

    def fail(*_: Any, **__: Any) -> Tensor:
        raise error("no memory")

    for place in places.values():
        with stays_home(pipe.transformer, pipe.vae, encoder), monkeypatch.context() as patch:
            patch.setitem(vars(place), "decode" if place is places["decode"] else "forward", fail)
            with pytest.raises(error, match="no memory"):
                pipe.generate(PROMPT + " slowly", seed=3)
    assert torch.equal(pipe.generate(PROMPT, seed=1).frames, plain.generate(PROMPT, seed=1).frames)


def text_place(encoder: Any) -> nn.Module:
    return encoder.encoder.block[-1].layer[0]


def denoised(pipe: Pipeline) -> Tensor:
    return pipe.denoise(pipe.prepare_latents(1), pipe.encode_prompt(PROMPT), pipe.schedule("off"))


@pytest.mark.parametrize("mode", MODES)
def test_too_little_memory_at_the_start_leaves_all_on_the_host(
    load: Callable[[str], Pipeline], mode: Mode, monkeypatch: pytest.MonkeyPatch
):
    pipe = offload(load("stdit3"), mode, "cpu")
    pipe.encode_prompt(PROMPT)
    made = 0
    allocate = torch.empty_like

    def too_much(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal made
        made += 1
        if made == 3:
            raise torch.OutOfMemoryError("no memory")
        return allocate(*args, **kwargs)

    with stays_home(pipe.transformer):
        with monkeypatch.context() as patch:  # undone before the next run
            patch.setattr(torch, "empty_like", too_much)
            with pytest.raises(torch.OutOfMemoryError):
                denoised(pipe)
        assert made == 3
        denoised(pipe)


def test_runs_side_by_side_take_turns(load: Callable[[str], Pipeline]):
    plain, pipe = load("stdit3"), offload(load("stdit3"), "blocks", "cpu")
    made: dict[int, Tensor] = {}

    def run(seed: int) -> None:
        made[seed] = pipe.generate(PROMPT, seed=seed, steps=4).frames

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2, 3)]
    with stays_home(pipe.transformer):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, frames in made.items():
        assert torch.equal(frames, plain.generate(PROMPT, seed=seed, steps=4).frames)
    assert len(made) == 3


def test_a_preview_decoded_within_a_run_does_not_end_it(load: Callable[[str], Pipeline]):
    """A callback may use the pipeline itself, and then the transformer stays for the run around it."""
    plain, pipe = load("stdit3"), offload(load("stdit3"), "parts", "cpu")
    inner: list[Tensor] = []

    def look(event: Progress) -> None:
        if event.stage == "denoise" and event.done == 2 and not inner:
            inner.append(torch.zeros(0))
            inner.append(pipe.generate(PROMPT, seed=5, steps=2).frames)

    assert torch.equal(pipe.generate(PROMPT, seed=1, progress=look).frames, plain.generate(PROMPT, seed=1).frames)
    assert torch.equal(inner[1], plain.generate(PROMPT, seed=5, steps=2).frames)


def test_weights_in_eight_bits_stream_too():
    config = {"hidden_size": 144, "depth": 3, "num_heads": 2, "caption_channels": 16, "model_max_length": 8}
    pipe = random_pipe("stdit3", config, num_frames=17, height=32, width=32, steps=2)
    linears = {name: (part.weight.data, part.bias.data) for name, part in large_linears(pipe.transformer).items()}
    replace_linears(pipe.transformer, large_linears(pipe.transformer))
    for name, (weight, bias) in linears.items():
        layer = pipe.transformer.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        Quantiser("cpu").quantise(weight, layer.weight.data, layer.scale.data)
        assert layer.bias is not None
        layer.bias.data.copy_(bias)
    assert linears
    text = random_text(16, 8)
    noise, table = pipe.prepare_latents(1), pipe.schedule("pab246")
    expected = pipe.denoise(noise, text, table)
    assert torch.equal(offload(pipe, "blocks", "cpu").denoise(noise, text, table), expected)


def random_text(width: int, length: int) -> Any:
    from pab_core.text import TextEmbedding

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, length, width, generator=generator)
    return TextEmbedding(tokens, torch.ones(1, length, dtype=torch.bool), negative=tokens.flip(1))


def test_the_encoder_is_loaded_when_it_is_needed_and_embeddings_stay_shared(load: Callable[[str], Pipeline]):
    plain = load("stdit3")
    kept = plain.encode_prompt(PROMPT)
    fresh = load("stdit3")
    assert fresh.text_encoder is not None
    assert plain.text_encoder is not None
    fresh.text_encoder.cache = plain.text_encoder.cache
    pipe = offload(fresh, "parts", "cpu")
    assert pipe.text_encoder is not None
    assert torch.equal(pipe.encode_prompt(PROMPT).tokens, kept.tokens)
    assert pipe.text_encoder.loaded is None
    pipe.encode_prompt("a green cone")
    assert pipe.text_encoder.loaded is not None


def test_mistakes_are_told():
    pipe = random_pipe("latte", {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8})
    with pytest.raises(PabError, match=r"^There is no way to offload named 'all'. Known are parts and blocks.$"):
        offload(pipe, "all", "cpu")  # type: ignore[arg-type]
    with pytest.raises(PabError, match="cannot be used"):
        offload(pipe, "parts", "cuda:99")
    with pytest.raises(PabError, match="without a VAE"):
        offload(pipe, "parts", "cpu").decode(torch.zeros(1, 4, 1, 4, 4), 1)


# ------------------------------------------------------------------------------------------ updates in host memory


def updates(count: int, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {key: torch.randn(2, 3, 4, 8, generator=generator).to(dtype) for key in range(count)}
    made[1] = made[1].transpose(1, 2).contiguous().transpose(1, 2)  # as temporal attention gives them
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_host_keeps_comes_back_as_it_was(dtype: torch.dtype):
    cache, made = HostCache(), updates(6, dtype)
    for key, value in made.items():
        cache.keep(key, value)
    assert cache.held_bytes == sum(value.nbytes for value in made.values())
    orders = [[0, 1, 2, 3, 4, 5], [0, 2, 4], [5], [3, 1, 0]]
    for order in orders:
        cache.prefetch(order)
        for key in order:
            assert torch.equal(cache.take(key), made[key])
    for key in made:
        cache.drop(key)
    assert cache.held_bytes == 0


def test_what_was_not_announced_or_comes_out_of_order_is_right_too():
    cache, made = HostCache(), updates(7)
    for key in range(5):
        cache.keep(key, made[key])
    assert torch.equal(cache.take(3), made[3])
    cache.prefetch([0, 1, 2, 6])
    assert torch.equal(cache.take(4), made[4])
    assert torch.equal(cache.take(1), made[1])
    assert torch.equal(cache.take(0), made[0])
    cache.drop(1)
    cache.keep(6, made[6])
    for key in (2, 6, 6):
        assert torch.equal(cache.take(key), made[key])


def test_a_block_may_take_all_its_updates_before_it_uses_them():
    cache, made = HostCache(), updates(6)
    for key, value in made.items():
        cache.keep(key, value)
    cache.prefetch(range(6))
    for keys in ((0, 1, 2), (3, 4, 5)):
        for key, taken in [(key, cache.take(key)) for key in keys]:
            assert torch.equal(taken, made[key])


def test_a_larger_update_gets_larger_slots():
    cache = HostCache()
    small, large = torch.randn(4), torch.randn(64)
    cache.keep("small", small)
    cache.prefetch(["small"])
    cache.keep("large", large)
    assert torch.equal(cache.take("small"), small)
    assert torch.equal(cache.take("large"), large)
