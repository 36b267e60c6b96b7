"""What the page shows of a job, as HTML: where it stands, a moving preview, at last the video. Everything that users
wrote is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from .explaining import REMARK, explained
from .history import Entry
from .jobs import View
from .request import level_of
from .service import Studio
from .texts import level_title, model_title, text

_BARS = ("denoise", "decode")  # stages of which the length is known


def empty_stage(language: str, key: str = "empty_stage") -> str:
    return f'<div class="pab-stage pab-empty"><p>{escape(text(key, language))}</p></div>'


def message(words: str, kind: str = "error") -> str:
    """A sentence beside a field or in the stage; nothing for no words."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="pab-message pab-{kind}" role="{role}">{escape(words)}</p>' if words else ""


def refusal(messages: str) -> str:
    """In place of a video: why it is not made."""
    return f'<div class="pab-stage pab-empty">{messages}</div>'


def show_view(studio: Studio, view: View, owner: str, language: str) -> str:
    """A job of one video."""
    if view.state == "done":
        entries = studio.entries(view, owner)
        if not entries:
            return empty_stage(language)
        return show_entry(studio, entries[0], language) + show_warnings(view.warnings, language)
    return show_progress(view, language)


def show_warnings(warnings: Sequence[str], language: str) -> str:
    """What the core warned of."""
    return "".join(message(explained(said, language, REMARK), "warning") for said in warnings)


def show_progress(view: View, language: str) -> str:
    if view.state == "failed":
        return refusal(f"<h2>{escape(text('failed', language))}</h2>{message(explained(view.error, language))}")
    if view.state == "cancelled":
        return empty_stage(language, "cancelled")
    picture = ""
    if view.preview:
        data = base64.b64encode(view.preview).decode("ascii")
        picture = f'<img alt="" src="data:image/webp;base64,{data}">'
    return f'<div class="pab-stage" data-state="{view.state}">{picture}</div>{show_bar(view, language)}'


def show_bar(view: View, language: str) -> str:
    """How far a job is that has not ended, with a line of words."""
    words, share = describe_stage(view, language), _share(view)
    bar = f'style="width:{share:.1%}"' if share is not None else 'class="pab-unknown"'
    now = f'aria-valuenow="{share * 100:.0f}"' if share is not None else ""
    return (
        f'<div class="pab-bar" role="progressbar" aria-label="{escape(text("progress", language))}" aria-valuemin="0" '
        f'aria-valuemax="100" {now}><div {bar}></div></div>'
        f'<p class="pab-status" role="status">{escape(words)}</p>'
    )


def describe_stage(view: View, language: str) -> str:
    """One line: what is done now, and how long that will take."""
    if view.state == "queued":
        return text("queued", language, position=view.position) if view.position else text("next", language)
    parts = []
    if view.clips > 1 and view.stage in (*_BARS, "write"):
        parts.append(text("which_of", language, number=view.clip + 1, count=view.clips))
    if view.stage == "denoise" and not view.done:
        parts.append(text("starting", language))
    elif view.stage:
        parts.append(text(view.stage, language, done=view.done, total=view.total))
    else:
        parts.append(text("starting", language))
    if view.stage == "denoise" and view.seconds_left is not None and view.done:
        parts.append(text("left", language, seconds=max(1, round(view.seconds_left))))
    return " · ".join(parts)


def _share(view: View) -> float | None:
    """Of the whole job, 0..1: decoding is the last tenth of a clip; None where it is not known."""
    if view.state == "queued" or view.stage not in (*_BARS, "write", "measure") or not view.total:
        return None
    denoised = view.stage != "denoise"
    step = view.done / view.total
    clip = 0.9 * step if not denoised else (0.9 + 0.1 * step if view.stage == "decode" else 1.0)
    return (view.clip + clip) / view.clips


def show_entry(studio: Studio, entry: Entry, language: str, *, autoplay: bool = True) -> str:
    """A finished video with a line about it and a link to the file."""
    about = entry.about
    name = escape(text("video_of", language, prompt=about["prompt"]), quote=True)
    line = text(
        "made",
        language,
        frames=about["num_frames"],
        size=f"{about['width']}x{about['height']}",
        seed=about["seed"],
        seconds=f"{sum(about['seconds'].values()):.1f}",
    )
    line = f"{line} · {policy_title(about['policy'], language)}"
    url = escape(studio.url(entry.video), quote=True)
    play = "autoplay " if autoplay else ""
    return (
        f'<div class="pab-stage"><video src="{url}" {play}loop muted playsinline controls aria-label="{name}"></video>'
        f'</div><p class="pab-status" role="status"><span>{escape(line)}</span> '
        f'<a href="{url}" download>{escape(text("download", language))}</a></p>'
    )


def policy_title(policy: str, language: str) -> str:
    """A policy's name in words, as far as there are some: "Quality (pab246)"."""
    if (level := level_of(policy)) is not None:
        return f"{text(level, language)} ({policy})"
    return level_title(policy, language)


def show_settings(entry: Entry, language: str) -> str:
    """The settings of a video as a table."""
    about = entry.about
    seconds = about["num_frames"] / about["fps"]
    rows: list[tuple[str, Any]] = [
        ("prompt", about["prompt"]),
        ("negative", about.get("negative", "")),
        ("model", model_title(about["model"], about["model"], language)),
        ("policy", policy_title(about["policy"], language)),
        ("size", f"{about['width']}x{about['height']}"),
        ("frames", text("length", language, frames=about["num_frames"], seconds=f"{seconds:.1f}")),
        ("steps", about["steps"]),
        ("guidance", f"{about['guidance']:g}"),
        ("seed", about["seed"]),
        ("seconds", f"{about['seconds']['denoise']:.2f}"),
    ]
    return table_of([(text(key, language), str(value)) for key, value in rows if value != ""])


def table_of(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<table class="pab-table"><tbody>{cells}</tbody></table>'
