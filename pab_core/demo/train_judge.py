"""Trains the judge on freshly rendered clips, where the truth is known.

Run `python -m pab_core.demo.judge --seconds 60 --output judge.safetensors`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip_source import ClipSource
from .judge import (
    FPS,
    FRAMES,
    HEIGHT,
    JUDGE_FILE,
    SMALL,
    VERDICT_MOTIONS,
    WIDTH,
    Judge,
    load_judge,
    save_judge,
    track_of,
)
from .optimisers import cosine_rate
from .render import frame_table, render, trace_frames
from .scenes import CAMERAS, MOTIONS, SHAPES, Scenes, sample_scenes


@dataclass
class Samples:
    """Rendered truth; pictures are uint8 to keep many."""

    frames: Tensor  # [N, 3, H, W]
    masks: Tensor  # uint8 [N, H/4, W/4], 255 = all object
    frame_labels: Tensor  # [N, 2] shape, colour
    clips: Tensor  # [M, 3, T, H/2, W/2]
    tracks: Tensor  # [M, T, 3]
    clip_labels: Tensor  # [M] of VERDICT_MOTIONS

    def joined(self, new: Samples, frames: int, clips: int) -> Samples:
        """With the newest `frames` frames and `clips` clips of both."""
        limits = (frames, frames, frames, clips, clips, clips)
        pairs = zip(vars(self).values(), vars(new).values(), limits, strict=True)
        return Samples(*(torch.cat([old[max(0, len(old) + len(add) - limit) :], add]) for old, add, limit in pairs))


class TruthSource:
    """Clips with their truth, all combinations of attributes; a fifth of the objects stands still, another spins."""

    def __init__(self, device: torch.device, seed: int, *, compiled: bool):
        self.device = device
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.whole = None
        if device.type == "cuda":
            self.whole = ClipSource(device, seed, compiled=compiled, split="all", chunk=16)

    def scenes(self, count: int) -> tuple[Scenes, Tensor]:
        """-> scenes and their motion labels."""
        scenes = sample_scenes(count, self.generator, split="all")
        # Spin and still differ least, so there are more of both than of the others.
        lot, slow = torch.rand(2, count, generator=self.generator)
        still, turning = lot < 0.2, lot < 0.35
        sense = torch.where(still, (0.02 + 0.03 * slow) * scenes.sense, scenes.sense)
        orbit = still & (scenes.camera == CAMERAS.index("orbit"))
        # Only a pattern shows that a round object spins.
        pattern = torch.where(scenes.shape == SHAPES.index("cube"), 0, 1 + (slow < 0.5).long())
        scenes = replace(
            scenes,
            motion=torch.where(turning, MOTIONS.index("spin"), scenes.motion),
            texture=torch.where(turning & ~still & (scenes.texture == 0), pattern, scenes.texture),
            sense=sense,  # of a spin, and of the orbit, which has to keep its angle
            camera_amount=torch.where(orbit, scenes.camera_amount / sense.abs(), scenes.camera_amount),
        )
        labels = torch.where(still, VERDICT_MOTIONS.index("still"), scenes.motion)
        return scenes.to(self.device), labels.to(self.device)

    @torch.no_grad()
    def draw(self, frames: int, clips: int) -> Samples:
        """On a GPU both are of the same clips; a CPU renders single frames and small clips, with one ray a pixel."""
        scenes, motion = self.scenes(clips)
        if self.whole is not None:
            video, mask = self.whole.render(scenes)
            row = torch.arange(frames, device=self.device) % clips
            column = torch.randint(FRAMES, (frames,), generator=self.generator).to(self.device)
            pictures, covers, owners = video[row, :, column], mask[row, column], scenes[row]
            small = F.avg_pool3d(video, (1, 2, 2))
        else:
            owners, _ = self.scenes(frames)
            table = frame_table(owners, FRAMES, FPS)
            rows = torch.arange(frames) * FRAMES + torch.randint(FRAMES, (frames,), generator=self.generator)
            parts = [trace_frames({k: v[i : i + 1] for k, v in table.items()}, HEIGHT, WIDTH, 1) for i in rows]
            pictures, covers = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
            small, mask = render(scenes, FRAMES, *SMALL, fps=FPS, supersample=1)
        return Samples(
            frames=to_bytes(pictures),
            masks=(F.avg_pool2d(covers, 4) * 255).round().to(torch.uint8),
            frame_labels=torch.stack([owners.shape, owners.colour], dim=1),
            clips=to_bytes(small),
            tracks=track_of(F.adaptive_avg_pool2d(mask, (HEIGHT // 4, WIDTH // 4))),
            clip_labels=motion,
        )


def to_bytes(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def soften(pictures: Tensor, detail: float) -> Tensor:
    """Pictures in -1..1 [N, 3, h, w] or [N, 3, T, h, w] as a generative model could have made them: blurred, noisy, a
    little off in colour. `detail` is the length of a full-size pixel in pixels of these pictures."""
    if pictures.dim() == 5:
        count, frames = pictures.shape[0], pictures.shape[2]
        parts = [soften_group(p.transpose(1, 2).flatten(0, 1), frames, detail) for p in pictures.chunk(4)]
        return torch.cat(parts).view(count, frames, *parts[0].shape[1:]).transpose(1, 2)
    return torch.cat([soften_group(p, 1, detail) for p in pictures.chunk(4)])


def soften_group(pictures: Tensor, frames: int, detail: float) -> Tensor:
    """[N * frames, 3, h, w]: one blur for all, one tint for each clip."""
    chance = torch.rand(4).tolist()
    if chance[0] < 0.7:
        pictures = blur(pictures, 2.2 * detail * chance[1])
    if chance[2] < 0.3 and detail == 1:
        small = F.avg_pool2d(pictures, 2)
        pictures = F.interpolate(small, scale_factor=2.0, mode="bilinear")
    clips = len(pictures) // frames

    def tint(*shape: int) -> Tensor:
        return torch.randn(clips, *shape, device=pictures.device).repeat_interleave(frames, 0)

    gain = 1 + 0.06 * tint(1, 1, 1) + 0.03 * tint(3, 1, 1)
    return (pictures * gain + 0.05 * tint(1, 1, 1) + 0.06 * chance[3] * torch.randn_like(pictures)).clamp(-1, 1)


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, 3, h, w]."""
    if sigma < 0.2:
        return pictures
    reach = max(1, round(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=pictures.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = F.conv2d(F.pad(pictures, (reach, reach, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(wide, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3), groups=3)


def frame_loss(judge: Judge, samples: Samples, count: int) -> Tensor:
    rows = torch.randint(len(samples.frames), (count,), device=samples.frames.device)
    pictures, truth = samples.frames[rows] / 127.5 - 1, samples.masks[rows] / 255.0
    if torch.rand(()) < 0.5:
        pictures, truth = pictures.flip(-1), truth.flip(-1)
    guess = judge.frames(soften(pictures, 1.0))
    shape, colour = samples.frame_labels[rows].unbind(1)
    likely = guess.mask.sigmoid()
    overlap = 2 * (likely * truth).sum((1, 2)) / (likely.sum((1, 2)) + truth.sum((1, 2)) + 1)
    mask = F.binary_cross_entropy_with_logits(guess.mask, truth) * 4 + (1 - overlap).mean()
    return mask + F.cross_entropy(guess.shape, shape) + 0.5 * F.cross_entropy(guess.colour, colour)


def motion_loss(judge: Judge, samples: Samples, count: int) -> Tensor:
    device = samples.clips.device
    rows = torch.randint(len(samples.clips), (count,), device=device)
    clips, tracks, labels = samples.clips[rows] / 127.5 - 1, samples.tracks[rows].clone(), samples.clip_labels[rows]
    if torch.rand(()) < 0.5:
        clips = clips.flip(-1)
        tracks[..., 0] *= -1
        left, right = MOTIONS.index("left"), MOTIONS.index("right")
        labels = torch.where(labels == left, right, torch.where(labels == right, left, labels))
    # As uncertain as masks that FrameNet finds: a little too large or small, and unsteady.
    tracks[..., 2] *= 1 + 0.08 * torch.randn(count, 1, device=device) + 0.02 * torch.randn(count, FRAMES, device=device)
    tracks[..., :2] += 0.008 * torch.randn(count, FRAMES, 2, device=device)
    return F.cross_entropy(judge.motion(tracks, soften(clips, 0.5)), labels)


def train_judge(
    seconds: float, device: torch.device | str, compiled: bool = False, *, seed: int = 7, log_every: int = 50
) -> Judge:
    """Trains for `seconds` of wall time (compilation not counted) on clips rendered meanwhile."""
    device = torch.device(device)
    torch.manual_seed(seed)
    judge = Judge().to(device)
    judge.frames.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1.0, weight_decay=0.02)
    source = TruthSource(device, seed, compiled=compiled)
    on_gpu = device.type == "cuda"
    new, batch = ((64, 16), (128, 64)) if on_gpu else ((12, 2), (32, 12))
    samples = source.draw(*new)
    start, step, done = time.perf_counter(), 0, 0.0
    while done < 1:
        samples = samples.joined(source.draw(*new), frames=8192, clips=1024)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * cosine_rate(done)
        frame, motion = frame_loss(judge, samples, batch[0]), motion_loss(judge, samples, batch[1])
        (frame + motion).backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == 3:
            start = time.perf_counter()  # everything is compiled now
        done = (time.perf_counter() - start) / seconds if step >= 3 else 0.0
        if step % log_every == 0 or done >= 1:
            print(f"judge: step {step}, frame loss {frame.item():.3f}, motion loss {motion.item():.3f}", flush=True)
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, clips: int, sigma: float = 0.0, seed: int = 12345, supersample: int = 1) -> dict[str, float]:
    """Share of right verdicts on freshly rendered clips, blurred by `sigma` pixels."""
    device = next(judge.parameters()).device
    scenes = sample_scenes(clips, torch.Generator("cpu").manual_seed(seed), device, split="all")
    right = dict.fromkeys(("shape", "colour", "motion"), 0)
    for i, truth in enumerate(scenes.describe()):
        video, _ = render(scenes[i], FRAMES, HEIGHT, WIDTH, fps=FPS, supersample=supersample)
        soft = blur(video[0].transpose(0, 1), sigma).transpose(0, 1)[None]
        verdict = judge.verdicts(soft)[0]
        for name in right:
            right[name] += getattr(verdict, name) == getattr(truth, name)
    return {name: count / clips for name, count in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the judge of the demo model's videos.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path, default=JUDGE_FILE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compiled", action="store_true", help="compile the renderer")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--clips", type=int, default=200, help="clips of the final check")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    save_judge(train_judge(given.seconds, given.device, given.compiled), given.output)
    judge = load_judge(given.output, given.device)
    for sigma in (0.0, 1.0, 2.0):
        shares = ", ".join(f"{name} {share:.1%}" for name, share in accuracy(judge, given.clips, sigma).items())
        print(f"{given.clips} rendered clips, blur {sigma:.0f} px: {shares} right", flush=True)


if __name__ == "__main__":
    main()
