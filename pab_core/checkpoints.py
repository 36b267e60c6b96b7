"""What a model's name, folder or file stands for, and the parts of its checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .errors import PabError
from .hub import folder_of, is_hub_id, model_of
from .loading import load_weights, read_config, read_shapes, weight_files
from .models.detect import check_family, detect
from .models.registry import ARCHITECTURES, MODELS, ModelSpec, TransformerConfig, model_spec
from .models.stdit3 import STDiT3Config
from .noise_sampling import NoiseSampler
from .sampling import RectifiedFlow

if TYPE_CHECKING:  # these bring diffusers and transformers, which take seconds to import
    from .autoencoders import VideoVAE
    from .embedding_cache import CachedTextEncoder, EmbeddingCache

_DEMO = Path(__file__).parent / "demo"
# Name -> folder. All read their prompts with the first one's text encoder and tokenizer.
DEMOS = {"demo": _DEMO / "weights", "demo-latte": _DEMO / "weights_latte", "demo-plan": _DEMO / "weights_plan"}
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
# The released model of each family that a folder of unknown name is taken for.
RELEASED = {"stdit3": "open-sora", "latte": "latte", "open-sora-plan": "open-sora-plan"}


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of a model lie: folders with config.json and safetensors, or single safetensors files.

    A part that is None is not at hand; what needs it says so.
    """

    spec: ModelSpec
    config: TransformerConfig
    transformer: Path
    vae: Path | None
    text_encoder: Path | None
    tokenizer: Path | None
    spare_tokenizer: Path | None  # for a text encoder that comes without one
    sampler: Sampler

    def check_complete(self) -> None:
        """PabError if a part is missing that a video cannot be made without."""
        for part, option in (("vae", "--vae"), ("text_encoder", "--text-encoder")):
            if getattr(self, part) is None:
                raise PabError(
                    f"{self.spec.title} in {self.transformer} comes without a {part}; it is incomplete. Fetch that "
                    f"part beside it, or give its folder or file with {option}."
                )


def models_folder() -> Path:
    """Where downloaded models are kept: $PAB_MODELS, else a folder of the user's cache."""
    return Path(os.environ.get("PAB_MODELS") or Path.home() / ".cache" / "pab" / "models")


def find_model(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    spare_tokenizer: Path | None = None,
) -> Checkpoint:
    """A model's name, folder or file -> what is known of it, and where its parts lie.

    Args:
        model: a name of `MODELS`, or the Hub's id of a repository that was downloaded; a folder that holds
            transformer/, vae/, text_encoder/, tokenizer/ and scheduler/, of which only the transformer must be there; a
            folder or a safetensors file of a transformer alone.
        vae, text_encoder, tokenizer: folders or safetensors files to take instead of the model's own.
        spare_tokenizer: T5's, for a text encoder in a single file that lies beside none.

    Raises:
        PabError: unknown name, or a model whose files are not here or are of no family known here.
    """
    name = str(model)
    path = Path(model)
    base = None
    if name in DEMOS:
        base, path = model_spec(name), DEMOS[name]
        if not (path / "transformer").is_dir():
            raise PabError(
                f"This copy carries no trained weights of {base.title}. Make them with `python -m pab_core.demo.train "
                f"{'' if name == 'demo' else f'--family {base.family} '}--output {path}` on a GPU, or give the folder "
                f"of a checkpoint instead of '{name}'."
            )
    elif not path.exists() and is_hub_id(name) and model_of(name) is None:
        path = models_folder() / folder_of(name)
        if not path.is_dir():
            raise PabError(
                f"There is no folder '{name}' here, and no such repository has been downloaded from the Hub. Fetch it "
                f"with `pab download {name}`, or give the path of a checkpoint."
            )
    elif not path.exists():
        name = model_of(name) or name
        base = model_spec(name)
        path = models_folder() / name
        if not path.is_dir():
            raise PabError(
                f"{base.title} is not downloaded. Fetch it with `pab download {name}`, or give the folder of its "
                f"checkpoint instead of '{name}'."
            )
    transformer = _transformer(path)
    found = detect(read_shapes(weight_files(transformer)))
    given_config = found.config
    if transformer.is_dir():
        given_config = read_config(transformer)
        check_family(given_config, found.family, str(transformer / "config.json"))
    config = ARCHITECTURES[found.family].read_config(given_config)
    spec = replace(base, depth=config.depth) if base else _own_spec(path, found.family, config)
    if spec.family != found.family:
        raise PabError(f"{transformer} holds a transformer of the family '{found.family}', not that of {spec.title}.")
    folder = path if transformer != path else None
    text = DEMOS["demo"] if name in DEMOS else folder
    return Checkpoint(
        spec,
        config,
        transformer,
        # Latte comes with two, of which its authors use the one that looks at neighbouring frames.
        _part(folder, vae, "vae_temporal_decoder", "vae"),
        _part(text, text_encoder, "text_encoder"),
        _part(text, tokenizer, "tokenizer"),
        spare_tokenizer,
        read_sampler(spec.family, folder),
    )


def _transformer(path: Path) -> Path:
    """The transformer's folder or file in what the user gave."""
    if path.is_file():
        return path
    for name in ("transformer", "65x512x512", "221x512x512"):  # the latter as Open-Sora-Plan's repository has them
        if (path / name).is_dir():
            return path / name
    if any(path.glob("*.safetensors")):
        return path
    # The message is that of a pipeline's folder, whatever else it may be.
    return path / "transformer"


def _part(folder: Path | None, given: str | Path | None, *names: str) -> Path | None:
    """What the user gave, else the first of these that the folder has."""
    if given is not None:
        if not Path(given).exists():
            raise PabError(f"There is no file or folder {given}, which is to be the model's {names[-1]}.")
        return Path(given)
    return next((folder / name for name in names if folder is not None and (folder / name).is_dir()), None)


def _own_spec(path: Path, family: str, config: TransformerConfig) -> ModelSpec:
    """What is known of a user's checkpoint: as the released model of its family, changed as its pab.json says."""
    about = read_config(path, "pab.json") if (path / "pab.json").is_file() else {}
    released = RELEASED[family]
    if family == "open-sora-plan" and getattr(config, "video_length", 0) > MODELS[released].latent_frames(65):
        released = "open-sora-plan-221"
    base = model_spec(about.pop("base", released))
    if base.family != family:
        raise PabError(
            f"{path / 'pab.json'} says that the model is like {base.title}, but its transformer is of the family "
            f"'{family}'; correct its entry 'base'."
        )
    unknown = about.keys() - set(base.__dataclass_fields__)
    if unknown:
        raise PabError(f"{path / 'pab.json'} has entries that are not known: {', '.join(sorted(unknown))}.")
    own: dict[str, Any] = {"name": path.stem, "title": path.stem, "depth": config.depth}
    if isinstance(config, STDiT3Config):
        own["max_tokens"] = config.model_max_length
    return replace(base, **(own | about))


def known_model(model: str | Path) -> tuple[ModelSpec, Sampler]:
    """What the schedule of a model's runs depends on, by name or from a checkpoint's folder; no weights are needed."""
    name = str(model)
    if name in MODELS and not (name in DEMOS and (DEMOS[name] / "scheduler").is_dir()):
        spec = model_spec(name)
        return spec, SAMPLERS[spec.family]
    found = find_model(model)
    return found.spec, found.sampler


def default_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The precision of weights and arithmetic on a device where the user names none: full on the CPU, half on a GPU."""
    return torch.float32 if device.type == "cpu" or spec.full_precision else torch.bfloat16


def read_sampler(family: str, folder: Path | None) -> Sampler:
    """The sampler of a pipeline's folder, or the authors' where it has none."""
    usual = SAMPLERS[family]
    if folder is None or not (folder / "scheduler").is_dir():
        return usual
    config = read_config(folder / "scheduler", "scheduler_config.json")
    if isinstance(usual, RectifiedFlow):
        return RectifiedFlow(**{f.name: config[f.name] for f in fields(RectifiedFlow) if f.name in config})
    # The authors' settings go before the file's where both say something: the released Latte-1 was run with them.
    return NoiseSampler.from_config(config | dict(usual.settings))


def load_transformer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, storage: Literal["fp8"] | None = None
) -> nn.Module:
    """`storage`: see loading.load_weights."""
    with torch.device("meta"):
        transformer = ARCHITECTURES[checkpoint.spec.family].build(checkpoint.config)
    load_weights(transformer, checkpoint.transformer, dtype, device, storage=storage)
    return transformer.eval()


def load_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> tuple[VideoVAE | None, Tensor | None]:
    """The video VAE, and the matrix [C + 1, 3] from latents to preview colours if its config has one."""
    if checkpoint.vae is None:
        return None, None
    from .autoencoders import LatteVAE, build_vae

    config = dict(read_config(checkpoint.vae)) if checkpoint.vae.is_dir() else {}
    matrix = config.pop("preview_matrix", None)  # ours alone: diffusers warns of entries that it does not know
    with torch.device("meta"):
        vae = build_vae(checkpoint.spec.family, config)
    former = vae.former_names() if isinstance(vae, LatteVAE) else None
    load_weights(vae, checkpoint.vae, dtype, device, tied=former, allow_pickle_tensors=True)
    check_fit("vae", vae.latent_channels, "in_channels", checkpoint.config.in_channels)
    return vae.eval(), None if matrix is None else torch.tensor(matrix)


def load_text_encoder(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, cache: EmbeddingCache | None = None
) -> CachedTextEncoder | None:
    """T5 and its tokenizer, checked now; the weights are read when a prompt comes that `cache` has not."""
    if checkpoint.text_encoder is None:
        return None
    from .text_encoder_loading import cached_text_encoder

    return cached_text_encoder(
        checkpoint.text_encoder,
        checkpoint.tokenizer,
        checkpoint.config.caption_channels,
        checkpoint.spec.max_tokens,
        dtype,
        device,
        checkpoint.spec.cleaning,
        checkpoint.spare_tokenizer,
        cache=cache,
    )


def check_fit(part: str, width: int, entry: str, expected: int) -> None:
    """PabError unless a part's output is as wide as the transformer's config says in `entry`."""
    if width != expected:
        raise PabError(
            f"The {part} gives {width} channels, but the transformer's {entry} is {expected}: these parts of the "
            "checkpoint do not belong together."
        )
