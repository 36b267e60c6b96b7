"""T5 in every form of file gives the same embeddings as transformers makes of the weights that the file stands for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoint import write_json
from tiny_text_encoder import (
    CONFIG,
    PREFIX,
    TOKENIZER,
    WIDTH,
    dequantised,
    is_layer,
    reference,
    tiny_weights,
    to_fp8,
    to_scaled_fp8,
    write_folder,
)
from torch import Tensor

from pab_core.errors import PabError
from pab_core.text import TextEncoder
from pab_core.text_encoder_files import find_text_encoder
from pab_core.text_encoder_loading import ScaledLinear, cached_text_encoder

PROMPT = "a red ball rolls left over a green floor"
FLOAT32, CPU = torch.float32, torch.device("cpu")
Weights = dict[str, Tensor]

LAYER = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
SCALE = LAYER.removesuffix("weight") + "scale_weight"

FORMS: dict[str, Callable[[Weights], Weights]] = {
    "fp32": lambda weights: weights,
    "fp16": lambda weights: {key: tensor.half() for key, tensor in weights.items()},
    "bf16": lambda weights: {key: tensor.bfloat16() for key, tensor in weights.items()},
    "fp8": to_fp8,
    "scaled fp8": to_scaled_fp8,
    "rows of scaled fp8": lambda weights: to_scaled_fp8(weights, rows=True),
    "fp16 with a scale": lambda weights: FORMS["fp16"](weights) | {SCALE: torch.tensor(0.3)},
    "embedding under its other name": lambda weights: {
        "encoder.embed_tokens.weight" if key == "shared.weight" else key: tensor for key, tensor in weights.items()
    },
    "with a decoder": lambda weights: weights | {"lm_head.weight": torch.zeros(2, 2), "decoder.x": torch.zeros(1)},
    "inside a whole model": lambda weights: (
        {PREFIX + key: tensor for key, tensor in to_scaled_fp8(weights).items()} | {"model.x.weight": torch.zeros(1)}
    ),
}
# Relative to the embeddings of the weights before they were rounded to the form.
ROUNDING = {"fp16": 2e-3, "bf16": 2e-2}
ROUNDING["fp16 with a scale"] = 2  # it is another encoder
ROUNDING |= dict.fromkeys(("fp8", "scaled fp8", "rows of scaled fp8", "inside a whole model"), 0.1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


def load(source: Path, dtype: torch.dtype = FLOAT32, tokenizer: Path | None = TOKENIZER, **options) -> TextEncoder:
    return cached_text_encoder(source, tokenizer, WIDTH, 20, dtype, CPU, "plain", **options).load()


def states_of(model, encoder: TextEncoder) -> Tensor:
    """The prompt's embedding by a model, through the same tokenizer."""
    ids = torch.tensor([encoder.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def test_from_a_folder_in_shards(weights: Weights, tmp_path: Path):
    encoder = load(write_folder(tmp_path / "text_encoder", weights))
    expected = states_of(reference(weights), encoder)
    assert torch.equal(encoder.encode(PROMPT).tokens, expected)
    assert not encoder.training
    assert encoder.model.get_parameter("shared.weight") is encoder.model.get_parameter("encoder.embed_tokens.weight")


@pytest.mark.parametrize("form", FORMS)
def test_from_a_single_file(weights: Weights, tmp_path: Path, form: str):
    stored = FORMS[form](weights)
    save_file(stored, tmp_path / "t5.safetensors")
    encoder = load(tmp_path / "t5.safetensors")
    given = encoder.encode(PROMPT).tokens
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in stored.items() if "model.x" not in key}
    plain = {key: tensor for key, tensor in plain.items() if not key.startswith(("lm_head", "decoder"))}
    plain = {"shared.weight" if "embed_tokens" in key else key: tensor for key, tensor in plain.items()}
    assert difference(given, states_of(reference(dequantised(plain)), encoder)) < 1e-6
    assert all(encoder.model.get_parameter(key).shape == weights[key].shape for key in weights)
    lost = difference(given, states_of(reference(weights), encoder))
    assert lost < ROUNDING.get(form, 1e-6)
    if form in ROUNDING:
        assert lost > 1e-5, "the form rounds nothing: it is not what was read"


def test_a_single_file_tells_the_sizes(weights: Weights, tmp_path: Path):
    save_file(FORMS["scaled fp8"](weights), tmp_path / "t5.safetensors")
    config = find_text_encoder(tmp_path / "t5.safetensors", TOKENIZER, WIDTH).config
    assert config == CONFIG


def test_a_device_that_does_not_know_fp8_gets_the_same_weights_cast(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_file(to_scaled_fp8(weights), tmp_path / "t5.safetensors")
    expected = load(tmp_path / "t5.safetensors").encode(PROMPT).tokens
    monkeypatch.setattr("pab_core.text_encoder_loading._knows_fp8", lambda device: False)
    encoder = load(tmp_path / "t5.safetensors")
    assert {parameter.dtype for parameter in encoder.parameters()} == {FLOAT32}
    assert torch.equal(encoder.encode(PROMPT).tokens, expected)
    with pytest.raises(PabError, match="fp8 do not work on this device"):
        load(tmp_path / "t5.safetensors", storage="fp8")


@pytest.mark.parametrize("form", ["fp8", "scaled fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_stays_fp8_in_memory_and_is_cast_exactly(weights: Weights, tmp_path: Path, form: str, dtype: torch.dtype):
    stored = FORMS[form](weights)
    save_file(stored, tmp_path / "t5.safetensors")
    encoder = load(tmp_path / "t5.safetensors", dtype)
    for key in filter(is_layer, weights):
        layer = encoder.model.get_submodule(key.removesuffix(".weight"))
        assert isinstance(layer, ScaledLinear)
        assert layer.weight.itemsize == 1
        scale = stored.get(key.removesuffix("weight") + "scale_weight", torch.tensor(1.0))
        assert torch.equal(layer.dequantised(dtype), (stored[key].float() * scale).to(dtype))
    assert encoder.model.get_parameter("shared.weight").dtype == dtype
    assert encoder.encode(PROMPT).tokens.dtype == dtype
    exact = states_of(reference(dequantised(stored)), encoder)
    bound = {torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    assert difference(encoder.encode(PROMPT).tokens, exact) < bound


def test_float16_computes_as_transformers_where_float16_overflows(weights: Weights, tmp_path: Path):
    from transformers import T5EncoderModel

    loud = {key: tensor * 40 if "DenseReluDense" in key else tensor for key, tensor in weights.items()}
    folder = write_folder(tmp_path / "text_encoder", {key: tensor.half() for key, tensor in loud.items()})
    encoder = load(folder, torch.float16)
    with torch.no_grad():
        ids = torch.tensor([encoder.tokenizer(PROMPT)["input_ids"]])
        model: Any = encoder.model
        block = model.encoder.block[0].layer[1]
        inner = block.DenseReluDense
        x = block.layer_norm(model.shared(ids))
        hidden = torch.nn.functional.gelu(inner.wi_0(x), approximate="tanh") * inner.wi_1(x)
        assert torch.isfinite(hidden).all()
        assert (hidden.float() @ inner.wo.weight.float().T).abs().max() > 65504, "too quiet to overflow"
    given = encoder.encode(PROMPT).tokens
    assert torch.isfinite(given).all()
    expected = states_of(T5EncoderModel.from_pretrained(folder, dtype=torch.float16).eval(), encoder)
    assert torch.equal(given, expected)
    # The same weights in fp8 are no reason to overflow either.
    save_file(to_scaled_fp8(loud), tmp_path / "t5.safetensors")
    assert torch.isfinite(load(tmp_path / "t5.safetensors", torch.float16).encode(PROMPT).tokens).all()


def test_sixteen_bits_can_be_kept_in_eight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pab_core.models.fp8.LEAST_WEIGHTS", 1)
    weights = tiny_weights()
    folder = write_folder(tmp_path / "text_encoder", weights)
    plain, small = load(folder), load(folder, storage="fp8")
    layers = {key: small.model.get_submodule(key.removesuffix(".weight")) for key in filter(is_layer, weights)}
    assert all(layer.weight.itemsize == 1 for layer in layers.values())
    assert 1e-3 < difference(small.encode(PROMPT).tokens, plain.encode(PROMPT).tokens) < 0.2


def test_fp8_weights_can_be_offloaded(weights: Weights, tmp_path: Path):
    from accelerate import cpu_offload

    save_file(to_scaled_fp8(weights), tmp_path / "t5.safetensors")
    encoder = load(tmp_path / "t5.safetensors")
    expected = encoder.encode_pair(PROMPT)
    cpu_offload(encoder.model, execution_device=CPU)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert torch.equal(encoder.encode_pair(PROMPT).tokens, expected.tokens)
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_what_fp8_could_not_hold_counts_as_zero(weights: Weights, tmp_path: Path):
    stored = to_fp8(weights)
    stored["shared.weight"][3:500:2] = torch.tensor(torch.nan).to(torch.float8_e4m3fn)
    assert stored["shared.weight"].float().isnan().any()
    save_file(stored, tmp_path / "t5.safetensors")
    assert torch.isfinite(load(tmp_path / "t5.safetensors").encode(PROMPT).tokens).all()


# ------------------------------------------------------------------------------------------------------ the tokenizer


def test_where_the_tokenizer_is_taken_from(weights: Weights, tmp_path: Path):
    file = tmp_path / "models" / "t5.safetensors"
    file.parent.mkdir()
    save_file(weights, file)
    places = {name: Path(shutil.copytree(TOKENIZER, tmp_path / name)) for name in ("given", "spare")}

    def found(given: Path | None, source: Path = file) -> Path:
        return find_text_encoder(source, given, WIDTH, places["spare"]).tokenizer

    assert found(None) == places["spare"]
    shutil.copytree(TOKENIZER, file.parent / "tokenizer")
    assert found(None) == file.parent / "tokenizer"
    assert found(places["given"]) == places["given"]
    assert found(places["given"] / "spiece.model") == places["given"]
    folder = write_folder(tmp_path / "models" / "t5-v1_1-xxl", weights)
    assert found(None, folder) == file.parent / "tokenizer"
    shutil.copy(TOKENIZER / "spiece.model", folder)
    assert found(None, folder) == folder


def test_no_tokenizer_says_what_to_put_where(weights: Weights, tmp_path: Path):
    save_file(weights, tmp_path / "t5.safetensors")
    with pytest.raises(PabError) as caught:
        load(tmp_path / "t5.safetensors", tokenizer=None)
    assert str(tmp_path / "tokenizer") in str(caught.value)
    assert "spiece.model or tokenizer.json" in str(caught.value)


def test_a_tokenizer_of_another_model(weights: Weights, tmp_path: Path):
    few = {key: tensor[:100] if key == "shared.weight" else tensor for key, tensor in weights.items()}
    save_file(few, tmp_path / "t5.safetensors")
    with pytest.raises(PabError, match=r"the text encoder knows 100: these parts do not belong together"):
        load(tmp_path / "t5.safetensors")


# ---------------------------------------------------------------------------------------------------------- bad files


def refused(source: Path, width: int = WIDTH) -> str:
    with pytest.raises(PabError) as caught:
        cached_text_encoder(source, TOKENIZER, width, 20, FLOAT32, CPU, "plain").load()
    return str(caught.value)


BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
LIKENESSES: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "UMT5": (lambda weights: weights | {BIAS: torch.zeros(32, 4)}, "UMT5"),
    "old T5": (
        lambda weights: {key.replace("wi_0", "wi"): value for key, value in weights.items() if "wi_1" not in key},
        "T5 v1.0",
    ),
    "CLIP": (lambda _: {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)}, "CLIP"),
    "video": (
        lambda _: {f"{stream}_blocks.0.scale_shift_table": torch.zeros(6, 4) for stream in ("spatial", "temporal")},
        "Open-Sora 1.2",
    ),
}


@pytest.mark.parametrize("name", LIKENESSES)
def test_a_file_of_another_model_says_what_it_looks_like(weights: Weights, tmp_path: Path, name: str):
    change, likeness = LIKENESSES[name]
    save_file(change(weights), tmp_path / "x.safetensors")
    told = refused(tmp_path / "x.safetensors")
    assert "is no T5 v1.1 text encoder" in told
    assert likeness in told.split("It looks like")[1]
    assert "t5xxl_fp16.safetensors" in told


def test_files_that_cannot_be_used(weights: Weights, tmp_path: Path):
    assert "There is no text encoder" in refused(tmp_path / "nowhere")
    (tmp_path / "t5.gguf").write_bytes(b"GGUF")
    assert "t5.gguf is no safetensors file" in refused(tmp_path / "t5.gguf")
    save_file(weights, tmp_path / "t5.safetensors")
    assert "The text_encoder gives 32 channels" in refused(tmp_path / "t5.safetensors", 4096)
    for changed, words in (
        ({name: tensor for name, tensor in weights.items() if name != LAYER}, f"1 missing ({LAYER})"),
        (weights | {"x": torch.zeros(1)}, "1 unexpected (x)"),
        (weights | {LAYER: torch.zeros(3, 3)}, "1 of another shape"),
        (weights | {LAYER: weights[LAYER].to(torch.int8)}, f"weights of an unknown form ({LAYER}"),
        (to_scaled_fp8(weights) | {SCALE: torch.ones(3)}, "unknown form (scales"),
    ):
        save_file(changed, tmp_path / "t5.safetensors")
        assert words in refused(tmp_path / "t5.safetensors")
    content = (tmp_path / "t5.safetensors").read_bytes()
    (tmp_path / "t5.safetensors").write_bytes(content[: len(content) // 2])
    assert "truncated" in refused(tmp_path / "t5.safetensors")
    folder = write_folder(tmp_path / "text_encoder", weights)
    write_json(folder / "config.json", CONFIG | {"model_type": "umt5"})
    assert "is of the kind 'umt5'" in refused(folder)


# --------------------------------------------------------------------------------------------------------------- lazy


def test_files_are_checked_at_once_and_weights_read_when_needed(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "t5.safetensors"
    save_file(weights, file)
    options = (TOKENIZER, WIDTH, 20, FLOAT32, CPU, "plain")
    with pytest.raises(PabError, match="gives 32 channels"):
        cached_text_encoder(file, TOKENIZER, 16, 20, FLOAT32, CPU, "plain")
    encoder = cached_text_encoder(file, *options)
    assert encoder.loaded is None
    assert torch.equal(encoder.encode(PROMPT).tokens, load(file).encode(PROMPT).tokens)
    assert encoder.loaded is not None


def test_the_identity_is_that_of_files_length_and_precision(weights: Weights, tmp_path: Path):
    file = tmp_path / "t5.safetensors"
    save_file(weights, file)
    tokenizer = Path(shutil.copytree(TOKENIZER, tmp_path / "words"))

    def identity(max_length: int = 20, dtype: torch.dtype = FLOAT32, **options) -> str:
        return cached_text_encoder(file, tokenizer, WIDTH, max_length, dtype, CPU, "plain", **options).identity

    first = identity()
    assert identity() == first
    others = {identity(21), identity(dtype=torch.bfloat16), identity(storage="fp8")}
    save_file(tiny_weights(seed=1), file)
    others.add(identity())
    save_file(weights, file)
    with (tokenizer / "tokenizer_config.json").open("a") as settings:
        settings.write(" ")
    others.add(identity())
    assert len(others | {first}) == 6
