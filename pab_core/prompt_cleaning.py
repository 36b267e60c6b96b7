"""What is done to a prompt before it is split into tokens: the cleaning that a model's captions had in training."""

import importlib.util
import warnings

from .errors import PabError

# "plain" is the demo models', "t5" that of Open-Sora, Latte and Open-Sora-Plan, which comes from DeepFloyd-IF.
CLEANINGS = ("plain", "t5")


def clean_prompt(prompt: str, cleaning: str = "plain") -> str:
    """A prompt as the tokenizer is to read it; PabError if nothing is left of it."""
    text = clean_text(prompt, cleaning)
    if text:
        return text
    if prompt.strip():
        raise PabError(
            "Nothing is left of the prompt after the cleaning that the model was trained with, which drops Chinese "
            "characters, web addresses, file names and long numbers. Say in English words what the video should show."
        )
    raise PabError("The prompt is empty: say in a few words what the video should show.")


def clean_text(text: str, cleaning: str = "plain") -> str:
    """As clean_prompt, but the text may be empty before or after, as a negative prompt usually is.

    "plain": lower case, single blanks. "t5": diffusers' caption cleaning, twice, as the authors of the three models do;
    it needs beautifulsoup4 and ftfy. Open-Sora's own copy of it trims blanks at one more place, which matters only to
    prompts that begin or end with several punctuation marks.
    """
    if cleaning not in CLEANINGS:
        raise PabError(f"There is no prompt cleaning '{cleaning}'; known are {', '.join(CLEANINGS)}.")
    if cleaning == "plain":
        return " ".join(text.lower().split())
    missing = [name for name, module in (("beautifulsoup4", "bs4"), ("ftfy", "ftfy")) if not _installed(module)]
    if missing:
        warnings.warn(
            "Prompts are only put into lower case, not cleaned as in the model's training; for that, install "
            f"{' and '.join(missing)}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return text.lower().strip()
    from diffusers.pipelines.latte.pipeline_latte import LattePipeline  # seconds to import

    # Cleaning asks nothing of the pipeline's parts, so it can do without them.
    pipeline = LattePipeline.__new__(LattePipeline)
    return pipeline._text_preprocessing(text, clean_caption=True)[0]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
