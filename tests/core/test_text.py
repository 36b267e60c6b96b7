"""Prompts to embeddings: equal to what the authors' pipelines compute padded; and other programs' embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_text_encoder import CONFIG, TOKENIZER, WIDTH, reference, tiny_weights
from torch import Tensor

from pab_core.errors import PabError
from pab_core.text import TextEmbedding, TextEncoder, embedding_from_conditioning
from pab_core.text_encoder_files import load_tokenizer

PROMPT = "a red ball rolls left over a green floor"
LENGTH = 24
LONG = " and ".join([PROMPT] * 4)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    tokenizer = load_tokenizer(TOKENIZER, CONFIG["vocab_size"])
    return TextEncoder(reference(tiny_weights()), tokenizer, LENGTH).eval()


@torch.no_grad()
def padded(encoder: TextEncoder, text: str) -> tuple[Tensor, int]:
    """A text as the authors encode it: padded to the full length, under its mask; and how many tokens are real."""
    inputs = encoder.tokenizer(
        text,
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_attention_mask=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    states = encoder.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    return states, int(inputs["attention_mask"].sum())


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("prompt", [PROMPT, "a cube", LONG])
def test_trimmed_equals_padded_and_masked(encoder: TextEncoder, prompt: str):
    states, real = padded(encoder, prompt)
    text = encoder.encode(prompt)
    assert text.tokens.shape[1] == real
    assert close(text.tokens, states[:, :real])
    assert text.mask.all()
    assert text.negative is None


@pytest.mark.parametrize("negative", ["", "a blue cube", LONG])
@pytest.mark.parametrize("prompt", [PROMPT, "a cube", LONG])
def test_a_negative_prompt_is_padded_and_cut_to_the_prompt(encoder: TextEncoder, prompt: str, negative: str):
    states, real = padded(encoder, prompt)
    away, _ = padded(encoder, negative)
    text = encoder.encode_pair(prompt, negative)
    assert close(text.tokens, states[:, :real])
    assert text.negative is not None
    assert close(text.negative, away[:, :real])
    assert not close(text.negative, text.tokens) or prompt == negative


def test_the_default_negative_prompt_is_the_empty_one(encoder: TextEncoder):
    default, empty = encoder.encode_pair(PROMPT).negative, encoder.encode_pair(PROMPT, "  ").negative
    assert default is not None
    assert empty is not None
    assert torch.equal(default, empty)


@pytest.mark.parametrize("negative", ["", "*** Blurry, (grey)", LONG])
def test_equal_to_the_latte_pipeline_of_diffusers(encoder: TextEncoder, negative: str):
    from diffusers.pipelines.latte.pipeline_latte import LattePipeline

    pipeline: Any = LattePipeline.__new__(LattePipeline)
    vars(pipeline).update(tokenizer=encoder.tokenizer, text_encoder=encoder.model)
    prompt = "A red <b>ball</b>   rolls left!"
    with torch.no_grad():
        tokens, away = pipeline.encode_prompt(
            prompt, negative_prompt=negative, device=torch.device("cpu"), clean_caption=True
        )
    text = TextEncoder(encoder.model, encoder.tokenizer, 120, "t5").encode_pair(prompt, negative)
    assert text.negative is not None
    assert close(text.tokens, tokens)
    assert close(text.negative, away)


def test_a_batch_equals_its_rows(encoder: TextEncoder):
    prompts = ["a cube", LONG, PROMPT]
    batch = encoder.encode_batch(prompts, "a blue cube")
    assert batch.negative is not None
    for i, prompt in enumerate(prompts):
        row = encoder.encode_pair(prompt, "a blue cube")
        length = row.tokens.shape[1]
        assert batch.mask[i].tolist() == [True] * length + [False] * (batch.tokens.shape[1] - length)
        assert row.negative is not None
        assert close(batch.tokens[i : i + 1, :length], row.tokens)
        assert close(batch.negative[i : i + 1, :length], row.negative)
    assert batch.left_out == encoder.encode(LONG).left_out


def test_an_over_long_prompt_is_cut_and_says_where(encoder: TextEncoder):
    text = encoder.encode_pair(LONG)
    assert text.tokens.shape[1] == LENGTH
    assert text.left_out
    assert LONG.endswith(text.left_out)
    assert text.warning.startswith(f"The prompt is longer than the model reads ({LENGTH} tokens): it was cut before '")
    assert encoder.encode_pair(PROMPT, LONG).warning == ""


def test_cleaning_is_the_encoders_own(encoder: TextEncoder):
    cleaned = TextEncoder(encoder.model, encoder.tokenizer, LENGTH, "t5")
    noisy = "  A RED ball *** rolls left <b>over</b> a green floor photo.png "
    assert torch.equal(cleaned.encode(noisy).tokens, encoder.encode(PROMPT).tokens)
    with_negative = cleaned.encode_pair(PROMPT, "cube.jpg BLUE").negative
    assert with_negative is not None
    expected = encoder.encode_pair(PROMPT, "blue").negative
    assert expected is not None
    assert torch.equal(with_negative, expected)


def test_moving_moves_all(encoder: TextEncoder):
    moved = encoder.encode_pair(PROMPT).to("meta")
    assert moved.negative is not None
    assert {tensor.device.type for tensor in (moved.tokens, moved.mask, moved.negative)} == {"meta"}
    assert encoder.encode(PROMPT).to("meta").negative is None
    assert encoder.encode(LONG).to("meta").left_out == encoder.encode(LONG).left_out


def test_an_offloaded_encoder(encoder: TextEncoder):
    """Its weights are on the meta device between uses; accelerate's hooks bring them and the input together."""
    from accelerate import cpu_offload

    expected = encoder.encode_pair(PROMPT)
    offloaded = TextEncoder(reference(tiny_weights()), encoder.tokenizer, LENGTH)
    cpu_offload(offloaded.model, execution_device=torch.device("cpu"))
    assert next(offloaded.model.parameters()).is_meta
    given = offloaded.encode_pair(PROMPT)
    assert torch.equal(given.tokens, expected.tokens)
    assert torch.equal(given.mask, expected.mask)


# ------------------------------------------------------------------------------------------- conditioning from outside


def test_conditioning_under_a_mask(encoder: TextEncoder):
    states, real = padded(encoder, PROMPT)
    mask = (torch.arange(LENGTH) < real).long()[None]
    text = embedding_from_conditioning(states, mask, WIDTH, LENGTH)
    assert close(text.tokens, encoder.encode(PROMPT).tokens)
    assert text.mask.shape == (1, real)
    assert text.mask.dtype == torch.bool
    assert text.mask.all()


def test_conditioning_without_a_mask_loses_its_zeros_only():
    states = torch.randn(1, 9, WIDTH)
    states[:, 3] = 0
    states[:, 6:] = 0
    assert torch.equal(embedding_from_conditioning(states, None, WIDTH).tokens, states[:, :6])
    full = torch.randn(1, 9, WIDTH)
    assert torch.equal(embedding_from_conditioning(full, None, WIDTH).tokens, full)


@pytest.mark.parametrize(
    ("tokens", "mask", "words"),
    [
        (
            torch.ones(1, 5, 768),
            None,
            r"another text encoder \(768 channels\).*reads 32: connect one made by the model",
        ),
        (torch.ones(5, WIDTH), None, "another text encoder"),
        (torch.ones(2, 5, WIDTH), None, "2 prompts side by side"),
        (torch.ones(1, 5, WIDTH), torch.ones(1, 4), r"mask \[1, 4\] does not belong to its 5 tokens"),
        (torch.ones(1, 5, WIDTH), torch.zeros(1, 5), "no token that is not padding"),
        (torch.zeros(1, 5, WIDTH), None, "no token that is not padding"),
        (torch.ones(1, LENGTH + 1, WIDTH), None, f"has {LENGTH + 1} tokens, and the model reads at most {LENGTH}"),
    ],
)
def test_conditioning_that_cannot_be_used(tokens: Tensor, mask: Tensor | None, words: str):
    with pytest.raises(PabError, match=words):
        embedding_from_conditioning(tokens, mask, WIDTH, LENGTH)


def test_conditioning_of_another_width_names_the_encoder_that_fits():
    with pytest.raises(PabError, match=r"reads 4096: connect one made by T5 v1.1 XXL"):
        embedding_from_conditioning(torch.ones(1, 5, 768), None, 4096)


def test_a_negative_embedding_is_cut_or_repeated_to_the_prompts_length():
    prompt = TextEmbedding(torch.randn(1, 5, 4), torch.ones(1, 5, dtype=torch.bool))
    other = torch.randn(1, 8, 4)

    def negative(length: int) -> Tensor:
        given = TextEmbedding(other[:, :length].double(), torch.ones(1, length, dtype=torch.bool))
        result = prompt.with_negative(given).negative
        assert result is not None
        assert result.dtype == torch.float32
        return result

    assert torch.equal(negative(8), other[:, :5])
    assert torch.equal(negative(5), other[:, :5])
    assert torch.equal(negative(2), other[:, [0, 1, 0, 1, 0]])
    assert torch.equal(negative(1), other[:, [0] * 5])
