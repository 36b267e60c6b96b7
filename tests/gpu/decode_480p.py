"""Time of decoding a clip by Open-Sora's VAE of released size, random weights: `python tests/gpu/decode_480p.py`.

51 frames of 480x848 in bf16 (246 TFLOP): whole frames as many at once as given, with weights in either memory format,
with cuDNN's heuristics and with its search; each beside the time that the products alone would take at the rate of one
large matrix product. Not collected by pytest: it needs a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

from pab_core.autoencoders import build_vae

TFLOP = 246.3  # of the decoding, as `pab bench flops` counts


def seconds(run: Any, repeat: int) -> tuple[float, float]:
    """-> of the first run, and the median of the next."""
    found = []
    for _ in range(1 + repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[0], statistics.median(found[1:])


def set_layout(vae: nn.Module, channels_last: bool) -> None:
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            last = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            layout = last if channels_last else torch.contiguous_format
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--batches", default="4,17", help="frames that the image part decodes at once")
    given = parser.parse_args()
    device = torch.device("cuda")
    torch.manual_seed(0)
    with device:
        vae: Any = build_vae("stdit3", {}).to(torch.bfloat16).eval().requires_grad_(False)
    z = torch.randn(1, 4, 15, 60, 106, device=device, dtype=torch.bfloat16)
    big = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    _, product = seconds(lambda: [big @ big for _ in range(20)], 3)
    rate = 20 * 2 * 8192**3 / product / 1e12
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; 8192^3: {rate:.0f} TFLOP/s")
    print(f"floor of {TFLOP} TFLOP at that rate {TFLOP / rate:.2f} s")
    print("channels last  search  frames   first s  median s  TFLOP/s  peak GiB")
    for channels_last in (False, True):
        set_layout(vae, channels_last)
        for search in (False, True):
            torch.backends.cudnn.benchmark = search
            for batch in map(int, given.batches.split(",")):
                vae.micro_batch_size = batch
                torch.cuda.reset_peak_memory_stats()
                first, median = seconds(lambda: vae.decode(z, 51), given.repeat)
                peak = torch.cuda.max_memory_allocated() / 2**30
                print(
                    f"{channels_last!s:13}  {search!s:6}  {batch:6d}  {first:8.2f}  {median:8.2f}  "
                    f"{TFLOP / median:7.0f}  {peak:8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
