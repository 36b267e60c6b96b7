"""The judge of the demo model's videos: its weights, its verdicts on rendered clips, its track of the object."""

import dataclasses

import pytest
import torch

from pab_core.demo.adherence import Tally, ceiling, contact_sheet, psnr, report
from pab_core.demo.captions import MOTIONS, Prompt, evaluation_prompts
from pab_core.demo.judge import JUDGE_FILE, VERDICT_MOTIONS, Judge, Verdict, load_judge, save_judge, track_of
from pab_core.demo.render import render
from pab_core.demo.scenes import sample_scenes
from pab_core.demo.train_judge import blur
from pab_core.errors import PabError

ASPECTS = ("shape", "colour", "motion")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def disc_masks(centres: list[tuple[float, float]], radii: list[float]) -> torch.Tensor:
    """Masks [1, T, 32, 48] of a disc; centres in -1..1, radii in pixels."""
    row, column = torch.arange(32).view(-1, 1), torch.arange(48).view(1, -1)
    discs = [
        ((column - (x + 1) * 24 + 0.5) ** 2 + (row - (y + 1) * 16 + 0.5) ** 2).sqrt() <= radius
        for (x, y), radius in zip(centres, radii, strict=True)
    ]
    return torch.stack(discs).float()[None]


def test_weights_are_small_and_all_there(judge: Judge) -> None:
    assert JUDGE_FILE.stat().st_size < 1.2e6
    assert sum(p.numel() for p in judge.parameters()) < 300_000
    assert all(value.isfinite().all() for value in judge.state_dict().values())


def test_verdicts_on_rendered_clips_are_right(judge: Judge) -> None:
    scenes = sample_scenes(24, torch.Generator().manual_seed(2025), split="all")
    right = dict.fromkeys(ASPECTS, 0)
    for i, truth in enumerate(scenes.describe()):
        video, _ = render(scenes[i], supersample=1)
        # Every second one as soft as the model's videos.
        soft = blur(video[0].transpose(0, 1), 1.5 * (i % 2)).transpose(0, 1)
        (verdict,) = judge.verdicts(soft[None])
        for aspect in ASPECTS:
            right[aspect] += getattr(verdict, aspect) == getattr(truth, aspect)
    assert min(right.values()) >= 22, right


def test_an_object_that_stands_still_does_not_pass_for_spinning(judge: Judge) -> None:
    scenes = sample_scenes(200, torch.Generator().manual_seed(2026), split="all")
    scenes = scenes[(scenes.motion == MOTIONS.index("spin")) & (scenes.camera == 0)][:4]
    assert len(scenes) == 4
    for sense, motion in ((1.0, "spin"), (0.0, "still")):
        video, _ = render(dataclasses.replace(scenes, sense=scenes.sense * sense), supersample=1)
        seen = [v.motion for v in judge.verdicts(video)]
        assert seen.count(motion) >= 3, (motion, seen)


def test_track_gives_centre_and_size() -> None:
    centres = [(-0.6 + 0.036 * t, 0.5 - 0.03 * t) for t in range(34)]
    radii = [4 + 0.12 * t for t in range(34)]
    track = track_of(disc_masks(centres, radii))[0]
    torch.testing.assert_close(track[:, :2], torch.tensor(centres), atol=0.02, rtol=0)
    side = torch.tensor([(torch.pi * r * r / (32 * 48)) ** 0.5 for r in radii])
    torch.testing.assert_close(track[:, 2], side, atol=0.01, rtol=0)


def test_track_ignores_spots_elsewhere_and_survives_an_empty_mask() -> None:
    masks = disc_masks([(0.6, 0.0)] * 2, [6.0, 6.0])
    spotted = masks.clone()
    spotted[0, :, 14:17, 2:5] = 1
    torch.testing.assert_close(track_of(spotted), track_of(masks))
    assert track_of(torch.zeros(1, 3, 32, 48)).isfinite().all()


@pytest.mark.parametrize(
    ("motion", "step_x", "step_y", "growth"),
    [("left", -1, 0, 0), ("right", 1, 0, 0), ("towards", 0, 0.15, 1), ("rise", 0, -1, 0), ("fall", 0, 1, 0)],
)
def test_a_drawn_disc_moves_as_it_was_drawn(
    judge: Judge, motion: str, step_x: float, step_y: float, growth: float
) -> None:
    along = torch.linspace(-1, 1, 34)
    # A fall is ever faster and a rise gentle at both ends, as in the clips.
    share = (along + 1) / 2
    eased = {"rise": 2 * share**2 * (3 - 2 * share) - 1, "fall": 2 * (share / 0.78).clamp(max=1) ** 2 - 1}
    course = eased.get(motion, along)
    centres = [(0.5 * step_x * float(a), 0.1 + 0.4 * step_y * float(a)) for a in course]
    masks = disc_masks(centres, [5.5 * 2 ** (0.5 * growth * float(a)) for a in along])
    picture = torch.nn.functional.interpolate(masks[0, :, None], (64, 96))
    disc, floor = torch.tensor([0.7, -0.8, -0.8]).view(3, 1, 1), torch.tensor([-0.2, 0.0, 0.1]).view(3, 1, 1)
    clip = (disc * picture + floor * (1 - picture)).transpose(0, 1)[None]
    with torch.no_grad():
        logits = judge.motion(track_of(masks), clip)
    assert VERDICT_MOTIONS[int(logits.argmax())] == motion


def test_saved_weights_give_the_same_verdict(judge: Judge, tmp_path) -> None:
    save_judge(judge, tmp_path / "judge.safetensors")
    again = load_judge(tmp_path / "judge.safetensors")
    for key, value in judge.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_a_broken_judge_file_says_so(tmp_path) -> None:
    file = tmp_path / "judge.safetensors"
    file.write_bytes(JUDGE_FILE.read_bytes()[:5000])
    with pytest.raises(PabError, match="truncated or not a safetensors file"):
        load_judge(file)


def test_report_counts_what_is_right() -> None:
    prompts = [Prompt("a red ball rolls left", "sphere", "red", "left"), Prompt("a cone spins", "cone", "blue", "spin")]
    tally = Tally("off", prompts, [Verdict("sphere", "red", "left"), Verdict("cube", "blue", "still")])
    assert tally.shares() == {"shape": 0.5, "colour": 1.0, "motion": 0.5, "straight": 1.0, "all": 0.5}
    assert tally.mistakes("motion") == [("spin -> still", 1)]
    assert "cone -> cube (1)" in report([tally])


def test_ceiling_and_contact_sheet(judge: Judge) -> None:
    prompts = evaluation_prompts(3, seed=5)
    tally = ceiling(judge, prompts, seed=5, supersample=1)
    assert min(tally.shares()[a] for a in ASPECTS) >= 2 / 3
    videos = [torch.full((34, 16, 24, 3), 90, dtype=torch.uint8)] * 3
    sheet = contact_sheet(videos, prompts, tally.verdicts)
    assert sheet.width > 2 * 5 * 24
    assert psnr(videos[0], videos[0] + 1) == pytest.approx(48.13, abs=0.01)
