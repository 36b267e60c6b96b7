"""Routes of ours on the host's server, for its page"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web
from server import PromptServer

from pab_core import PabError

MOST_BODY = 65536  # bytes of a request


def route(path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Serves POST `path`: JSON in, JSON out, off the host's own loop. PabErrors become {"error": words}."""

    async def handle(request: web.Request) -> web.Response:
        try:
            given = json.loads(await _body(request))
            if not isinstance(given, dict):
                raise PabError("The request must be a JSON object.")
            return web.json_response(await asyncio.to_thread(answer, given))
        except (PabError, ValueError, RecursionError) as error:
            words = str(error) if isinstance(error, PabError) else "The request is no valid JSON."
            return web.json_response({"error": words}, status=400)
        except web.HTTPException:  # such as a body that is longer than the host takes
            raise
        except Exception:
            logging.exception("%s failed", path)
            words = "The server failed at this; its log says where."
            return web.json_response({"error": words}, status=500)

    PromptServer.instance.routes.post(path)(handle)


async def _body(request: web.Request) -> bytes:
    """At most MOST_BODY bytes: the host takes 100 MB and more, and a chunked body does not tell its length."""
    body = b""
    async for part in request.content.iter_chunked(MOST_BODY):
        body += part
        if len(body) > MOST_BODY:
            raise PabError("The request is too long.")
    return body
