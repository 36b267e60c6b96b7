"""History: every video that was made, with its settings."""

from __future__ import annotations

import json
import time
from typing import Any

import gradio as gr

from ..errors import PabError
from .create_fields import SLIDERS, VALUES, CreateFields
from .explaining import explained
from .following import owner_of
from .history import Entry
from .illustration import show_pictures
from .labels import Labels
from .request import ClipRequest, preset_values
from .service import Studio
from .sharing import workflow_for
from .stage import message, show_entry, show_settings
from .texts import text

_PAGE = 24  # videos that are shown at first, and with each "more"


class HistoryPage:
    """Lays the page out inside the open gr.Blocks."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State, create: CreateFields):
        self.studio = studio
        self.create = create
        self.language = language
        self.shown = gr.State([])  # ids as they stand in the gallery
        self.chosen = gr.State("")
        self.limit = gr.State(_PAGE)
        with gr.Column(elem_id="pab-history"):
            with gr.Row(visible=False, elem_id="pab-details") as self.details:
                with gr.Column(scale=3):
                    self.video = gr.HTML()
                with gr.Column(scale=2):
                    self.settings = gr.HTML()
                    self.use = labels(gr.Button, words={"value": "use"}, variant="primary", elem_id="pab-use")
                    with gr.Row():
                        self.workflow = labels(
                            gr.DownloadButton, words={"label": "workflow"}, size="sm", elem_id="pab-workflow"
                        )
                        self.delete = labels(gr.Button, words={"value": "delete"}, size="sm", elem_id="pab-delete")
                    with gr.Row(visible=False) as self.confirm:
                        self.sure = labels(
                            gr.Button,
                            words={"value": "confirm_delete"},
                            variant="stop",
                            size="sm",
                            elem_id="pab-sure",
                        )
                        self.keep = labels(gr.Button, words={"value": "keep"}, size="sm")
            self.note = gr.HTML()
            self.gallery = labels(
                gr.Gallery,
                words={"label": "videos"},
                show_label=False,
                columns=4,
                height="auto",
                allow_preview=False,
                object_fit="cover",
                buttons=[],
                interactive=False,
                elem_id="pab-gallery",
            )
            self.more = labels(gr.Button, words={"value": "show_more"}, size="sm", visible=False)

    def connect(self, tab: gr.Tab, tabs: gr.Tabs) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        listing = [self.gallery, self.shown, self.more, self.note]
        tab.select(self._list, [self.limit, self.language], listing, **quiet)
        self.more.click(lambda limit: limit + _PAGE, self.limit, self.limit, **quiet).then(
            self._list, [self.limit, self.language], listing, **quiet
        )
        about = [self.chosen, self.details, self.video, self.settings, self.workflow, self.confirm]
        # It stands above the gallery, which may be long.
        self.gallery.select(self._choose, [self.shown, self.language], about, **quiet).then(
            None, None, None, js="() => document.getElementById('pab-history').scrollIntoView({behavior: 'smooth'})"
        )
        self.delete.click(lambda: gr.update(visible=True), None, self.confirm, **quiet)
        self.keep.click(lambda: gr.update(visible=False), None, self.confirm, **quiet)
        self.sure.click(
            self._delete, [self.chosen, self.limit, self.language], [*listing, self.details, self.confirm], **quiet
        )
        fields = [getattr(self.create, name) for name in (*VALUES, *SLIDERS)]
        offered = [self.create.filled, self.create.known]
        filled = [*fields, *offered, self.create.pictures, self.create.shown, tabs]
        self.use.click(self._use, [self.chosen, self.language], filled, **quiet)

    def _list(self, limit: int, language: str, request: gr.Request) -> list[Any]:
        owner, _ = owner_of(request)
        try:
            entries = self.studio.history.list(owner, limit)
            more = self.studio.history.count(owner) > limit
        except PabError as error:
            return [[], [], gr.update(visible=False), message(explained(str(error), language))]
        pictures = [(str(entry.thumbnail), entry.about["prompt"]) for entry in entries if entry.thumbnail.is_file()]
        ids = [entry.id for entry in entries if entry.thumbnail.is_file()]
        note = text("choose_video" if ids else "no_videos", language)
        gallery = gr.update(value=pictures, selected_index=None, visible=bool(ids))
        return [gallery, ids, gr.update(visible=more), message(note, "note")]

    def _choose(self, shown: list[str], language: str, event: gr.SelectData, request: gr.Request) -> list[Any]:
        owner, _ = owner_of(request)
        index = event.index if isinstance(event.index, int) else event.index[0]
        try:
            entry = self.studio.history.get(shown[index], owner)
        except (PabError, IndexError):
            return ["", gr.update(visible=False), "", "", None, gr.update(visible=False)]
        return [
            entry.id,
            gr.update(visible=True),
            show_entry(self.studio, entry, language),
            f"<p class='pab-note'>{text('created_at', language)} {_moment(entry)}</p>" + show_settings(entry, language),
            self._write_workflow(entry),
            gr.update(visible=False),
        ]

    def _write_workflow(self, entry: Entry) -> str | None:
        """The workflow as a file beside the video, for the download button."""
        request = ClipRequest.from_json(entry.request)
        offered = self.studio.offered.get(request.model)
        if offered is None:
            return None
        path = entry.video.with_suffix(".json")
        try:
            path.write_text(json.dumps(workflow_for(request, offered.spec), indent=2), encoding="utf-8")
        except (OSError, PabError):
            return None
        return str(path)

    def _delete(self, chosen: str, limit: int, language: str, request: gr.Request) -> list[Any]:
        owner, _ = owner_of(request)
        words = text("deleted", language)
        try:
            self.studio.delete(chosen, owner)
        except PabError as error:
            words = explained(str(error), language)
        listing = self._list(limit, language, request)
        listing[-1] = message(words, "note") + listing[-1]
        return [*listing, gr.update(visible=False), gr.update(visible=False)]

    def _use(self, chosen: str, language: str, request: gr.Request) -> list[Any]:
        """Fills Create with the settings of a video and shows it."""
        owner, _ = owner_of(request)
        try:
            wish = ClipRequest.from_json(self.studio.history.get(chosen, owner).request)
        except PabError as error:
            raise gr.Error(explained(str(error), language)) from None
        offered = self.studio.offered.get(wish.model)
        if offered is None:
            raise gr.Error(explained(f"The model '{wish.model}' is not here any more.", language))
        spec = offered.spec
        levels = self.create.levels(wish.model, language)
        try:
            values = preset_values(wish.policy, spec)
        except PabError as error:  # a schedule that was calibrated here once
            raise gr.Error(explained(str(error), language)) from None
        own = {name: getattr(wish, name) for name in ("spatial", "temporal", "cross", "mlp")}
        values |= {name: value for name, value in own.items() if value is not None}
        if wish.window:
            values["start"], values["stop"] = (float(part) for part in wish.window.split(":"))
        changed = bool(wish.window) or any(value is not None for value in own.values())
        known = wish.policy in [name for _, name in levels]
        pictures = tuple(name if self._has(name) else "" for name in (wish.picture, wish.last_picture))
        found = [
            wish.prompt,
            wish.negative,
            wish.model,
            wish.size or f"{spec.width}x{spec.height}",
            wish.frames or str(spec.num_frames),
            spec.steps if wish.steps is None else wish.steps,
            spec.guidance if wish.guidance is None else wish.guidance,
            wish.seed,
            gr.update(choices=levels, value="custom" if changed or not known else wish.policy),
            wish.policy,
            *(values[name] for name in SLIDERS),
        ]
        assert len(found) == len(VALUES) + len(SLIDERS)
        offers = [wish.model, self.create.sliders_of_levels(wish.model, kept=True)]
        shown = show_pictures(self.studio, (pictures[0], pictures[1]), language)
        return [*found, *offers, pictures, shown, gr.Tabs(selected=0)]

    def _has(self, name: str) -> bool:
        try:
            return bool(name) and self.studio.find_picture(name).is_file()
        except PabError:
            return False


def _moment(entry: Entry) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created))
