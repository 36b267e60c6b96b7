"""The words on the page's controls, which change when the language does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from .texts import text

Properties = dict[str, "str | Callable[[str], Any]"]  # property -> key of a text, or what gives it for a language


class Labels:
    """Knows every control with words on it."""

    def __init__(self, language: str = "en"):
        self._language = language
        self._known: list[tuple[Any, Properties]] = []

    def __call__(self, kind: Callable[..., Any], *args: Any, words: Properties, **options: Any) -> Any:
        """Makes a control with its words in the first language."""
        made = kind(*args, **_properties(words, self._language), **options)
        self._known.append((made, words))
        return made

    @property
    def controls(self) -> list[Any]:
        return [control for control, _ in self._known]

    def updates(self, language: str) -> list[Any]:
        """For `controls`, in their order."""
        return [gr.update(**_properties(words, language)) for _, words in self._known]


def _properties(words: Properties, language: str) -> dict[str, Any]:
    return {name: text(key, language) if isinstance(key, str) else key(language) for name, key in words.items()}
