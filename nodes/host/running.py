"""While a node runs: its bar and previews, the user's cancel, and a line of words"""

# The host is not installed where this is checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import TYPE_CHECKING

import comfy.model_management as memory
import comfy.utils
from PIL import Image
from server import PromptServer
from torch import Tensor

from pab_core import Pipeline, Progress
from pab_core.results import ProgressCallback

if TYPE_CHECKING:
    from pab_core.parallel.pool.record import PoolProgress

PREVIEW_SIZE = 512  # longest side of a preview, pixels


def progress(pipeline: Pipeline, part: int = 0, parts: int = 1) -> ProgressCallback:
    """A callback that moves the bar of the running node, shows previews on it, and raises the host's own exception when
    the user cancels. `part` of `parts`: of a run that is made in several."""
    show = _bar(part, parts)

    def report(event: Progress) -> None:
        check_cancelled()
        show(event.done, event.total, None if event.latents is None else preview(pipeline, event.latents))

    return report


def pool_progress(part: int = 0, parts: int = 1) -> Callable[["PoolProgress"], None]:
    """As `progress`, of a job on a pool of workers."""
    show = _bar(part, parts)

    def report(event: "PoolProgress") -> None:
        small = event.preview
        show(event.done, event.total, None if small is None else enlarged(small[len(small) // 2]))

    return report


def _bar(part: int, parts: int) -> Callable[[int, int, Image.Image | None], None]:
    bar = comfy.utils.ProgressBar(1)

    def show(done: int, total: int, picture: Image.Image | None) -> None:
        shown = None if picture is None else ("JPEG", picture, PREVIEW_SIZE)
        bar.update_absolute(part * total + done, parts * total, shown)

    return show


def count_progress() -> Callable[[int, int], None]:
    """As `progress`, of what is only counted."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        check_cancelled()
        bar.update_absolute(done, max(total, 1))

    return report


def check_cancelled() -> None:
    """Raises the host's own exception when the user cancels."""
    memory.throw_exception_if_processing_interrupted()


def preview(pipeline: Pipeline, latents: Tensor) -> Image.Image:
    """A picture of the middle frame of latents [1, C, T, h, w], as large as the preview may be."""
    middle = latents.shape[2] // 2
    return enlarged(pipeline.preview(latents[:, :, middle : middle + 1])[0])


def enlarged(frame: Tensor) -> Image.Image:
    """A small picture uint8 [h, w, 3], as large as the preview may be."""
    small = Image.fromarray(frame.numpy())
    scale = PREVIEW_SIZE / max(small.size)
    # The host would enlarge it too, but only linearly, which shows every latent as a diamond.
    return small.resize((round(small.width * scale), round(small.height * scale)), Image.Resampling.BICUBIC)


def say(text: str, node_id: str) -> None:
    """Shows a line on a node."""
    PromptServer.instance.send_progress_text(text, node_id, PromptServer.instance.client_id)
