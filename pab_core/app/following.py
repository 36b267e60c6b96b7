"""Whose a call of the page or the API is, and how it follows its job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import gradio as gr

from .jobs import View
from .service import Studio

_POLL = 0.2  # seconds between two looks at a job


def owner_of(request: gr.Request | None) -> tuple[str, str]:
    """-> whose history, and whom the limits count."""
    name = getattr(request, "username", None) or ""
    return name, name or getattr(request, "session_hash", None) or "nobody"


async def follow(studio: Studio, job: str, owner: str) -> AsyncIterator[View]:
    """A job's views, one for each change, until it has ended."""
    seen: View | None = None
    while True:
        view = studio.queue.view(job, owner)
        if view != seen:
            seen = view
            yield view
        if view.ended:
            return
        await asyncio.sleep(_POLL)
