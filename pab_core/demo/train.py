"""Trains the demo model from nothing: `python -m pab_core.demo.train --output FOLDER`, about 25 minutes on one H200.

    video autoencoder on rendered clips -> bank of latents -> transformer and text encoder -> checkpoint folder

With --family latte or --family open-sora-plan it trains that family's demo model, which reads its prompts with the
first one's text encoder; see train_noise.py. With --rehearse everything runs for some seconds at a small size, also on
a CPU.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..autoencoders.open_sora import OpenSoraVAE
from . import train_dit, train_noise, train_vae
from .architecture import SCHEDULER, TEXT_ENCODER, TRANSFORMER, VAE
from .checkpoint_files import fit_preview, half, rounded, write_json, write_weights
from .clip_source import HEIGHT, WIDTH, ClipSource
from .families import FAMILIES

WEIGHTS = Path(__file__).parent / "weights"


def export(folder: Path, vae: OpenSoraVAE, model: train_dit.TextToLatents, preview: Tensor) -> None:
    """Writes a checkpoint in the released layout, at half precision."""
    config = VAE | {
        "scale": [round(float(v), 5) for v in vae.scale.flatten()],
        "shift": [round(float(v), 5) for v in vae.shift.flatten()],
        "preview_matrix": rounded(preview),
    }
    text_config = TEXT_ENCODER | {"architectures": ["T5EncoderModel"], "model_type": "t5"}
    write_json(folder / "transformer" / "config.json", TRANSFORMER)
    write_json(folder / "vae" / "config.json", config)
    write_json(folder / "text_encoder" / "config.json", text_config)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    text = half(model.text_encoder)
    text.pop("encoder.embed_tokens.weight", None)  # one tensor with shared.weight
    for name, weights in (("transformer", half(model.transformer)), ("vae", half(vae)), ("text_encoder", text)):
        write_weights(folder / name, weights)


def warm_up(device: torch.device, folder: Path) -> None:
    """Compiles the transformer's training step, on random latents: another process finds it in the compiler's cache."""
    size = (TRANSFORMER["in_channels"], *train_vae.latent_shape())
    latents = torch.randn(512, *size, device=device).half()
    tokens = torch.randint(3, 200, (512, train_dit.WORDINGS, train_dit.MAX_TOKENS), device=device)
    bank = train_dit.Bank(latents, tokens.to(torch.uint8))
    train_dit.train_dit(train_dit.FlowObjective(), train_dit.DitSettings(seconds=4), bank, bank, folder, log_every=20)


def train_first(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Writes the first demo model's checkpoint; -> the loss curves."""
    compiled = not args.rehearse
    vae_settings = train_vae.VaeSettings(args.vae_seconds)
    dit_settings = train_dit.DitSettings(args.dit_seconds, args.clips)
    if args.rehearse:
        vae_settings = replace(vae_settings, clips=1, images=4, check_clips=1, log_every=20)
        dit_settings = replace(dit_settings, batch=2)

    curves: dict[str, Any] = {}
    if args.vae_weights:
        vae = OpenSoraVAE.from_config(VAE).to(device)
        vae.load_state_dict({**vae.state_dict(), **load_file(args.vae_weights, device=str(device))})
    else:
        vae, curves["vae"] = train_vae.train_vae(vae_settings, args.output, device, compiled=compiled)
    render_chunk = vae_settings.clips
    source = ClipSource(device, seed=2, compiled=compiled, chunk=render_chunk)
    bank = train_dit.encode_bank(vae, source, dit_settings.clips, WEIGHTS / "tokenizer", fit_scale=True)
    print("bank", tuple(bank.latents.shape), flush=True)
    preview = fit_preview(vae, ClipSource(device, seed=3, compiled=compiled, chunk=render_chunk), render_chunk)
    check_source = ClipSource(device, seed=4, compiled=compiled, split="held_out", chunk=render_chunk)
    check = train_dit.encode_bank(vae, check_source, render_chunk * 32, WEIGHTS / "tokenizer", fit_scale=False)
    model, curves["dit"] = train_dit.train_dit(
        train_dit.FlowObjective(), dit_settings, bank, check, args.output, compiled=compiled
    )
    export(args.output, vae, model, preview)
    parameters = sum(p.numel() for p in (*model.parameters(), *vae.parameters()))
    print(f"exported {parameters / 1e6:.2f} M parameters to {args.output}", flush=True)
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--family", choices=("stdit3", *FAMILIES), default="stdit3", help="whose demo model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-seconds", type=float, default=480)
    parser.add_argument("--dit-seconds", type=float, default=600)
    parser.add_argument("--clips", type=int, default=24576, help="size of the bank of latents")
    parser.add_argument(
        "--first", type=Path, default=WEIGHTS, help="the first demo model, whose parts the other families' use"
    )
    parser.add_argument("--vae-weights", type=Path, help="skip the autoencoder's training, use these safetensors")
    parser.add_argument("--warm-up", action="store_true", help="only compile the transformer's training step")
    parser.add_argument("--rehearse", action="store_true", help="a few seconds of everything, uncompiled")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.family == "stdit3":
        curves = warm_up(device, args.output) if args.warm_up else train_first(args, device)
    else:
        settings = train_noise.NoiseSettings(
            args.dit_seconds, args.vae_seconds, args.clips, vae_weights=args.vae_weights, rehearse=args.rehearse
        )
        run = train_noise.warm_up if args.warm_up else train_noise.train
        curves = run(FAMILIES[args.family], settings, args.first, args.output, device)
    if torch.cuda.is_available():
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    if curves:
        about = {"family": args.family, "device": _device_name(device), "size": [WIDTH, HEIGHT]}
        write_json(args.output / "training_curves.json", curves | about)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
