"""The pictures on Create: the schedule of a clip, and what a user sent."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from ..broadcast import AnyPolicy
from ..broadcast.picture_svg import draw_schedule_svg
from ..broadcast.schedule_file import ScheduleFile
from .explaining import REMARK, explained
from .measured import measured_of
from .request import Clip
from .service import Studio
from .texts import schedule_texts, text


def show_schedule(studio: Studio, clip: Clip, language: str) -> str:
    """The picture of a clip's schedule and the saving that it promises."""
    picture = draw_schedule_svg(clip.table, clip.policy, texts=schedule_texts(language))
    saving = studio.saving(clip)
    words = text("saving", language, share=f"{saving:.0%}") if saving else text("no_saving", language)
    notes = [text("counted", language)] if saving else []
    spec = clip.offered.spec
    if (clip.num_frames, clip.height, clip.width) == (spec.num_frames, spec.height, spec.width):
        notes.append(measured_of(clip.offered, clip.table, studio.settings.bench, language))
    note = "".join(f"<small>{escape(words)}</small>" for words in notes if words)
    about = about_calibrated(clip.policy, language, "calibrated_note", "calibrated_sliders")
    return f'<div class="pab-card">{picture}<p class="pab-saving"><strong>{words}</strong>{note}</p>{about}</div>'


def about_calibrated(policy: AnyPolicy, language: str, *keys: str) -> str:
    """What a calibrated schedule is, in the words of `keys`, and what who made it noted; nothing for other policies."""
    if not isinstance(policy, ScheduleFile):
        return ""
    words = ("" if language == "zh" else " ").join(escape(text(key, language)) for key in keys)
    note = f"<small>{escape(explained(policy.note, language, REMARK))}</small>" if policy.note else ""
    return f'<p class="pab-calibrated">{words}{note}</p>'


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
