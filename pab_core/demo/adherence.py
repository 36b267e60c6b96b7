"""Do a demo model's videos show what their prompts say? Prompts never trained on, videos, and the judge's verdicts.

Run `python -m pab_core.demo.adherence --prompts 200 --policies off,pab246 --json adherence.json --sheet adherence.png`,
with `--model demo-latte`, `--model demo-plan` or a folder for another model.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import DEMOS, find_model
from ..devices import check_device
from ..noise_sampling import NoiseSampler
from ..pipeline import Pipeline
from ..pixels import to_uint8
from .captions import CAMERAS, FLOORS, SKIES, TEXTURES, Prompt, SceneFields, evaluation_prompts, needs_texture
from .judge import FPS, FRAMES, HEIGHT, JUDGE_FILE, WIDTH, Judge, Verdict, load_judge
from .render import render
from .scenes import scenes_of

if TYPE_CHECKING:
    from PIL.Image import Image

STRAIGHT = ("left", "right", "towards", "away", "rise", "fall")
ASPECTS = ("shape", "colour", "motion")
DECODE_CLIPS = 8  # at a time; more gain nothing and need much memory


@dataclass
class Tally:
    """What was seen of the videos of one policy, or of the rendered clips."""

    name: str
    prompts: list[Prompt] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)  # dB against the first policy's video, inf where equal
    seconds: float = 0.0  # of denoising and decoding

    def shares(self) -> dict[str, float]:
        """Share of right verdicts, by aspect; `straight`: motion, of the prompts that ask for one of STRAIGHT."""
        pairs = list(zip(self.prompts, self.verdicts, strict=True))
        shares = {a: mean([getattr(p, a) == getattr(v, a) for p, v in pairs]) for a in ASPECTS}
        shares["straight"] = mean([p.motion == v.motion for p, v in pairs if p.motion in STRAIGHT])
        shares["all"] = mean([(p.shape, p.colour, p.motion) == tuple(v) for p, v in pairs])
        return shares

    def mistakes(self, aspect: str) -> list[tuple[str, int]]:
        """The commonest confusions, as ("asked -> seen", count)."""
        pairs = zip(self.prompts, self.verdicts, strict=True)
        asked_seen = [(getattr(p, aspect), getattr(v, aspect)) for p, v in pairs]
        return Counter(f"{asked} -> {seen}" for asked, seen in asked_seen if asked != seen).most_common(8)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


@torch.no_grad()
def generate_batch(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], policy: str, **settings: Any
) -> Tensor:
    """Videos uint8 [B, T, H, W, 3] on the CPU; `settings`: steps and guidance, None stands for the model's own."""
    steps, vae = settings.get("steps"), pipe.vae
    table = pipe.schedule(policy, steps=steps)
    assert pipe.text_encoder is not None
    assert vae is not None
    negative = "" if isinstance(pipe.sampler, NoiseSampler) else None
    text = pipe.text_encoder.encoder.encode_batch(list(prompts), negative)
    noise = torch.cat([pipe.prepare_latents(seed) for seed in seeds])
    latents = pipe.denoise(noise, text, table, steps=steps, guidance=settings.get("guidance"))
    weight = next(vae.parameters())
    parts = []
    for part in latents.to(weight.device, weight.dtype).split(DECODE_CLIPS):
        parts.append(to_uint8(vae.decode(part, pipe.spec.num_frames).permute(0, 2, 3, 4, 1)))
    return torch.cat(parts)


def load_demo(model: str, device: torch.device) -> Pipeline:
    """A demo model by name or folder; a folder without a text encoder is read with that of the first demo model."""
    found = find_model(model)
    if found.text_encoder is None:
        first = DEMOS["demo"]
        found = replace(found, text_encoder=first / "text_encoder", tokenizer=first / "tokenizer")
    found.check_complete()
    return Pipeline.from_checkpoint(found, device=device)


def judge_videos(judge: Judge, videos: Tensor, fps: float) -> list[Verdict]:
    """Verdicts on videos uint8 [B, T, H, W, 3]."""
    device = next(judge.parameters()).device
    clips = (clip.to(device).permute(3, 0, 1, 2)[None] / 127.5 - 1 for clip in videos)
    return [verdict for clip in clips for verdict in judge.verdicts(at_judges_rate(clip, fps))]


def at_judges_rate(video: Tensor, fps: float) -> Tensor:
    """Video [B, 3, T, H, W] at the rate that the judge was trained at, frames between given ones mixed.

    Nothing is added before the first or after the last frame. The judge tells speeds from frame to frame; frames that
    are merely repeated look to it like an object that stands still every other time.
    """
    if fps == FPS:
        return video
    frames = round((video.shape[2] - 1) * FPS / fps) + 1
    return F.interpolate(video, (frames, *video.shape[3:]), mode="trilinear", align_corners=True)


def psnr(video: Tensor, reference: Tensor) -> float:
    """dB between uint8 videos; inf where they are equal."""
    error = (video.float() - reference.float()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def measure(
    pipe: Pipeline, judge: Judge, prompts: Sequence[Prompt], policies: Sequence[str], batch: int, **settings: Any
) -> tuple[list[Tally], list[Tensor]]:
    """A tally for each policy, all with the same noise (seed i for prompt i), and the first policy's first videos."""
    tallies = [Tally(policy) for policy in policies]
    shown: list[Tensor] = []
    # The first run of a process is slow (kernels are chosen, memory is claimed), so a short one goes ahead.
    # PNDM makes no fewer than 4 steps.
    first = [p.text for p in prompts[:batch]]
    generate_batch(pipe, first, range(len(first)), "off", **settings | {"steps": 4})
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        reference = None
        for tally in tallies:
            begin = time.perf_counter()
            videos = generate_batch(
                pipe, [p.text for p in part], range(start, start + len(part)), tally.name, **settings
            )
            tally.seconds += time.perf_counter() - begin
            tally.prompts += part
            tally.verdicts += judge_videos(judge, videos, pipe.spec.fps)
            if reference is None:
                reference = videos
                shown += list(videos[: max(0, 16 - len(shown))])
            else:
                tally.psnr += [psnr(a, b) for a, b in zip(videos, reference, strict=True)]
        print(f"{min(start + batch, len(prompts))} of {len(prompts)} prompts done", flush=True)
    return tallies, shown


def ceiling(
    judge: Judge, prompts: Sequence[Prompt], seed: int, supersample: int, num_frames: int = FRAMES, fps: int = FPS
) -> Tally:
    """The judge on rendered clips of the same shapes, colours and motions: what a perfect model would reach."""
    rng = random.Random(seed)
    fields = []
    for prompt in prompts:
        textures = TEXTURES[1:] if needs_texture(prompt.shape, prompt.motion) else TEXTURES
        camera = "static" if rng.random() < 0.5 else rng.choice(CAMERAS[1:])
        look = (rng.choice(textures), rng.choice(FLOORS), rng.choice(SKIES))
        fields.append(SceneFields(prompt.shape, prompt.colour, *look, prompt.motion, camera))
    device = next(judge.parameters()).device
    scenes = scenes_of(fields, torch.Generator("cpu").manual_seed(seed), device)
    tally = Tally("real clips", list(prompts))
    for i in range(len(scenes)):
        video, _ = render(scenes[i], num_frames, HEIGHT, WIDTH, fps=fps, supersample=supersample)
        tally.verdicts += judge.verdicts(at_judges_rate(video, fps))
    return tally


def report(tallies: Sequence[Tally]) -> str:
    """A table: a row for each tally, and under it what went wrong."""
    count = len(tallies[0].prompts)
    straight = sum(p.motion in STRAIGHT for p in tallies[0].prompts)
    lines = [
        f"Right, in % of {count} prompts (straight: of {straight} that ask for {', '.join(STRAIGHT)})",
        f"{'':12}{'shape':>8}{'colour':>8}{'motion':>8}{'straight':>10}{'all three':>11}{'s/video':>9}{'PSNR dB':>9}",
    ]
    for tally in tallies:
        row = tally.shares()
        widths = {"shape": 8, "colour": 8, "motion": 8, "straight": 10, "all": 11}
        cells = [f"{100 * row[column]:{width}.1f}" for column, width in widths.items()]
        cells.append(f"{tally.seconds / count:9.3f}" if tally.seconds else f"{'-':>9}")
        cells.append(f"{mean(tally.psnr):9.1f}" if tally.psnr else f"{'-':>9}")
        lines.append(f"{tally.name:12}" + "".join(cells))
    for tally in tallies:
        lines.append(f"{tally.name}: asked -> seen")
        for aspect in ASPECTS:
            listed = ", ".join(f"{what} ({times})" for what, times in tally.mistakes(aspect))
            lines.append(f"  {aspect}: {listed or 'no mistake'}")
    return "\n".join(lines)


def as_json(tallies: Sequence[Tally], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything the table shows, and every verdict."""
    rows = []
    for tally in tallies:
        row: dict[str, Any] = {"name": tally.name, "right": {k: finite(v) for k, v in tally.shares().items()}}
        row["mistakes"] = {aspect: dict(tally.mistakes(aspect)) for aspect in ASPECTS}
        if tally.seconds:
            row["seconds_per_video"] = tally.seconds / len(tally.prompts)
        if tally.psnr:
            row["psnr_db"] = finite(mean(tally.psnr))
        row["verdicts"] = [v._asdict() for v in tally.verdicts]
        rows.append(row)
    return {"settings": settings, "prompts": [p._asdict() for p in tallies[0].prompts], "rows": rows}


def finite(value: float) -> float | None:
    """JSON has no word for what is not a number or without end."""
    return round(value, 5) if math.isfinite(value) else None


def contact_sheet(videos: Sequence[Tensor], prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> Image:
    """Five frames of each video in two columns, with its prompt; what the judge saw otherwise stands in red."""
    from PIL import Image, ImageDraw, ImageFont

    shown, across, line, gap = 5, 2, 15, 10
    height, width = videos[0].shape[1:3]
    column, row = shown * (width + 2) + gap, height + 2 * line + gap
    sheet = Image.new("RGB", (across * column + gap, -(-len(videos) // across) * row + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for i, (video, prompt, verdict) in enumerate(zip(videos, prompts, verdicts, strict=False)):
        left, top = gap + i % across * column, gap + i // across * row
        pen.text((left, top), prompt.text, "black", font)
        wrong = [f"{a}: {getattr(verdict, a)}" for a in ASPECTS if getattr(verdict, a) != getattr(prompt, a)]
        seen = "seen: " + ", ".join(wrong) if wrong else "shape, colour and motion as asked"
        pen.text((left, top + line), seen, "firebrick" if wrong else "gray", font)
        for j, frame in enumerate(torch.linspace(0, len(video) - 1, shown).round().long().tolist()):
            sheet.paste(Image.fromarray(video[frame].numpy()), (left + j * (width + 2), top + 2 * line))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well the demo model's videos follow their prompts.")
    parser.add_argument("--model", default="demo", help="a demo model's name, or the folder of one")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--policies", default="off,pab246", help="separated by commas; the first is the reference")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=2024, help="of the choice of prompts; prompt i uses noise seed i")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--judge", type=Path, default=JUDGE_FILE)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="a PNG with 16 of the videos")
    given = parser.parse_args()

    device = check_device(given.device)
    judge = load_judge(given.judge, device)
    pipe = load_demo(given.model, device)
    prompts = evaluation_prompts(given.prompts, given.seed)
    policies = [name.strip() for name in given.policies.split(",")]
    settings = {"guidance": given.guidance, "steps": given.steps}
    tallies, videos = measure(pipe, judge, prompts, policies, given.batch, **settings)
    supersample = 2 if device.type == "cuda" else 1
    best = ceiling(judge, prompts, given.seed, supersample, pipe.spec.num_frames, pipe.spec.fps)
    print(report([*tallies, best]))
    if given.json:
        facts = {"model": pipe.spec.name, "device": str(device), "seed": given.seed, "batch": given.batch, **settings}
        given.json.write_text(json.dumps(as_json([*tallies, best], facts), indent=1), encoding="utf-8")
    if given.sheet:
        contact_sheet(videos, prompts, tallies[0].verdicts).save(given.sheet)


if __name__ == "__main__":
    main()
