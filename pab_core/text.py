"""Prompt -> text embedding, by a T5 encoder (transformers)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import PabError


@dataclass(frozen=True)
class TextEmbedding:
    """Prompts as the transformer takes them."""

    tokens: Tensor  # [B, L, D] float
    mask: Tensor  # [B, L] bool, True = a real token
    left_out: str = ""  # the end of an over-long prompt, which the model did not see

    @property
    def warning(self) -> str:
        """One sentence for the user if the prompt was cut, else empty."""
        if not self.left_out:
            return ""
        return (
            f"The prompt is longer than the model reads ({self.tokens.shape[1]} tokens): it was cut before "
            f"'{_shorten(self.left_out)}'."
        )


class TextEncoder(nn.Module):
    """A T5 encoder with its tokenizer; `max_length` counts the end token."""

    def __init__(self, model: nn.Module, tokenizer: Any, max_length: int):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @torch.no_grad()
    def encode(self, prompt: str) -> TextEmbedding:
        """PabError if the prompt is empty; an over-long one is cut and says where."""
        return self.encode_batch([prompt])

    @torch.no_grad()
    def encode_batch(self, prompts: Sequence[str]) -> TextEmbedding:
        """Several prompts at once, padded to the longest; `left_out` is that of the first one that was cut."""
        rows = [self.tokenizer(clean_prompt(prompt))["input_ids"] for prompt in prompts]
        left_out = ""
        for i, ids in enumerate(rows):
            if len(ids) > self.max_length:
                kept = self.max_length - 1  # the last place is the end token's
                left_out = left_out or self.tokenizer.decode(ids[kept:-1]).strip()
                rows[i] = [*ids[:kept], ids[-1]]
        device = next(self.model.parameters()).device
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(ids) for ids in rows], device=device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        states = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return TextEmbedding(states, mask, left_out)


def clean_prompt(prompt: str) -> str:
    """Lower case, single blanks (Open-Sora's plain cleaning); PabError if nothing is left."""
    text = " ".join(prompt.lower().split())
    if not text:
        raise PabError("The prompt is empty: say in a few words what the video should show.")
    return text


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
