"""Time of decoding a clip by autoencoders of released size, random weights: `python tests/gpu/decode_480p.py`.

Open-Sora's, 51 frames of 480x848 in bf16 (246 TFLOP), so many frames at once as given: with the autoencoder's own
operations and with those of acceleration.decoding, each beside the time that the products alone would take at the rate
of one large matrix product. Then the error of both against float32 on a smaller clip. `--profile`: the ten kernels that
take most of a decoding's time; `--kernels`: each operation alone; `--others`: Latte's two (16 frames of 512x512) and
Open-Sora-Plan's (65 frames of 512x512), too. Not collected by pytest: it needs a GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pab_core.acceleration.decoding import use_fast_decoders
from pab_core.acceleration.feature_maps import added, attended, map_of, measured, normed, phase_weight, spread
from pab_core.autoencoders import build_vae, decode_bytes

TFLOP = 246.3  # of the decoding, as `pab bench flops` counts
FRAMES = 51
CLIP = (15, 60, 106)
SMALL_FRAMES, SMALL_CLIP = 17, (5, 30, 53)  # in float32, which is slow
# Channels, height and width of the image decoder's maps that take most of its time.
MAPS = ((512, 60, 106), (512, 120, 212), (256, 240, 424), (256, 480, 848), (128, 480, 848))

SD: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}
# Title: family, config, latents of the clip, its frames, latents of a smaller one, its frames.
OTHERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, tuple[int, ...], int]] = {
    "latte, images": (
        "latte",
        SD | {"_class_name": "AutoencoderKL", "up_block_types": ["UpDecoderBlock2D"] * 4},
        (16, 64, 64),
        16,
        (4, 32, 32),
        4,
    ),
    "latte, in time": (
        "latte",
        SD | {"_class_name": "AutoencoderKLTemporalDecoder"},
        (16, 64, 64),
        16,
        (14, 32, 32),
        14,
    ),
    "open-sora-plan": ("open-sora-plan", {}, (17, 64, 64), 65, (3, 32, 32), 9),
}


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


def profile(run: Callable[[], Any]) -> None:
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    print(f"kernels take {total / 1e3:.1f} ms; the ten that take most:")
    for event in events[:10]:
        print(f"{event.self_device_time_total / 1e3:9.1f} ms {event.count:6d} x  {event.key[:110]}")


def kernels(frames: int) -> None:
    """Milliseconds of each operation on maps of so many frames, and its rate; small ones show kernels start."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    print(f"operation alone, {frames} frames: map, ms, TB/s (or TFLOP/s)")

    def tell(name: str, run: Callable[[], Any], amount: float, unit: str) -> None:
        took = seconds(lambda: [run() for _ in range(10)], 3)[1] / 10
        print(f"  {name:34} {1e3 * took:8.3f} ms {amount / took / 1e12:8.2f} {unit}", flush=True)

    for channels, height, width in MAPS:
        x, h = (
            map_of(torch.randn(frames, height * width, channels, device=device, dtype=dtype), (height, width))
            for _ in range(2)
        )
        norm = nn.GroupNorm(32, channels, device=device, dtype=dtype).requires_grad_(False)
        conv = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
        weight = conv.weight.contiguous(memory_format=torch.channels_last)
        assert conv.bias is not None
        given, size, bias = measured(x), x.nbytes, conv.bias
        print(f" {channels} x {height} x {width}")
        tell("statistics", lambda x=x: measured(x), size, "TB/s")
        tell("norm and SiLU", lambda given=given, norm=norm: normed(given, norm), 2 * size, "TB/s")
        tell("sum with its statistics", lambda x=x, h=h, bias=bias: added(x, h, bias), 3 * size, "TB/s")
        flop = 2 * 9 * channels**2 * frames * height * width
        tell("convolution 3x3", lambda x=x, w=weight: F.conv2d(x, w, padding=1), flop, "TFLOP/s")
        if height > 240:
            continue
        phases = phase_weight(weight)
        made = F.conv2d(x, phases, padding=1)
        large = (2 * height, 2 * width)
        tell("enlarged: convolution 2x2", lambda x=x, w=phases: F.conv2d(x, w, padding=1), 4 * flop * 4 / 9, "TFLOP/s")
        tell("enlarged: spread", lambda m=made, s=large, b=bias: spread(m, s, b), 8 * size, "TB/s")
        tell(
            "enlarged: nearest, convolution 3x3",
            lambda x=x, w=weight, b=bias: F.conv2d(F.interpolate(x, scale_factor=2.0), w, b, padding=1),
            4 * flop,
            "TFLOP/s",
        )
    q = torch.randn(frames, 6360, 512, device=device, dtype=dtype)
    flop = 4 * frames * 6360**2 * 512
    tell(
        "attention, torch's",
        lambda: F.scaled_dot_product_attention(q[:, None], q[:, None], q[:, None]),
        flop,
        "TFLOP/s",
    )
    tell("attention, ours", lambda: attended(q, q, q), flop, "TFLOP/s")


def other(title: str, repeat: int) -> None:
    """Decoding as the authors do, with tiles where they have them."""
    family, config, clip, frames, small_clip, small_frames = OTHERS[title]
    exact: Any = build_vae(family, config).eval().requires_grad_(False).to("cuda")
    with torch.device("cuda"):
        small, z = torch.randn(1, 4, *small_clip), torch.randn(1, 4, *clip).bfloat16()
    target = exact.decode(small, small_frames)
    plain = exact.to(torch.bfloat16)
    fast = copy.deepcopy(plain)
    count = use_fast_decoders(fast)
    for name, vae in (("plain", plain), ("fast", fast)):
        made = vae.decode(small.bfloat16(), small_frames).float()
        error = float((made - target).norm() / target.norm())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        first, median = seconds(lambda vae=vae: vae.decode(z, frames, tiling=vae.authors_tiling), repeat)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        said = f"error {error:.3e}, first {first:.2f} s, median {median:.3f} s, peak {peak:.1f} GiB"
        print(f"{title} ({count} fast), {name}: {said}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--batches", default="4,17", help="frames that the image part decodes at once")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--others", action="store_true")
    given = parser.parse_args()
    batches = [int(batch) for batch in given.batches.split(",")]
    device = torch.device("cuda")
    torch.manual_seed(0)
    with device:
        plain: Any = build_vae("stdit3", {}).eval().requires_grad_(False)
    exact = copy.deepcopy(plain)
    plain = plain.to(torch.bfloat16)
    fast = copy.deepcopy(plain)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; fast decoders: {use_fast_decoders(fast)}")
    big = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    _, product = seconds(lambda: [big @ big for _ in range(20)], 3)
    rate = 20 * 2 * 8192**3 / product / 1e12
    print(f"8192^3: {rate:.0f} TFLOP/s; floor of {TFLOP} TFLOP at that rate {TFLOP / rate:.3f} s")

    torch.backends.cudnn.allow_tf32 = False
    small = torch.randn(1, 4, *SMALL_CLIP, device=device)
    target = exact.decode(small, SMALL_FRAMES)
    for name, vae in (("plain", plain), ("fast", fast)):
        made = vae.decode(small.bfloat16(), SMALL_FRAMES).float()
        print(f"error against float32, {name}: {float((made - target).norm() / target.norm()):.3e}")
    as_float = copy.deepcopy(exact)
    use_fast_decoders(as_float)
    made = as_float.decode(small, SMALL_FRAMES)
    print(f"error against float32, fast in float32: {float((made - target).norm() / target.norm()):.3e}")
    del exact, as_float, target, made

    print("decoder  frames   first s  median s  TFLOP/s  peak GiB  predicted GiB")
    z = torch.randn(1, 4, *CLIP, device=device, dtype=torch.bfloat16)
    for name, vae in (("plain", plain), ("fast", fast)):
        for batch in batches:
            vae.micro_batch_size = batch
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            first, median = seconds(lambda vae=vae: vae.decode(z, FRAMES), given.repeat)
            peak = (torch.cuda.max_memory_allocated() - before) / 2**30
            said = decode_bytes(vae, FRAMES, 480, 848, torch.bfloat16) / 2**30
            print(
                f"{name:7}  {batch:6d}  {first:8.2f}  {median:8.3f}  {TFLOP / median:7.0f}  {peak:8.1f}  {said:13.1f}",
                flush=True,
            )
    if given.profile:
        fast.micro_batch_size = batches[0]
        profile(lambda: fast.decode(z, FRAMES))
    if given.kernels:
        kernels(batches[0])
    if given.others:
        del plain, fast, z
        for title in OTHERS:
            other(title, given.repeat)


if __name__ == "__main__":
    main()
