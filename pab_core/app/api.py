"""The endpoints for gradio_client and other programs; docs/app/README.md shows them in use.

A job's id is all that is needed to follow it; nobody can guess another's.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.events import api as add_endpoint

from ..errors import PabError
from .following import follow, owner_of
from .history import Entry
from .jobs import View
from .offering import first_level
from .request import ClipRequest, FieldErrors
from .service import Studio


def add_endpoints(studio: Studio) -> None:
    """Adds them to the open gr.Blocks."""

    def request_of(model: str, policy: str, **given: Any) -> ClipRequest:
        model = model or next(iter(studio.offered))
        if not policy and model in studio.offered:
            policy = first_level(studio.offered[model])
        return ClipRequest(
            model=model, policy=policy, **{name: value for name, value in given.items() if value is not None}
        )

    async def submit(
        prompt: str,
        model: str = "",
        policy: str = "",
        seed: str = "",
        size: str = "",
        frames: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        spatial: int | None = None,
        temporal: int | None = None,
        cross: int | None = None,
        mlp: bool | None = None,
        window: str = "",
        negative: str = "",
        picture: str = "",
        last_picture: str = "",
        against: str = "",
        request: gr.Request = None,  # pyright: ignore[reportArgumentType] - gradio fills it in
    ) -> dict[str, Any]:
        """Puts a video into the queue, or with `against` two of one seed; returns the job's state with its id."""
        wish = request_of(
            prompt=prompt,
            model=model,
            policy=policy,
            seed=str(seed),
            size=size,
            frames=str(frames),
            steps=steps,
            guidance=guidance,
            spatial=spatial,
            temporal=temporal,
            cross=cross,
            mlp=mlp,
            window=window,
            negative=negative,
            picture=picture,
            last_picture=last_picture,
        )
        owner, visitor = owner_of(request)
        with _told():
            job = await asyncio.to_thread(studio.submit, wish, owner, visitor, against=against or None)
            return describe(studio.queue.view(job, owner))

    def status(job: str, request: gr.Request) -> dict[str, Any]:
        """Where a job stands: state, position, stage, step, error, ids of its videos, what was measured."""
        with _told():
            return describe(studio.queue.view(job, owner_of(request)[0]))

    async def wait(job: str, request: gr.Request) -> list[dict[str, Any]]:
        """Waits for a job to end; returns its videos: file, settings. A job that failed raises its error."""
        owner, _ = owner_of(request)
        with _told():
            async for view in follow(studio, job, owner):
                if view.state == "failed":
                    raise PabError(view.error)
                if view.state == "cancelled":
                    raise PabError("The job was cancelled.")
                if view.ended:
                    return [describe_entry(entry) for entry in studio.entries(view, owner)]
        return []

    def cancel(job: str, request: gr.Request) -> dict[str, Any]:
        """Cancels a job; one that runs ends at its next step."""
        with _told():
            return describe(studio.queue.cancel(job, owner_of(request)[0]))

    def history(limit: int = 24, request: gr.Request = None) -> list[dict[str, Any]]:  # pyright: ignore[reportArgumentType]
        """The newest videos: file, settings."""
        with _told():
            return [describe_entry(entry) for entry in studio.history.list(owner_of(request)[0], min(int(limit), 500))]

    def schedule(policy: str = "", model: str = "", steps: int | None = None) -> dict[str, Any]:
        """What a policy computes and what it reuses, step by step, and the predicted saving."""
        with _told():
            wish = request_of(model, policy, prompt="a", steps=steps)
            clip = studio.check(wish)
            return {"model": clip.offered.name, "saving": round(studio.saving(clip), 4), **clip.table.to_json()}

    anyhow: dict[str, Any] = {"concurrency_limit": None}
    for endpoint in (submit, status, wait, cancel, history, schedule):
        add_endpoint(endpoint, api_name=endpoint.__name__, **anyhow)

    def picture(file: str | None) -> str:
        if not file:
            raise gr.Error("Send a picture.", print_exception=False)
        with _told():
            return studio.keep_picture(file)

    # A file comes by way of a component, which takes it from the upload; nobody sees these.
    upload, name, press = gr.File(visible=False), gr.Textbox(visible=False), gr.Button(visible=False)
    press.click(picture, upload, name, api_name="picture", show_progress="hidden")


def describe(view: View) -> dict[str, Any]:
    """A job for programs."""
    told = asdict(view)
    told.pop("preview")
    return told


def describe_entry(entry: Entry) -> dict[str, Any]:
    """A video for programs; clients fetch the file that "video" names."""
    file = {"path": str(entry.video), "meta": {"_type": "gradio.FileData"}}
    return {"id": entry.id, "created": entry.created, "video": file, "about": entry.about, "request": entry.request}


class _told:
    """Turns a PabError into an answer in its words; by field where it is about fields."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FieldErrors):
            words = " ".join(f"{name}: {words}" for name, words in error.by_field.items())
            raise gr.Error(words, print_exception=False) from None
        if isinstance(error, PabError):
            raise gr.Error(str(error), print_exception=False) from None
