"""What the trainings write: weights at half precision, config files, the colours of previews."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..autoencoders import VideoVAE
from .clip_source import ClipSource


def half(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().half().contiguous().cpu() for key, value in module.state_dict().items()}


def write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def rounded(matrix: Tensor) -> list[list[float]]:
    """For a config.json."""
    return [[round(float(value), 5) for value in row] for row in matrix]


@torch.no_grad()
def fit_preview(vae: VideoVAE, source: ClipSource, clips: int = 16) -> Tensor:
    """Least squares from latents (and 1) to the mean colour of the pixels below each -> [C + 1, 3]."""
    video, _ = source.render(source.scenes(clips))
    z = torch.cat([vae.encode(clip[None]) for clip in video])
    moments = torch.linspace(0, video.shape[2] - 1, z.shape[2]).round().long().to(video.device)
    colours = nn.functional.avg_pool3d(video[:, :, moments], (1, vae.spatial_factor, vae.spatial_factor))
    a = nn.functional.pad(z.movedim(1, -1).flatten(0, -2), (0, 1), value=1.0)
    return torch.linalg.lstsq(a.cpu(), colours.movedim(1, -1).flatten(0, -2).cpu()).solution
