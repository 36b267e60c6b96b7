"""Fonts for letters that Pillow's own font has not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageFont

FILE = Path(__file__).resolve().parents[2] / "nodes" / "lettering.py"


@pytest.fixture
def lettering() -> Any:
    """The module alone: its package wants the host."""
    spec = importlib.util.spec_from_file_location("lettering_alone", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("there", ["wqy-microhei.ttc", "DejaVuSans.ttf"])
def test_a_font_of_the_machine_draws_what_pillows_own_cannot(
    lettering: Any, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    def truetype(name: str, size: int) -> str:
        if name != there:
            raise OSError("cannot open resource")
        return f"{name} {size}"

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: f"own {size}")
    assert lettering.font_for("关闭", 14) == f"{there} 14"
    assert lettering.font_for("off", 14) == "own 14"


def test_without_any_the_text_is_drawn_all_the_same(lettering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FONTS", ("none.ttf",))
    assert lettering.font_for("über", 14).getbbox("über")[2] > 0
