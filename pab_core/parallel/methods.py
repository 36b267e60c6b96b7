"""The methods by name, and how many ranks each can use."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from ..errors import PabError
from ..models.registry import ModelSpec

# What temporal attention does where the frames lie on several ranks.
SEQUENCE_METHODS = ("dsp", "ulysses", "megatron")
METHODS = ("none", *SEQUENCE_METHODS, "cfg", *(f"cfg+{name}" for name in SEQUENCE_METHODS))
RELEASED_HEADS = 16  # of all three released models, whose patches are of 1x2x2 latents
RELEASED_PATCH = (1, 2, 2)


@dataclass(frozen=True)
class Parts:
    """A method, taken apart."""

    halves: bool  # whether guidance's two halves of the batch lie on two halves of the ranks
    sequence: str | None  # one of SEQUENCE_METHODS


def find_method(method: str) -> Parts:
    """PabError where there is no method of that name."""
    if method not in METHODS:
        close = difflib.get_close_matches(str(method), METHODS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise PabError(f"There is no parallel method named '{method}'.{hint} Known are {', '.join(METHODS)}.")
    names = method.split("+")
    return Parts("cfg" in names, names[-1] if names[-1] in SEQUENCE_METHODS else None)


@dataclass(frozen=True)
class Sizes:
    """What there is to share out: latent frames, tokens of each, attention heads, and halves of the batch."""

    frames: int
    tokens: int
    heads: int
    guided: bool = True

    @classmethod
    def of_latents(cls, config: Any, shape: tuple[int, ...], guided: bool = True) -> Sizes:
        """config: of the transformer, or None for the released size; shape of the latents [..., T, h, w]."""
        counts = [-(-size // patch) for size, patch in zip(shape[-3:], patch_of(config), strict=True)]
        return cls(counts[0], counts[1] * counts[2], heads_of(config), guided)

    @classmethod
    def of_clip(
        cls,
        spec: ModelSpec,
        config: Any = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance: float | None = None,
    ) -> Sizes:
        """Pixels and frames; None stands for the model's default. config: of the transformer; None: as released."""
        frames = spec.latent_frames(spec.num_frames if num_frames is None else num_frames)
        sides = (spec.height if height is None else height, spec.width if width is None else width)
        shape = (frames, *(side // spec.space_factor for side in sides))
        return cls.of_latents(config, shape, (spec.guidance if guidance is None else guidance) != 1)


def heads_of(config: Any) -> int:
    """Attention heads by a transformer's config; None: of the released models."""
    if config is None:
        return RELEASED_HEADS
    return config.num_heads if hasattr(config, "num_heads") else config.num_attention_heads


def patch_of(config: Any) -> tuple[int, int, int]:
    """Latents of a token along time, height and width."""
    if config is None:
        return RELEASED_PATCH
    patch = config.patch_size
    return (1, patch, patch) if isinstance(patch, int) else tuple(patch)


def most_ranks(method: str, sizes: Sizes) -> int:
    """The largest number of ranks that all have work of their own; PabError where there is no such method."""
    parts = find_method(method)
    if parts.halves and not sizes.guided:
        return 1
    # A rank holds whole frames between temporal attentions, and in them whole tokens or heads of all frames.
    inner = sizes.tokens if parts.sequence == "dsp" else sizes.heads
    return (2 if parts.halves else 1) * (min(sizes.frames, inner) if parts.sequence else 1)


def check_sizes(method: str, ranks: int, sizes: Sizes) -> None:
    """PabError where so many ranks cannot share this out: none, more than have work, an odd number for halves."""
    parts = find_method(method)
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise PabError(f"The number of ranks must be a whole number, 1 or more, not {ranks!r}.")
    if parts.halves and ranks % 2:
        raise PabError(
            f"The method {method} gives each half of the ranks one half of the guidance, but {ranks} cannot be halved: "
            f"take {'2' if parts.sequence is None else 'an even number of'} ranks, or another method."
        )
    most = most_ranks(method, sizes)
    if ranks <= most:
        return
    if parts.halves and not sizes.guided:
        why = "the guidance is off, so there are no halves to share out"
    elif parts.sequence is None:
        why = "it shares out nothing" if method == "none" else "guidance has two halves"
    else:
        inner = f"{sizes.tokens} tokens each" if parts.sequence == "dsp" else f"{sizes.heads} attention heads"
        why = f"the clip has {sizes.frames} latent frames and {inner}"
    raise PabError(
        f"The method {method} can use {most} ranks at most, not {ranks}: {why}. Take fewer, or another method."
    )
