"""What a model's name or folder stands for, and the parts of its checkpoint that all models have alike."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import PabError
from .loading import load_weights, read_config
from .models.registry import MODELS, ModelSpec, model_spec
from .models.stdit3 import STDiT3Config
from .noise_sampling import NoiseSampler
from .sampling import RectifiedFlow
from .text import TextEncoder

if TYPE_CHECKING:  # diffusers takes a second to import, and not everything that asks for a model decodes
    from .autoencoders.open_sora import OpenSoraVAE

DEMO_FOLDER = Path(__file__).parent / "demo" / "weights"
_VOCABULARIES = ("spiece.model", "tokenizer.json")
Sampler = RectifiedFlow | NoiseSampler
# How the authors of each family sample, for models of which no scheduler_config.json is at hand.
SAMPLERS: dict[str, Sampler] = {
    "stdit3": RectifiedFlow(),
    "latte": NoiseSampler(
        "DDIMScheduler",
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False},
    ),
    "open-sora-plan": NoiseSampler("PNDMScheduler"),
}


def find_model(model: str | Path) -> tuple[ModelSpec, Path]:
    """A model's name or folder -> what is known of it, and where its files lie.

    Raises:
        PabError: unknown name, or a model whose files are not here.
    """
    folder = Path(model)
    if str(model) == "demo":
        if not (DEMO_FOLDER / "transformer").is_dir():
            raise PabError(
                "This copy carries no trained weights of the demo model. Make them with `python -m pab_core.demo.train "
                f"--output {DEMO_FOLDER}` on a GPU, or give the folder of a checkpoint instead of 'demo'."
            )
        return model_spec("demo"), DEMO_FOLDER
    if folder.is_dir():
        depth = STDiT3Config.from_dict(read_config(folder / "transformer")).depth
        given = read_config(folder, "pab.json") if (folder / "pab.json").is_file() else {}
        base = model_spec(given.pop("base", "open-sora"))
        unknown = given.keys() - set(base.__dataclass_fields__)
        if unknown:
            raise PabError(f"{folder / 'pab.json'} has entries that are not known: {', '.join(sorted(unknown))}.")
        return replace(base, **{"name": folder.name, "title": folder.name, "depth": depth, **given}), folder
    spec = model_spec(str(model))
    raise PabError(f"{spec.title} is not downloaded. Give the folder of its checkpoint instead of '{model}'.")


def known_model(model: str | Path) -> tuple[ModelSpec, Sampler]:
    """What the schedule of a model's runs depends on, by name or from a checkpoint's folder; no weights are needed."""
    if str(model) in MODELS and not (str(model) == "demo" and (DEMO_FOLDER / "scheduler").is_dir()):
        spec = model_spec(str(model))
        return spec, SAMPLERS[spec.family]
    spec, folder = find_model(model)
    return spec, read_flow(folder)


def default_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The precision of weights and arithmetic on a device where the user names none: full on the CPU, half on a GPU."""
    return torch.float32 if device.type == "cpu" or spec.full_precision else torch.bfloat16


def read_flow(folder: Path) -> RectifiedFlow:
    """The sampler of a checkpoint's folder."""
    scheduler = read_config(folder / "scheduler", "scheduler_config.json")
    return RectifiedFlow(**{f.name: scheduler[f.name] for f in fields(RectifiedFlow) if f.name in scheduler})


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[OpenSoraVAE, Tensor | None]:
    """The video VAE of vae/, and the matrix [C + 1, 3] from latents to preview colours if its config has one."""
    from .autoencoders.open_sora import OpenSoraVAE

    config = read_config(folder)
    with torch.device("meta"):
        vae = OpenSoraVAE.from_config(config)
    load_weights(vae, folder, dtype, device)
    matrix = config.get("preview_matrix")
    return vae, None if matrix is None else torch.tensor(matrix)


def load_text_encoder(folder: Path, transformer: STDiT3Config, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    """T5 and its tokenizer from text_encoder/ and tokenizer/; PabError where they do not fit the transformer."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    config = T5Config.from_dict(read_config(folder / "text_encoder"))
    check_fit("text_encoder", config.d_model, "caption_channels", transformer.caption_channels)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    embedding = {"encoder.embed_tokens.weight": "shared.weight"}
    load_weights(model, folder / "text_encoder", dtype, device, tied=embedding)
    read_config(folder / "tokenizer", "tokenizer_config.json")
    # Without its vocabulary, transformers would quietly make a tokenizer that knows no word.
    if not any((folder / "tokenizer" / name).is_file() for name in _VOCABULARIES):
        raise PabError(f"{folder / 'tokenizer'} has no {' or '.join(_VOCABULARIES)}; it is incomplete, fetch it again.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PabError(
            f"The tokenizer in {folder / 'tokenizer'} is damaged or of an unknown kind ({reason}); fetch it again."
        ) from error
    return TextEncoder(model, tokenizer, transformer.model_max_length)


def check_fit(part: str, width: int, entry: str, expected: int) -> None:
    """PabError unless a part's output is as wide as the transformer's config says in `entry`."""
    if width != expected:
        raise PabError(
            f"The {part} gives {width} channels, but the transformer's {entry} is {expected}: these parts of the "
            "checkpoint do not belong together."
        )
