"""The options that the commands of `pab` share, and how their text becomes settings.

Torch and all that stands on it is imported inside the functions, so that help and mistakes are answered at once.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import PabError

if TYPE_CHECKING:
    from .broadcast import AnyPolicy
    from .checkpoints import Sampler
    from .models.registry import ModelSpec
    from .prompt_scores import PromptScores

# Boxes and colours are for people at a terminal; pipes and logs get plain lines.
STYLE: Any = "rich" if sys.stderr.isatty() and sys.stdout.isatty() else None

# Numbers arrive as text: the core says itself, in its own words, what it does not take.
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="demo, a downloaded model, or a checkpoint's folder or file.")
]
KnownModelOption = Annotated[str, typer.Option("--model", "-m", help="demo, open-sora, latte, or a folder.")]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy", "-p", help="off, pab246 or any pabXYZ, tgate, delta-dit, teacache, steps20, ... or a file."
    ),
]
SpatialOption = Annotated[str | None, typer.Option("--spatial", metavar="N", help="Range of spatial attention.")]
TemporalOption = Annotated[str | None, typer.Option("--temporal", metavar="N", help="Range of temporal attention.")]
CrossOption = Annotated[str | None, typer.Option("--cross", metavar="N", help="Range of cross-attention.")]
MlpOption = Annotated[bool | None, typer.Option("--mlp/--no-mlp", help="MLP broadcast on or off.")]
WindowOption = Annotated[
    str | None,
    typer.Option("--window", metavar="A:B", help="Part of the run in which attention is reused, such as 0.3:0.85."),
]
StepsOption = Annotated[str | None, typer.Option("--steps", metavar="N", help="Denoising steps.")]
FramesOption = Annotated[
    str | None, typer.Option("--frames", metavar="N", help="Length of the clip: frames, or 2s, 4s, 8s, 16s.")
]
ResolutionOption = Annotated[
    str | None, typer.Option("--resolution", metavar="NAME", help="Open-Sora's: 144p, 240p, 360p, 480p or 720p.")
]
AspectOption = Annotated[str, typer.Option("--aspect", metavar="W:H", help="With --resolution: 16:9, 9:16, 1:1, ...")]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", metavar="NAME", help="For Latte and Open-Sora-Plan: ddim, pndm, euler, ...")
]
VaeOption = Annotated[str | None, typer.Option("--vae", metavar="PATH", help="Instead of the model's own.")]
TextEncoderOption = Annotated[
    str | None,
    typer.Option("--text-encoder", metavar="PATH", help="T5 v1.1 XXL: its folder, or t5xxl_fp16.safetensors."),
]
SizeOption = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Size in pixels, such as 192x128.")]
SeedOption = Annotated[str | None, typer.Option("--seed", metavar="N", help="Default: a random one, which is told.")]
OffloadOption = Annotated[
    str | None,
    typer.Option(
        "--offload",
        metavar="parts|blocks",
        help="For little GPU memory: text encoder, transformer and VAE are there one at a time, or even two blocks.",
    ),
]
KeptOption = Annotated[
    str,
    typer.Option("--kept", metavar="plain|fp8|host", help="Where results wait for reuse: on the GPU, or the host."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: cuda if there is one.")]
SpeedOption = Annotated[
    str,
    typer.Option(
        "--speed",
        metavar="auto|exact|fast|fp8",
        help="exact: as published; fast: fused kernels (GPU) or bfloat16 (CPU); fp8: eight bits, too.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def whole(text: str | None) -> Any:
    """A whole number if it is one; else the text as it is, which the core refuses in its own words."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def real(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def size_of(size: str | None, resolution: str | None = None, aspect: str = "16:9") -> dict[str, Any]:
    """Height and width in pixels, None where nothing is said."""
    if size is not None and resolution is not None:
        raise PabError("Give either --size or --resolution, not both.")
    if resolution is not None:
        from . import sizes

        height, width = sizes.size_of(resolution, aspect)
        return {"height": height, "width": width}
    if size is None:
        return {"height": None, "width": None}
    wide, found, tall = size.lower().replace("×", "x").partition("x")
    if not (found and wide.strip().isdecimal() and tall.strip().isdecimal()):
        raise PabError(f"'{size}' is not a size: write the width and the height in pixels, as in 192x128.")
    return {"height": int(tall), "width": int(wide)}


def frames_of(text: str | None) -> Any:
    """Frames of a length such as "51" or "4s"; else the text as it is, which the core refuses in its own words."""
    if text is None:
        return None
    from . import sizes

    return sizes.DURATIONS.get(text.strip().lower(), whole(text))


def sampler_of(spec: "ModelSpec", sampler: "Sampler", name: str | None) -> "Sampler":
    """The model's sampler, or the one of that name."""
    if name is None:
        return sampler
    from .noise_sampling import NoiseSampler

    if not isinstance(sampler, NoiseSampler):
        raise PabError(f"{spec.title} follows a rectified flow; other samplers do not fit it: leave --sampler out.")
    return sampler.named(name)


def scores_of(aesthetic: str | None, motion: str | None, camera: str | None) -> "PromptScores | None":
    """None where nothing is said."""
    if aesthetic is None and motion is None and camera is None:
        return None
    from .prompt_scores import PromptScores

    usual = PromptScores()
    return PromptScores(
        usual.aesthetic if aesthetic is None else real(aesthetic), None if motion is None else real(motion), camera
    )


def policy_of(
    spec: "ModelSpec",
    name: str,
    spatial: str | None = None,
    temporal: str | None = None,
    cross: str | None = None,
    mlp: bool | None = None,
    window: str | None = None,
) -> "AnyPolicy":
    from .broadcast import Window, customise

    return customise(
        name,
        spec.family,
        spec.depth,
        spatial=whole(spatial),
        temporal=whole(temporal),
        cross=whole(cross),
        mlp=mlp,
        window=None if window is None else Window.parse(window),
    )
