"""Starts the studio's server. Safe by default: this machine only, no public link, no analytics, one folder served."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PabError
from .settings import StudioSettings

if TYPE_CHECKING:
    from .service import Studio


@dataclass
class Server:
    """A studio that is being served."""

    url: str
    studio: Studio
    page: Any  # gr.Blocks

    def close(self) -> None:
        self.page.close(verbose=False)
        self.studio.close()

    def wait(self) -> None:
        """Until the user stops the program."""
        try:
            self.page.block_thread()
        finally:
            self.studio.close()


def serve(settings: StudioSettings) -> Server:
    """Starts it in the background.

    Raises:
        PabError: gradio is not installed, the port is taken, the folder cannot be written, no model is at hand.
    """
    # Read when gradio is imported: it reports its use and asks for new versions otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise PabError(
            "The studio needs gradio, which is not installed: pip install 'pyramid-attention-broadcast[app]'."
        ) from None
    from .service import Studio
    from .studio import build_page, launch_options

    studio = Studio(settings)
    page = build_page(studio)
    try:
        _, url, _ = page.launch(
            server_name=settings.host,
            server_port=settings.port or None,
            auth=settings.auth,
            root_path=settings.root_path or None,
            allowed_paths=[str(settings.videos)],
            blocked_paths=[str(settings.database), str(settings.uploads)],
            max_file_size=f"{settings.limits.upload_mb}mb",
            share=False,
            inbrowser=False,
            quiet=True,
            show_error=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            prevent_thread_lock=True,
            **launch_options(),
        )
    except OSError as error:
        studio.close()
        raise PabError(f"The studio could not be served at {settings.host}:{settings.port}: {error}.") from None
    return Server(url, studio, page)


def warning_for(settings: StudioSettings) -> str:
    """What whoever opens the studio to the network should know; empty where all is well."""
    if settings.host in ("127.0.0.1", "localhost", "::1") or settings.auth:
        return ""
    return (
        "Everybody who can reach this machine can now make videos and see and delete all that were made: give "
        "--auth name:password to let in only those who have it."
    )
