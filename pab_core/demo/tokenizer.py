"""Trains the demo model's tokenizer on the caption grammar: `python -m pab_core.demo.tokenizer FOLDER`."""

import io
import json
import re
import string
import sys
from pathlib import Path

from .architecture import MAX_TOKENS, VOCABULARY
from .captions import training_vocabulary_text


def train_tokenizer(folder: Path, captions: int = 20000, seed: int = 0) -> None:
    """Writes a T5 tokenizer (sentencepiece unigram) that transformers' AutoTokenizer loads.

    A word of the grammar is one token; every ASCII letter, digit and mark is one too, so any English prompt can be
    spelled.
    """
    import sentencepiece
    from transformers import AutoTokenizer

    text = list(training_vocabulary_text(captions, seed))
    words = sorted({word for line in text for word in re.findall(r"[a-z-]+", line)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="unigram",
        hard_vocab_limit=False,
        user_defined_symbols=[f"▁{word}" for word in words],  # one token a word of the grammar
        normalization_rule_name="identity",
        required_chars="▁" + string.ascii_lowercase + string.digits + string.punctuation,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": MAX_TOKENS,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    settings = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # adds tokenizer.json, which needs no conversion
    # It also rewrites the settings, in a form that transformers 4 cannot read.
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
