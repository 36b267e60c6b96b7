"""--devices: what it takes, and what it says of the rest."""

from __future__ import annotations

import pytest
import torch

from pab_core.errors import PabError
from pab_core.parallel.pool import devices
from pab_core.parallel.pool.devices import parse_devices


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_has_mps", lambda: False)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("0,1", ["cuda:0", "cuda:1"]),
        ("2", ["cuda:2"]),
        (" CUDA:2 , 0", ["cuda:2", "cuda:0"]),
        ("cuda", ["cuda:0"]),
        ("cpu", ["cpu"]),
        ("cpu*3", ["cpu"] * 3),
        ("cpu,cpu", ["cpu"] * 2),
    ],
)
def test_devices_by_name(text: str, expected: list[str]):
    assert list(parse_devices(text)) == expected


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_is_the_cpu():
    assert parse_devices("auto") == ("cpu",)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,3", "There is no cuda:3. The GPUs here are 0 to 2"),
        ("0,cuda:0", "cuda:0 is listed twice"),
        ("cuda,0", "cuda:0 is listed twice"),
        ("0*2", "only the CPU takes several workers"),
        ("cpu*0", "asks for 0 workers"),
        ("cpu*1000", "1 to 64 are possible"),
        ("0,cpu", "do not go together"),
        ("gpu0", "'gpu0' is no device"),
        ("", "'' is no device"),
        ("0,,1", "'' is no device"),
        ("0;1", "'0;1' is no device"),
        ("-1", "'-1' is no device"),
        ("auto,0", "'auto' is no device"),
    ],
)
def test_mistakes_are_told(text: str, said: str):
    with pytest.raises(PabError, match=said.replace("*", r"\*")):
        parse_devices(text)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("text", "said"), [("0", "no GPU that torch can use"), ("mps", "There is no mps here")])
def test_a_machine_without_gpus_says_so(text: str, said: str):
    with pytest.raises(PabError, match=said):
        parse_devices(text)
