"""What is done to prompts before the tokenizer reads them, for each family as its captions were cleaned in training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pab_core.errors import PabError
from pab_core.prompt_cleaning import CLEANINGS, clean_prompt, clean_text

# What the authors' own functions make of these (VideoSys, pipelines of Open-Sora, Latte and Open-Sora-Plan).
CLEANED = {
    "A small CACTUS with a happy face in the Sahara desert.": "a small cactus with a happy face in the sahara desert.",
    "  two\n\tdogs ": "two dogs",
    "a cat — sitting on a “mat”": 'a cat - sitting on a "mat"',
    "see https://example.com/x?y=1 a red ball": "see ?y=1 a red ball",
    "<p>a <b>red</b> ball</p> &amp; a cube": "a red ball a cube",
    "a @someone dances, photo.jpg 640x480 #123 page 12 free download": "a dances",
    "a drone view of waves. aesthetic score: 6.5. motion score: 4.0.": (
        "a drone view of waves. aesthetic score: 6.5. motion score: 4.0."
    ),
    "dawn,then rain": "dawn, then rain",
    "this-is-my_cute_cat": "this is my cute cat",
    "the children &quot;rest&quot; (outdoors) [4k]": 'the children "rest" outdoors 4k',
    "一只猫 a cat": "a cat",
    '"a quoted prompt"': "a quoted prompt",
}


@pytest.mark.parametrize("prompt", CLEANED)
def test_as_the_authors_clean(prompt: str):
    assert clean_prompt(prompt, "t5") == CLEANED[prompt]


def test_it_is_done_twice():
    from diffusers.pipelines.latte.pipeline_latte import LattePipeline

    prompt = '""a" quoted prompt" -'
    once = LattePipeline.__new__(LattePipeline)._clean_caption(prompt)
    assert once != clean_prompt(prompt, "t5") == 'a" quoted prompt'


def test_plain():
    assert clean_prompt("  A  Red\n ball <b>, 640x480 — 猫 ") == "a red ball <b>, 640x480 — 猫"


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("prompt", ["", "  ", "\n\t"])
def test_an_empty_prompt(cleaning: str, prompt: str):
    with pytest.raises(PabError, match="The prompt is empty"):
        clean_prompt(prompt, cleaning)
    assert clean_text(prompt, cleaning) == ""


@pytest.mark.parametrize("prompt", ["一只红色的球", "photo.png", "https://example.com", "***"])
def test_a_prompt_of_which_cleaning_leaves_nothing(prompt: str):
    with pytest.raises(PabError, match="Nothing is left of the prompt"):
        clean_prompt(prompt, "t5")
    assert clean_prompt(prompt, "plain") == prompt


def test_an_unknown_cleaning():
    with pytest.raises(PabError, match="no prompt cleaning 'deep'; known are plain, t5"):
        clean_prompt("a cat", "deep")


@pytest.mark.parametrize(("module", "package"), [("bs4", "beautifulsoup4"), ("ftfy", "ftfy")])
def test_without_its_packages_it_warns_and_does_less(monkeypatch: pytest.MonkeyPatch, module: str, package: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.warns(RuntimeWarning, match=f"for that, install {package}"):
        assert clean_prompt(" A <b>Cat</b> ", "t5") == "a <b>cat</b>"


def test_plain_cleaning_loads_no_slow_library():
    script = (
        "import sys; from pab_core.prompt_cleaning import clean_prompt; clean_prompt('a cat'); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'bs4', 'ftfy'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr
