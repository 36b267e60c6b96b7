"""Prompt -> text embedding, by a T5 encoder (transformers)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import PabError
from .prompt_cleaning import clean_prompt, clean_text


@dataclass(frozen=True)
class TextEmbedding:
    """Prompts as the transformer takes them."""

    tokens: Tensor  # [B, L, D] float
    mask: Tensor  # [B, L] bool, True = a real token
    left_out: str = ""  # the end of an over-long prompt, which the model did not see
    negative: Tensor | None = None  # [B, L, D] float, what to guide away from; `mask` holds for it as well

    @property
    def warning(self) -> str:
        """One sentence for the user if the prompt was cut, else empty."""
        if not self.left_out:
            return ""
        return (
            f"The prompt is longer than the model reads ({self.tokens.shape[1]} tokens): it was cut before "
            f"'{_shorten(self.left_out)}'."
        )

    def to(self, device: torch.device | str) -> "TextEmbedding":
        negative = None if self.negative is None else self.negative.to(device)
        return replace(self, tokens=self.tokens.to(device), mask=self.mask.to(device), negative=negative)

    def with_negative(self, other: "TextEmbedding") -> "TextEmbedding":
        """Guided away from another embedding [1, any length, D], which is cut to as many tokens as there are here.

        A shorter one is repeated: cross-attention sees a repeated sequence as it sees the sequence itself.
        """
        batch, length, _ = self.tokens.shape
        rows = torch.arange(length, device=other.tokens.device) % other.tokens.shape[1]
        return replace(self, negative=other.tokens[:, rows].to(self.tokens).expand(batch, -1, -1))


class TextEncoder(nn.Module):
    """A T5 encoder with its tokenizer; `max_length` counts the end token, `cleaning` is one of CLEANINGS."""

    def __init__(self, model: nn.Module, tokenizer: Any, max_length: int, cleaning: str = "plain"):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cleaning = cleaning

    def encode(self, prompt: str) -> TextEmbedding:
        """PabError if the prompt is empty; an over-long one is cut and says where."""
        return self.encode_batch([prompt])

    def encode_pair(self, prompt: str, negative: str = "") -> TextEmbedding:
        """A prompt and the negative prompt that it is guided away from, which may be empty.

        As the authors of Latte and Open-Sora-Plan have it: both are padded to `max_length`, encoded under a mask of
        their own, and cut to the tokens of the prompt. So of a longer negative prompt the end is lost, and of a shorter
        one the model also sees what the encoder makes of padding.
        """
        return self.encode_batch([prompt], negative)

    @torch.no_grad()
    def encode_batch(self, prompts: Sequence[str], negative: str | None = None) -> TextEmbedding:
        """Several prompts at once, padded to the longest; `left_out` is that of the first one that was cut.

        negative: one for all; see encode_pair.
        """
        rows, ends = zip(*(self._read(clean_prompt(prompt, self.cleaning)) for prompt in prompts), strict=True)
        length = max(map(len, rows))
        if negative is not None:
            rows = (*rows, self._read(clean_text(negative, self.cleaning))[0])
        # All in one pass: what brings or casts the weights for it does so once. Masked tokens change nothing of the
        # others, so padding beyond the longest, as the authors do, is left out.
        states, mask = self._run(rows)
        tokens, mask = states[: len(prompts), :length], mask[: len(prompts), :length]
        away = None if negative is None else states[len(prompts) :, :length].expand_as(tokens)
        return TextEmbedding(tokens, mask, next(filter(None, ends), ""), away)

    def _read(self, text: str) -> tuple[list[int], str]:
        """Token ids, at most max_length of them, and the text of those that were left out."""
        # verbose: it would warn of a length that is cut right here.
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) <= self.max_length:
            return ids, ""
        kept = self.max_length - 1  # the last place is the end token's
        return [*ids[:kept], ids[-1]], self.tokenizer.decode(ids[kept:-1]).strip()

    def _run(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids -> their states [B, L, D] and mask [B, L], with the length of the longest row."""
        length = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
        mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
        device = next(self.model.parameters()).device
        if device.type != "meta":  # else the weights are elsewhere until used, and what brings them brings the input
            ids, mask = ids.to(device), mask.to(device)
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states, mask.to(states.device)


def embedding_from_conditioning(
    tokens: Tensor, mask: Tensor | None, width: int, max_length: int | None = None
) -> TextEmbedding:
    """An embedding that another program's T5 v1.1 made -> as the transformer takes it.

    Args:
        tokens: [1, L, width].
        mask: [1, L], nonzero = a real token; None: all are real but those of zeros at the end, which are padding.
        width: channels of the embeddings that the transformer reads.
        max_length: the most tokens that it reads.

    Raises:
        PabError: the embedding is of another encoder, of several prompts, too long, or of no token at all.
    """
    if tokens.ndim != 3 or tokens.shape[-1] != width:
        wanted = "T5 v1.1 XXL, such as t5xxl_fp16.safetensors" if width == 4096 else "the model's own text encoder"
        raise PabError(
            f"The conditioning was made by another text encoder ({tokens.shape[-1]} channels). The model reads "
            f"{width}: connect one made by {wanted}."
        )
    if tokens.shape[0] != 1:
        raise PabError(f"The conditioning holds {tokens.shape[0]} prompts side by side, and a run takes one.")
    if mask is None:
        nonzero = tokens[0].ne(0).any(-1).nonzero()[:, 0]
        kept = torch.arange(int(nonzero[-1]) + 1 if len(nonzero) else 0, device=tokens.device)
    elif mask.shape == tokens.shape[:2]:
        kept = mask[0].nonzero()[:, 0].to(tokens.device)
    else:
        raise PabError(
            f"The conditioning's attention mask {list(mask.shape)} does not belong to its {tokens.shape[1]} tokens: "
            "use it as it comes from the text encoder."
        )
    if not len(kept):
        raise PabError("The conditioning has no token that is not padding: encode the prompt anew.")
    if max_length is not None and len(kept) > max_length:
        raise PabError(
            f"The conditioning has {len(kept)} tokens, and the model reads at most {max_length}. Shorten the prompt, "
            "or encode it without padding, as a CLIPLoader of type 'pixart' does."
        )
    return TextEmbedding(tokens[:, kept], torch.ones(1, len(kept), dtype=torch.bool, device=tokens.device))


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
