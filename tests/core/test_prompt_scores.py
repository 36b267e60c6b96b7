"""The sentences that Open-Sora 1.2 reads at the end of a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from pab_core.errors import PabError
from pab_core.prompt_scores import CAMERA_MOTIONS, PromptScores


@pytest.mark.parametrize(
    ("scores", "prompt"),
    [
        (PromptScores(), "a cat. aesthetic score: 6.5."),
        (PromptScores(aesthetic=None), "a cat."),
        (PromptScores(7, 4, "pan left"), "a cat. aesthetic score: 7.0. motion score: 4.0. camera motion: pan left."),
        (PromptScores(None, 12.25), "a cat. motion score: 12.2."),
        (PromptScores(None, 0, "static"), "a cat. motion score: 0.0. camera motion: static."),
    ],
)
def test_the_sentences_stand_at_the_end(scores: PromptScores, prompt: str):
    assert scores.add_to("a cat.") == prompt
    assert scores.add_to(prompt) == prompt  # not twice


def test_what_the_user_wrote_stays():
    scores = PromptScores(motion=5, camera="zoom in")
    assert scores.add_to("a cat. Motion Score: 30.0.") == (
        "a cat. Motion Score: 30.0. aesthetic score: 6.5. camera motion: zoom in."
    )


def test_an_empty_prompt_stays_empty():
    assert PromptScores(motion=5).add_to("  ") == "  "


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aesthetic": 10.5}, "aesthetic score must be a number from 0 to 10, not 10.5"),
        ({"aesthetic": float("nan")}, "not nan"),
        ({"aesthetic": True}, "not True"),
        ({"motion": -1}, "motion score must be a number from 0 to 100, not -1"),
        ({"motion": "5"}, "not '5'"),
        ({"camera": "dolly"}, f"'dolly' is not one .*{', '.join(CAMERA_MOTIONS)}"),
    ],
)
def test_bad_scores_are_explained(settings: dict[str, Any], words: str):
    with pytest.raises(PabError, match=words):
        PromptScores(**settings)
