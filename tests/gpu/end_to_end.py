"""From a cached embedding to frames in memory on one or several GPUs: `python tests/gpu/end_to_end.py --ranks 2`.

Open-Sora 1.2 and its VAE of released size with random weights: 51 frames of 480x854 in 30 steps. Denoising is shared by
`--method`, decoding frame by frame. Writing the mp4 is timed where ffmpeg is, of a moving pattern with some grain: what
random weights make is noise, on which an encoder works far longer than on a video. `--tiny` tries it out on the CPU.
Not collected by pytest: it needs GPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pab_core.acceleration.choice import use_speed_in_decoding
from pab_core.autoencoders import build_vae
from pab_core.evaluate.random_weights import random_pipe, random_text
from pab_core.models.stdit3 import STDiT3Config
from pab_core.parallel import attach, split_decode

ROOT = Path(__file__).resolve().parent.parent.parent
BOUND = timedelta(seconds=300)
FPS = 24


def made(given: argparse.Namespace, rank: int) -> Any:
    """The pipeline of this rank, shared with the others."""
    device = torch.device("cpu") if given.tiny else torch.device("cuda", rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    config = STDiT3Config(hidden_size=32, num_heads=2, depth=1, caption_channels=16) if given.tiny else None
    pipe: Any = random_pipe("open-sora", device, config, given.speed)
    torch.manual_seed(0)
    with device:
        pipe.vae = build_vae("stdit3", {}).to(torch.float32 if given.tiny else torch.bfloat16).eval()
    pipe.vae.requires_grad_(False)
    use_speed_in_decoding(pipe.speed, device, pipe.vae)
    return split_decode(attach(pipe, given.method)) if given.ranks > 1 else pipe


def rank_main(given: argparse.Namespace) -> None:
    if given.ranks > 1:
        store = dist.FileStore(str(Path(given.folder) / "meeting"), given.ranks)  # pyright: ignore[reportPrivateImportUsage]
        backend = "gloo" if given.tiny else "nccl"
        dist.init_process_group(backend, store=store, rank=given.rank, world_size=given.ranks, timeout=BOUND)
    pipe = made(given, given.rank)
    frames, height, width = (17, 32, 32) if given.tiny else (51, 480, 854)
    size = {"num_frames": frames, "height": height, "width": width}
    text = random_text(pipe, given.tokens)
    policies = given.policies.split(",")
    print_here = given.rank == 0
    with torch.no_grad():
        for policy in policies:
            table = pipe.schedule(policy, steps=given.steps, **size)
            spent: list[tuple[float, float, float]] = []
            for number in range(given.repeat + 1):
                begin = time.perf_counter()
                noise = pipe.prepare_latents(number, **size)
                latents = pipe.denoise(noise, text, table, steps=given.steps, **size)
                finish(pipe.device)
                denoised = time.perf_counter()
                video = pipe.decode(latents, frames)
                finish(pipe.device)
                decoded = time.perf_counter()
                written = write(pattern(*video.shape[:3]), given.folder) if print_here else 0.0
                spent.append((denoised - begin, decoded - denoised, written))
            if print_here:
                medians = [statistics.median(column) for column in zip(*spent[1:], strict=True)]
                peak = 0.0 if given.tiny else torch.cuda.max_memory_allocated() / 2**30
                names = ", ".join(f"{n} {s:.2f} s" for n, s in zip(("denoise", "decode", "mp4"), medians, strict=True))
                total = sum(medians)
                told = f"{policy:8} {pipe.speed:5} {names}: {total:.2f} s, {frames / total:.1f} frames a second"
                print(f"{told}, {frames / FPS:.2f} s of video; peak {peak:.1f} GiB", flush=True)
    if given.ranks > 1:
        dist.barrier()
    os._exit(0)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pattern(frames: int, height: int, width: int) -> torch.Tensor:
    """Waves that move over the picture, and grain: uint8 [T, H, W, 3]."""
    t, y, x = (torch.arange(n, dtype=torch.float32) for n in (frames, height, width))
    across = torch.sin(x / 37 + t[:, None] / 5)[:, None]  # [T, 1, W]
    down = torch.sin(y / 13 - t[:, None] / 7)[:, :, None]  # [T, H, 1]
    shades = torch.stack([128 + 70 * across + 40 * down, 128 - 50 * across + 0 * down, 128 + 60 * across * down], -1)
    return (shades + 4 * torch.randn_like(shades)).clamp(0, 255).to(torch.uint8)


def write(video: torch.Tensor, folder: str) -> float:
    """Seconds; 0 where there is no ffmpeg."""
    try:
        from pab_core.video_io import write_mp4
    except ImportError:
        return 0.0
    begin = time.perf_counter()
    try:
        write_mp4(Path(folder) / "made.mp4", video, FPS, {}, force=True)
    except RuntimeError:
        return 0.0
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--method", default="cfg")
    parser.add_argument("--policies", default="off,pab246")
    parser.add_argument("--speed", default="auto")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        rank_main(given)
        return
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    # NVLink's multicast is of no use to these exchanges, and some hosts do not stand it.
    environment.setdefault("NCCL_NVLS_ENABLE", "0")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(given.ranks)]
        for process in ranks:
            process.wait()


if __name__ == "__main__":
    main()
