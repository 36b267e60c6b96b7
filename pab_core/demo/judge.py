"""A small network that says what a demo video shows: shape and colour of the object, and how it moves.

It learns from rendered clips alone, where the truth is known, and never sees a frame that the video model made.
Two parts: `FrameNet` looks at single frames, `MotionNet` at the object's track and at its surface over time.

    python -m pab_core.demo.judge --seconds 60 --output judge.safetensors
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import COLOURS, MOTIONS, SHAPES
from .render import frame_table, render, trace_frames
from .scenes import Scenes, sample_scenes

JUDGE_FILE = Path(__file__).with_name("judge.safetensors")
FRAMES, HEIGHT, WIDTH, FPS = 34, 128, 192, 16
SMALL = (HEIGHT // 2, WIDTH // 2)  # what MotionNet looks at: detail that a soft video lacks must not matter
# An object that neither travels nor turns is none of the model's motions; without this class it would pass for "spin".
VERDICT_MOTIONS = (*MOTIONS, "still")
LOOKS = 8  # frames of a clip that vote on shape and colour
CROP = 24


class Verdict(NamedTuple):
    """What a clip shows: members of SHAPES, COLOURS and VERDICT_MOTIONS."""

    shape: str
    colour: str
    motion: str


class FrameGuess(NamedTuple):
    """Logits for N frames."""

    mask: Tensor  # [N, H/4, W/4], of the object
    shape: Tensor  # [N, 4]
    colour: Tensor  # [N, 8]


def conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class FrameNet(nn.Module):
    """Frames [N, 3, 128, 192] in -1..1 -> where the object is, its shape and its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.quarter = nn.Sequential(conv(16, 40, stride=2), conv(40, 40))
        self.eighth = nn.Sequential(conv(40, 64, stride=2), conv(64, 64, dilation=2))
        self.sixteenth = nn.Sequential(conv(64, 72, stride=2), conv(72, 72, dilation=2))
        self.join = nn.Sequential(nn.Conv2d(40 + 64 + 72, 40, 1), nn.SiLU())
        self.mask = nn.Conv2d(40, 1, 3, padding=1)
        self.look = conv(64 + 72, 64)
        self.shape = nn.Linear(2 * 64, len(SHAPES))
        self.colour = nn.Sequential(nn.Linear(40 + 40 + 3, 48), nn.SiLU(), nn.Linear(48, len(COLOURS)))

    def forward(self, x: Tensor) -> FrameGuess:
        quarter = self.quarter(self.stem(x))
        eighth = self.eighth(quarter)
        deep = self.sixteenth(eighth)
        size = quarter.shape[-2:]
        joined = self.join(torch.cat([quarter, F.interpolate(eighth, size), F.interpolate(deep, size)], dim=1))
        mask = self.mask(joined)
        look = self.look(torch.cat([eighth, F.interpolate(deep, eighth.shape[-2:])], dim=1))
        # The floor of 0.01 keeps pooling defined where no object is seen.
        near = mask.detach().sigmoid() + 0.01
        near_look = F.avg_pool2d(near, 2)
        strongest = (look * near_look.clamp(max=1)).amax((2, 3))
        colours = [pool(quarter, near), pool(joined, near), pool(F.avg_pool2d(x, 4), near)]
        shape = self.shape(torch.cat([pool(look, near_look), strongest], dim=1))
        return FrameGuess(mask[:, 0], shape, self.colour(torch.cat(colours, dim=1)))


def pool(features: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over space: [N, C, h, w], [N, 1, h, w] -> [N, C]."""
    return (features * weight).sum((2, 3)) / weight.sum((2, 3))


def track_of(mask: Tensor) -> Tensor:
    """Object masks [B, T, h, w] in 0..1 -> track [B, T, 3]: centre x, y (-1..1, y downwards), side length.

    The side is the root of the object's share of the frame. Only the surroundings of the densest place count, so stray
    spots elsewhere do not pull the centre away.
    """
    h, w = mask.shape[-2:]
    flat = mask.flatten(0, 1)
    peak = F.avg_pool2d(flat[:, None], 9, stride=1, padding=4).flatten(1).argmax(1)
    row = torch.arange(h, device=mask.device).view(1, h, 1)
    column = torch.arange(w, device=mask.device).view(1, 1, w)
    peak_row, peak_column = (peak // w).view(-1, 1, 1), (peak % w).view(-1, 1, 1)
    reach = 13 * w / 48
    near = ((row - peak_row).abs() <= reach) & ((column - peak_column).abs() <= reach)
    weight = flat * (flat > 0.3) * near
    area = weight.sum((1, 2))
    # A trace of weight at the peak: where no object is seen, the centre is there.
    total = area + 1e-3
    x = ((weight * column).sum((1, 2)) + 1e-3 * peak_column.flatten()) / total
    y = ((weight * row).sum((1, 2)) + 1e-3 * peak_row.flatten()) / total
    track = torch.stack([(2 * x + 1) / w - 1, (2 * y + 1) / h - 1, (area / (h * w)).sqrt()], dim=-1)
    return track.view(*mask.shape[:2], 3)


class MotionNet(nn.Module):
    """Track [B, T, 3] and small clip [B, 3, T, 64, 96] -> logits [B, 10] of VERDICT_MOTIONS.

    A 3-D convolution follows the surface of the object in a window that moves and grows with it (spin), a 1-D
    convolution reads this together with the track.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surface = nn.Sequential(
            nn.Conv3d(3, 12, (3, 3, 3), (1, 2, 2), 1, bias=False),
            nn.BatchNorm3d(12),
            nn.SiLU(),
            nn.Conv3d(12, 20, (3, 3, 3), (1, 2, 2), 1, bias=False),
            nn.BatchNorm3d(20),
            nn.SiLU(),
        )
        self.time = nn.Sequential(
            nn.Conv1d(8 + 20, 48, 5, padding=2), nn.SiLU(), nn.Conv1d(48, 48, 5, padding=2), nn.SiLU()
        )
        self.out = nn.Linear(48 * 5, len(VERDICT_MOTIONS))

    def forward(self, track: Tensor, clip: Tensor) -> Tensor:
        surface = self.surface(follow(track, clip)).mean((3, 4))
        place, size = track[..., :2], track[..., 2:].clamp(min=0.02).log()
        centred = torch.cat([place, size], dim=-1)
        centred = centred - centred.mean(1, keepdim=True)
        change = F.pad(centred.diff(dim=1), (0, 0, 1, 0))
        values = torch.cat([place, 4 * centred, 20 * change], dim=-1).transpose(1, 2)
        read = self.time(torch.cat([values, surface], dim=1))
        return self.out(F.adaptive_avg_pool1d(read, 5).flatten(1))


def follow(track: Tensor, clip: Tensor) -> Tensor:
    """A window around the object in every frame -> [B, 3, T, CROP, CROP]; it is 1.6 times the object's side."""
    batch, _, frames, height, width = clip.shape
    side = (1.6 * track[..., 2]).clamp(min=0.1) * (height * width) ** 0.5  # pixels
    step = torch.linspace(-0.5, 0.5, CROP, device=clip.device)
    x = track[..., 0, None] + side[..., None] * step * (2 / width)
    y = track[..., 1, None] + side[..., None] * step * (2 / height)
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, CROP, -1), y[:, :, :, None].expand(-1, -1, -1, CROP)], dim=-1
    ).flatten(0, 1)
    pictures = clip.transpose(1, 2).flatten(0, 1)
    window = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return window.view(batch, frames, 3, CROP, CROP).transpose(1, 2)


class Judge(nn.Module):
    """Both networks and the verdict on whole clips."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = FrameNet()
        self.motion = MotionNet()

    @torch.no_grad()
    def verdicts(self, video: Tensor) -> list[Verdict]:
        """Clips [B, 3, T, H, W] in -1..1 on the judge's device -> a verdict each; other sizes are scaled to 192x128."""
        return [self._verdict(clip) for clip in video]

    def _verdict(self, clip: Tensor) -> Verdict:
        pictures = clip.transpose(0, 1)
        if pictures.shape[-2:] != (HEIGHT, WIDTH):
            pictures = F.interpolate(pictures, (HEIGHT, WIDTH), mode="bilinear", antialias=True)
        guess = self.frames(pictures)
        track = track_of(guess.mask.sigmoid()[None])
        spread = torch.linspace(0, len(pictures) - 1, LOOKS).round().long().to(clip.device)
        shape = guess.shape[spread].log_softmax(1).mean(0)
        colour = guess.colour[spread].log_softmax(1).mean(0)
        small = F.avg_pool2d(pictures, 2).transpose(0, 1)[None]
        motion = self.motion(track, small)[0]
        best = [int(logits.argmax()) for logits in (shape, colour, motion)]
        return Verdict(SHAPES[best[0]], tuple(COLOURS)[best[1]], VERDICT_MOTIONS[best[2]])


def load_judge(path: str | Path = JUDGE_FILE, device: torch.device | str = "cpu") -> Judge:
    """The trained judge; PabError where the file is missing, broken or of another judge."""
    from ..loading import check_keys, read_weights

    judge = Judge()
    weights = read_weights([Path(path)], torch.float32, device)
    check_keys(str(path), judge.state_dict(), weights)
    judge.to(device).load_state_dict(weights)
    return judge.eval()


def save_judge(judge: Judge, path: str | Path) -> None:
    """Writes the weights at half precision."""
    from safetensors.torch import save_file

    weights = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    made = "trained by pab_core/demo/judge.py on clips that pab_core/demo/render.py rendered, on nothing else"
    save_file({k: v.cpu().contiguous() for k, v in weights.items()}, path, {"made": made})


# ------------------------------------------------------------------------------------------------------- training


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
    """Clips with their truth, all combinations of attributes; a tenth of the objects stands still."""

    def __init__(self, device: torch.device, seed: int, *, compiled: bool):
        self.device = device
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.whole = None
        if device.type == "cuda":
            from .train_vae import ClipSource

            self.whole = ClipSource(device, seed, compiled=compiled, split="all", chunk=16)

    def scenes(self, count: int) -> tuple[Scenes, Tensor]:
        """-> scenes and their motion labels."""
        scenes = sample_scenes(count, self.generator, self.device, split="all")
        still = (torch.rand(count, generator=self.generator) < 0.1).to(self.device)
        slow = (0.1 * torch.rand(count, generator=self.generator) - 0.05).to(self.device)
        orbit = still & (scenes.camera == 4)
        scenes = replace(
            scenes,
            motion=torch.where(still, MOTIONS.index("spin"), scenes.motion),
            sense=torch.where(still, slow, scenes.sense),  # of a spin, and of the orbit, which must keep its angle
            camera_amount=torch.where(orbit, scenes.camera_amount / slow.abs().clamp(min=1e-4), scenes.camera_amount),
        )
        return scenes, torch.where(still, len(MOTIONS), scenes.motion)

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
    from .train_vae import cosine_rate

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
