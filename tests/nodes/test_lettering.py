"""Fonts for letters that Pillow's own font has not."""

from __future__ import annotations

from typing import Any

import pytest
from alone import load_alone
from PIL import ImageFont


@pytest.fixture
def lettering() -> Any:
    return load_alone("lettering.py")


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
