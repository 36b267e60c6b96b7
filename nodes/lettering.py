"""Letters in pictures"""

from contextlib import suppress
from typing import Any

from PIL import ImageFont

# Pillow's own font has the letters of English alone. Of fonts that machines have, those with Chinese come first.
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)


def font_for(text: str, size: int) -> Any:
    """A font for a text, with more letters than Pillow's own where the text has such and the machine has one."""
    if not text.isascii():
        for name in FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
