"""What was encoded once is not encoded again: in memory, on disk, and without loading the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_text_encoder import CONFIG, TOKENIZER, reference, tiny_weights

from pab_core.embedding_cache import CachedTextEncoder, EmbeddingCache
from pab_core.errors import PabError
from pab_core.text import TextEmbedding, TextEncoder
from pab_core.text_encoder_files import load_tokenizer

PROMPT = "a red ball rolls left over a green floor"
LONG = " and ".join([PROMPT] * 4)


class Source:
    """An encoder that counts how often it is loaded and run."""

    def __init__(self) -> None:
        self.loads = self.runs = 0
        tokenizer = load_tokenizer(TOKENIZER, CONFIG["vocab_size"])
        self.encoder = TextEncoder(reference(tiny_weights()), tokenizer, 24)
        self.encoder.model.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.runs += 1

    def load(self) -> TextEncoder:
        self.loads += 1
        return self.encoder

    def cached(self, cache: EmbeddingCache | None = None, identity: str = "one") -> CachedTextEncoder:
        return CachedTextEncoder(self.load, identity, "plain", cache)


@pytest.fixture(scope="module")
def loaded() -> Source:
    return Source()


@pytest.fixture
def source(loaded: Source) -> Source:
    loaded.loads = loaded.runs = 0
    return loaded


def same(one: TextEmbedding | None, other: TextEmbedding | None) -> bool:
    assert one is not None
    assert other is not None
    if (one.negative is None) != (other.negative is None):
        return False
    negatives = one.negative is None or other.negative is None or torch.equal(one.negative, other.negative)
    tensors = torch.equal(one.tokens, other.tokens) and torch.equal(one.mask, other.mask)
    return tensors and negatives and one.left_out == other.left_out


def embedding(length: int) -> TextEmbedding:
    return TextEmbedding(torch.randn(1, length, 4), torch.ones(1, length, dtype=torch.bool))


# ---------------------------------------------------------------------------------------------------------- in memory


def test_the_same_prompt_is_encoded_once(source: Source):
    text = source.cached()
    assert text.loaded is None
    first = text.encode_pair(PROMPT, "a cube")
    runs = source.runs
    assert text.encode_pair(f"  {PROMPT.upper()}\n", "A  CUBE") is first
    assert (source.loads, source.runs) == (1, runs)
    assert same(first, source.encoder.encode_pair(PROMPT, "a cube"))
    assert same(text.encode(PROMPT), source.encoder.encode(PROMPT))
    assert text.encode(LONG).warning == source.encoder.encode(LONG).warning != ""


def test_what_makes_another_embedding(source: Source):
    cache = EmbeddingCache()
    text, other = source.cached(cache), source.cached(cache, "two")
    calls: list[Callable[[], object]] = [
        lambda: text.encode(PROMPT),
        lambda: text.encode_pair(PROMPT),
        lambda: text.encode_pair(PROMPT, "a cube"),
        lambda: text.encode("a cube"),
        lambda: other.encode(PROMPT),
    ]
    for call in calls:
        before = source.runs
        call()
        assert source.runs > before
    before = source.runs
    for call in calls:
        call()
    assert source.runs == before


def test_finding_loads_nothing(source: Source):
    text = source.cached()
    assert text.find(PROMPT) is None
    assert source.loads == 0
    made = text.encode_pair(PROMPT)
    assert text.find(PROMPT, "") is made
    assert text.find(PROMPT) is None
    with pytest.raises(PabError, match="The prompt is empty"):
        text.find("  ")


def test_a_released_encoder_is_loaded_again_for_a_new_prompt_only(source: Source):
    text = source.cached()
    text.encode(PROMPT)
    text.release()
    text.encode(PROMPT)
    assert text.loaded is None
    text.encode("a cube")
    assert source.loads == 2


def test_memory_is_bounded_and_the_one_used_last_stays():
    size = embedding(10).tokens.nbytes
    cache = EmbeddingCache(max_bytes=2 * size)
    for name in "ab":
        cache.put(name, embedding(10))
    assert cache.get("a") is not None
    cache.put("c", embedding(10))
    assert [cache.get(name) is not None for name in "abc"] == [True, False, True]
    cache.put("d", embedding(21))
    assert [cache.get(name) is not None for name in "abcd"] == [False] * 4
    # A negative prompt counts like the prompt.
    cache.put("e", embedding(10).with_negative(embedding(10)))
    cache.put("f", embedding(1))
    assert cache.get("e") is None


# ------------------------------------------------------------------------------------------------------------ on disk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_on_disk_needs_no_encoder(source: Source, tmp_path: Path, dtype: torch.dtype):
    folder = tmp_path / "not" / "there yet"
    text = CachedTextEncoder(lambda: Half(source.encoder, dtype), "one", "plain", EmbeddingCache(folder=folder))
    made = [text.encode(PROMPT), text.encode_pair(PROMPT, "a cube"), text.encode_pair(LONG)]
    assert len(list(folder.iterdir())) == 3
    assert {path.suffix for path in folder.iterdir()} == {".safetensors"}

    def never() -> TextEncoder:
        raise AssertionError("loaded")

    again = CachedTextEncoder(never, "one", "plain", EmbeddingCache(folder=folder))
    found = [again.encode(PROMPT), again.encode_pair(PROMPT, "a cube"), again.encode_pair(LONG)]
    assert all(map(same, made, found))
    assert found[0].tokens.dtype == dtype
    assert found[2].warning
    assert again.encode(PROMPT) is found[0], "read once"
    with pytest.raises(AssertionError, match="loaded"):
        CachedTextEncoder(never, "two", "plain", EmbeddingCache(folder=folder)).encode(PROMPT)


class Half(TextEncoder):
    """An encoder's results in another precision."""

    def __init__(self, encoder: TextEncoder, dtype: torch.dtype):
        super().__init__(encoder.model, encoder.tokenizer, encoder.max_length)
        self.dtype = dtype

    def encode_batch(self, prompts, negative=None):
        text = super().encode_batch(prompts, negative)
        away = None if text.negative is None else text.negative.to(self.dtype)
        return TextEmbedding(text.tokens.to(self.dtype), text.mask, text.left_out, away)


@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish", "other tensors", "other shapes", "a folder"])
def test_a_damaged_file_is_made_anew(source: Source, tmp_path: Path, damage: str):
    from safetensors.torch import save_file

    made = source.cached(EmbeddingCache(folder=tmp_path)).encode(PROMPT)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "other tensors":
        save_file({"x": torch.zeros(1)}, path)
    elif damage == "other shapes":
        save_file({"tokens": torch.zeros(1, 3, 2), "mask": torch.ones(1, 4, dtype=torch.bool)}, path)
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": content[:-7], "empty": b"", "rubbish": b"<html>" * 100}[damage])
    before = source.runs
    text = source.cached(EmbeddingCache(folder=tmp_path))
    if damage == "a folder":
        with pytest.warns(RuntimeWarning, match="could not be kept"):
            assert same(text.encode(PROMPT), made)
        assert list(tmp_path.iterdir()) == [path], "the unfinished file is gone"
    else:
        assert same(text.encode(PROMPT), made)
        assert path.read_bytes() == content
    assert source.runs > before


def test_a_folder_that_cannot_be_made_is_only_warned_of(source: Source, tmp_path: Path):
    (tmp_path / "file").write_text("")
    text = source.cached(EmbeddingCache(folder=tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        made = text.encode(PROMPT)
    assert text.encode(PROMPT) is made


def test_a_write_that_fails_leaves_no_file(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pab_core.embedding_cache.save_file", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        source.cached(EmbeddingCache(folder=tmp_path)).encode(PROMPT)
    assert list(tmp_path.iterdir()) == []
