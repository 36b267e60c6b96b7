"""The fields of Create and the place where its video appears: what there is on the page, not what it does."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..frame_input import PICTURES
from ..models.registry import ModelSpec
from .ideas import is_demo
from .labels import Labels
from .models import Offered
from .offering import first_level, length_choices, level_choices, model_choices, size_choices, takes_pictures
from .request import RANGES, preset_values
from .service import Studio
from .stage import empty_stage, message
from .texts import text

FIELDS = ("prompt", "negative", "model", "size", "frames", "steps", "guidance", "seed", "policy", "picture")
VALUES = ("prompt", "negative", "model", "size", "frames", "steps", "guidance", "seed", "policy", "base")
SLIDERS = (*RANGES, "mlp", "start", "stop")


class CreateFields:
    """Lays the page out inside the open gr.Blocks.

    `inputs` are its fields; beside each of FIELDS is a place for what is wrong with it, NAME_error.
    """

    def __init__(self, studio: Studio, labels: Labels, language: gr.State):
        self.studio = studio
        self.language = language
        first = next(iter(studio.offered.values()))
        # Of these two the browser knows the values, so that choosing a level asks nobody; see create_page.
        self.base = gr.Textbox(first_level(first), visible=False)  # the level that the sliders were changed from
        self.known = gr.JSON(self.sliders_of_levels(first.name), visible=False)
        self.filled = gr.State(first.name)  # the model that the fields were last filled in for
        self.asked = gr.Number(visible=False)  # when the schedule was asked for, by the browser's clock
        self.answer = gr.JSON(visible=False)
        self.pictures = gr.State(("", ""))
        with gr.Column(elem_id="pab-create"):
            with gr.Column(elem_classes="pab-ask"):
                self._ask(labels, first)
            with gr.Column(elem_classes="pab-show"):
                self.stage = gr.HTML(empty_stage("en"), elem_id="pab-stage")
                self.schedule = gr.HTML(elem_id="pab-schedule")
            with gr.Column(elem_classes="pab-tune"):
                self._tune(labels, first)
            with gr.Column(elem_classes="pab-more"):
                self._more(labels, first.spec)
        fields = [getattr(self, name) for name in (*VALUES, *SLIDERS)]
        self.inputs = [*fields, self.pictures, language]
        self.look_outputs = [*(getattr(self, f"{name}_error") for name in FIELDS), self.schedule]

    def _ask(self, labels: Labels, first: Offered) -> None:
        self.prompt = labels(
            gr.Textbox,
            words={"label": "prompt", "placeholder": "prompt_hint"},
            value=text("prompt_hint"),
            lines=3,
            max_lines=8,
            elem_id="pab-prompt",
        )
        with gr.Row(elem_classes="pab-ideas"):
            self.knows = labels(
                gr.HTML, words={"value": knows}, visible=is_demo(first.spec), elem_id="pab-knows", scale=4
            )
            self.idea = labels(
                gr.Button,
                words={"value": lambda language: f"⚄ {text('idea', language)}"},
                size="sm",
                min_width=90,
                scale=1,
                elem_id="pab-idea",
            )
        self.prompt_error = _error()
        self.negative = labels(gr.Textbox, words={"label": "negative"}, visible=False, elem_id="pab-negative")
        self.negative_error = _error()
        self.model = labels(
            gr.Dropdown,
            words={"label": "model", "choices": model_choices(self.studio.offered)},
            value=first.name,
            visible=len(self.studio.offered) > 1,
            elem_id="pab-model",
        )
        self.model_error = _error()
        with gr.Row(elem_classes="pab-buttons"):
            self.go = labels(gr.Button, words={"value": "generate"}, variant="primary", elem_id="pab-generate", scale=3)
            self.stop_button = labels(
                gr.Button, words={"value": "cancel"}, interactive=False, elem_id="pab-cancel", scale=1
            )

    def levels(self, model: str, language: str) -> list[tuple[str, str]]:
        """The choices of a policy: not among `labels`, since they change with the model, too."""
        return [*level_choices(self.studio.offered[model], language), (text("custom", language), "custom")]

    def sliders_of_levels(self, model: str, *, kept: bool = False, before: str = "") -> dict[str, Any]:
        """What choosing a level does to (base, *SLIDERS), and which level is the model's first.

        kept: what is chosen now stands as it is. before: the first level of the model that was chosen before.
        """
        offered = self.studio.offered[model]
        values = {level: preset_values(level, offered.spec) for _, level in level_choices(offered, "en")}
        levels = {level: [level, *(found[name] for name in SLIDERS)] for level, found in values.items()}
        return {"model": model, "kept": kept, "levels": levels, "first": first_level(offered), "before": before}

    def _tune(self, labels: Labels, first: Offered) -> None:
        level = first_level(first)
        values = preset_values(level, first.spec)
        self.policy = labels(
            gr.Radio,
            words={"label": "policy", "info": "policy_info"},
            choices=self.levels(first.name, "en"),
            value=level,
            elem_id="pab-policy",
        )
        with gr.Row(elem_classes="pab-ranges"):
            for kind in RANGES:
                slider = labels(
                    gr.Slider,
                    1,
                    12,
                    words={"label": kind},
                    value=values[kind],
                    step=1,
                    buttons=[],
                    min_width=120,
                    elem_id=f"pab-{kind}",
                )
                setattr(self, kind, slider)
        with gr.Row(elem_classes="pab-ranges"):
            for end in ("start", "stop"):
                slider = labels(
                    gr.Slider,
                    0,
                    1,
                    words={"label": end},
                    value=values[end],
                    step=0.01,
                    buttons=[],
                    scale=2,
                    min_width=120,
                    elem_id=f"pab-{end}",
                )
                setattr(self, end, slider)
            self.mlp = labels(
                gr.Checkbox, words={"label": "mlp"}, value=values["mlp"], min_width=120, elem_id="pab-mlp"
            )
        self.policy_error = _error()

    def _more(self, labels: Labels, spec: ModelSpec) -> None:
        with gr.Row(elem_classes="pab-numbers"):
            self.size = labels(
                gr.Dropdown,
                words={"label": "size", "info": "size_info"},
                **size_choices(spec),
                allow_custom_value=True,
                min_width=120,
                elem_id="pab-size",
            )
            self.frames = labels(
                gr.Dropdown,
                words={"label": "frames", "info": "frames_info"},
                **length_choices(spec),
                allow_custom_value=True,
                min_width=120,
                elem_id="pab-frames",
            )
        self.size_error, self.frames_error = _error(), _error()
        with gr.Row(elem_classes="pab-numbers"):
            self.steps = labels(
                gr.Number,
                words={"label": "steps", "info": "steps_info"},
                value=spec.steps,
                min_width=120,
                elem_id="pab-steps",
            )
            self.guidance = labels(
                gr.Number,
                words={"label": "guidance", "info": "guidance_info"},
                value=spec.guidance,
                step=0.5,
                min_width=120,
                elem_id="pab-guidance",
            )
        self.steps_error, self.guidance_error = _error(), _error()
        with gr.Row(elem_classes="pab-numbers pab-seed"):
            self.seed = labels(
                gr.Textbox,
                words={"label": "seed", "info": "seed_info"},
                max_lines=1,
                min_width=120,
                scale=3,
                elem_id="pab-seed",
            )
            self.dice = labels(gr.Button, words={"value": lambda language: f"⚄ {text('dice', language)}"}, min_width=90)
        self.seed_error = _error()
        self.given = labels(
            gr.Accordion,
            words={"label": "pictures"},
            open=False,
            visible=takes_pictures(spec),
            elem_id="pab-pictures",
        )
        with self.given:
            kinds = list(PICTURES)
            with gr.Row():
                self.choose = [
                    labels(gr.UploadButton, words={"label": key}, file_types=kinds, size="sm", elem_id=f"pab-{key}")
                    for key in ("choose_picture", "choose_last")
                ]
                self.remove = labels(gr.Button, words={"value": "remove_pictures"}, size="sm")
            self.shown = gr.HTML()
            self.picture_error = _error()


def _error() -> gr.HTML:
    return gr.HTML(elem_classes="pab-error-slot")


def knows(language: str) -> str:
    """What the demo models can make."""
    return message(text("knows", language), "note")
