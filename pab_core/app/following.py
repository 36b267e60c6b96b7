"""Whose a call of the page or the API is, how it follows its job, and how it finds that again after a reload."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from ..errors import PabError
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


def remembered(key: str) -> gr.BrowserState:
    """A job's id that the browser keeps. To be made outside of tabs: what is in one that is not open is not read."""
    # The secret hides nothing that is one; drawn anew, as gradio would, it makes a restart an error in the browser.
    return gr.BrowserState("", storage_key=key, secret=key)


class JobOfBrowser:
    """The last job of one tab of the page, which the browser remembers: a page that is opened anew shows it again.

    `known`: as `remembered` made it. `show` gives the HTML of a job's view, and of none.
    """

    def __init__(self, studio: Studio, known: gr.BrowserState, show: Callable[[View | None, str, str], str]):
        self.studio = studio
        self.id = known
        self._show = show

    def find(self, job: str, owner: str) -> View | None:
        """None where the studio does not know the job any more."""
        if job and isinstance(job, str):
            with contextlib.suppress(PabError):
                return self.studio.queue.view(job, owner)
        return None

    def cancel(self, job: str, request: gr.Request) -> Any:
        """-> for the button."""
        owner, _ = owner_of(request)
        if self.find(job, owner) is not None:
            self.studio.queue.cancel(job, owner)
        return gr.update(interactive=False)

    async def start(
        self,
        submit: Callable[[str, str], str],
        refused: Callable[[PabError], Any],
        language: str,
        request: gr.Request,
    ) -> AsyncIterator[list[Any]]:
        """Puts a job into the queue and follows it -> the stage, the job's id, the buttons that start and cancel.

        submit: owner, visitor -> id. refused: what the stage shows of a job that was not taken.
        """
        owner, visitor = owner_of(request)
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        try:
            job = await asyncio.to_thread(submit, owner, visitor)
        except PabError as error:
            yield [refused(error), gr.skip(), *idle]
            return
        busy: list[Any] = [gr.update(interactive=False), gr.update(interactive=True)]
        async for view in follow(self.studio, job, owner):
            yield [self._show(view, owner, language), job, *(idle if view.ended else busy)]
            busy = [gr.skip(), gr.skip()]

    async def resume(self, job: str, language: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        """Follows it on a page that is new -> the stage, and the buttons that start and cancel."""
        owner, _ = owner_of(request)
        if (found := self.find(job, owner)) is None or found.ended:
            yield [self._show(found, owner, language), gr.skip(), gr.skip()]
            return
        async for view in follow(self.studio, job, owner):
            yield [
                self._show(view, owner, language),
                gr.update(interactive=view.ended),
                gr.update(interactive=not view.ended),
            ]

    def look(self, job: str, language: str, request: gr.Request) -> str:
        """The stage in another language."""
        owner, _ = owner_of(request)
        return self._show(self.find(job, owner), owner, language)
