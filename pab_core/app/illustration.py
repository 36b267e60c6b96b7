"""The pictures on Create: the schedule of a clip, and what a user sent."""

from __future__ import annotations

import base64
import io

from PIL import Image

from ..broadcast.picture_svg import draw_schedule_svg
from .request import Clip
from .service import Studio
from .texts import schedule_texts, text


def show_schedule(studio: Studio, clip: Clip, language: str) -> str:
    """The picture of a clip's schedule and the saving that it promises."""
    picture = draw_schedule_svg(clip.table, clip.policy, texts=schedule_texts(language))
    saving = studio.saving(clip)
    words = text("saving", language, share=f"{saving:.0%}") if saving else text("no_saving", language)
    note = f"<small>{text('counted', language)}</small>" if saving else ""
    return f'<div class="pab-card">{picture}<p class="pab-saving"><strong>{words}</strong>{note}</p></div>'


def show_pictures(studio: Studio, names: tuple[str, str], language: str) -> str:
    """The kept pictures, small; they come inside the page, since their folder is not served."""
    found = []
    for key, name in zip(("picture", "last_picture"), names, strict=True):
        if name:
            with Image.open(studio.find_picture(name)) as image:
                image.thumbnail((240, 240))
                out = io.BytesIO()
                image.convert("RGB").save(out, "JPEG", quality=80)
            data = base64.b64encode(out.getvalue()).decode("ascii")
            words = text(key, language)
            found.append(
                f'<figure><img src="data:image/jpeg;base64,{data}" alt="{words}"><figcaption>{words}</figcaption>'
                "</figure>"
            )
    return f'<div class="pab-pictures">{"".join(found)}</div>' if found else ""
