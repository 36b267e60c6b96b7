"""Create: the fields of one video, the live picture of its schedule, and the stage on which it appears."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from ..errors import PabError
from ..frame_input import PICTURES
from ..models.registry import ModelSpec
from ..noise_sampling import NoiseSampler
from .following import follow, owner_of
from .illustration import show_pictures, show_schedule
from .labels import Labels, choices
from .offering import length_choices, size_choices, takes_pictures, title_of
from .request import RANGES, ClipRequest, FieldErrors, preset_values, with_sliders
from .service import Studio
from .stage import empty_stage, message, show_view
from .texts import text

_FIELDS = ("prompt", "negative", "model", "size", "frames", "steps", "guidance", "seed", "policy", "picture")
_LEVELS = ("off", "quality", "balanced", "fast", "custom")
VALUES = ("prompt", "negative", "model", "size", "frames", "steps", "guidance", "seed", "policy", "base")
SLIDERS = (*RANGES, "mlp", "start", "stop")


class CreatePage:
    """Lays the page out inside the open gr.Blocks. `inputs` are its fields, which `read` turns into a request."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State):
        self.studio = studio
        self.language = language
        first = next(iter(studio.offered.values()))
        self.base = gr.State("quality")  # the level that the sliders were changed from
        self.pictures = gr.State(("", ""))
        self.job = gr.State("")
        with gr.Column(elem_id="pab-create"):
            with gr.Column(elem_classes="pab-ask"):
                self._ask(labels, first.name)
            with gr.Column(elem_classes="pab-show"):
                self.stage = labels(gr.HTML, words={"value": empty_stage}, elem_id="pab-stage")
                self.schedule = gr.HTML(elem_id="pab-schedule")
            with gr.Column(elem_classes="pab-tune"):
                self._tune(labels, first.spec)
            with gr.Column(elem_classes="pab-more"):
                self._more(labels, first.spec)
        fields = [getattr(self, name) for name in (*VALUES, *SLIDERS)]
        self.inputs = [*fields, self.pictures, language]
        self.look_outputs = [*(getattr(self, f"{name}_error") for name in _FIELDS), self.schedule]

    # -------------------------------------------------------------------------------------------------------- layout

    def _ask(self, labels: Labels, model: str) -> None:
        self.prompt = labels(
            gr.Textbox,
            words={"label": "prompt", "placeholder": "prompt_hint"},
            value=text("prompt_hint"),
            lines=3,
            max_lines=8,
            elem_id="pab-prompt",
        )
        self.prompt_error = _error()
        self.negative = labels(gr.Textbox, words={"label": "negative"}, visible=False, elem_id="pab-negative")
        self.negative_error = _error()
        self.model = labels(
            gr.Dropdown,
            words={"label": "model"},
            choices=[(title_of(offered), name) for name, offered in self.studio.offered.items()],
            value=model,
            visible=len(self.studio.offered) > 1,
            elem_id="pab-model",
        )
        self.model_error = _error()
        with gr.Row(elem_classes="pab-buttons"):
            self.go = labels(gr.Button, words={"value": "generate"}, variant="primary", elem_id="pab-generate", scale=3)
            self.stop_button = labels(
                gr.Button, words={"value": "cancel"}, interactive=False, elem_id="pab-cancel", scale=1
            )

    def _tune(self, labels: Labels, spec: ModelSpec) -> None:
        values = preset_values("quality", spec)
        self.policy = labels(
            gr.Radio,
            words={"label": "policy", "info": "policy_info", "choices": choices(*_LEVELS)},
            value="quality",
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

    # -------------------------------------------------------------------------------------------------------- events

    def connect(self) -> None:
        """Ties the controls to what they do. Nothing here has a name in the API; that is api.py's."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        errors = self.look_outputs[:-1]
        sliders = [getattr(self, name) for name in SLIDERS]
        watched = [getattr(self, name) for name in (*VALUES[:-1], *SLIDERS)]
        look = {"fn": self.look, "inputs": self.inputs, "outputs": self.look_outputs}
        gr.on(
            [control.change for control in watched],
            **look,
            **quiet,
            trigger_mode="always_last",
            concurrency_limit=4,
        )
        # By `input`, which only a person's hand makes: what a level does to the sliders must not name it "custom".
        self.policy.input(self._choose_level, [self.policy, self.model], [self.base, *sliders], **quiet)
        gr.on([slider.input for slider in sliders], lambda: "custom", None, self.policy, **quiet)
        self.model.input(
            self._choose_model,
            [self.model],
            [
                self.size,
                self.frames,
                self.steps,
                self.guidance,
                self.negative,
                self.given,
                self.policy,
                self.base,
                *sliders,
            ],
            **quiet,
        )
        self.dice.click(lambda: str(secrets.randbelow(2**32)), None, self.seed, **quiet)
        shown = [self.pictures, self.shown, self.picture_error]
        for place, button in enumerate(self.choose):
            button.upload(
                lambda path, kept, language, place=place: self._keep_picture(place, path, kept, language),
                [button, self.pictures, self.language],
                shown,
                **quiet,
            )
        self.remove.click(lambda: (("", ""), "", ""), None, shown, **quiet)
        buttons = [self.go, self.stop_button]
        gr.on(
            [self.go.click],
            self._generate,
            self.inputs,
            [self.stage, self.job, *buttons, *errors],
            concurrency_limit=None,
            **quiet,
        )
        self.stop_button.click(self.cancel, [self.job], [self.stop_button], **quiet)

    def read(self, values: tuple[Any, ...]) -> tuple[ClipRequest, str]:
        """What the `inputs` hold -> the request and the language. PabError where there is no such model."""
        *fields, (picture, last), language = values
        found = dict(zip((*VALUES, *SLIDERS), fields, strict=True))
        offered = self.studio.offered.get(found["model"])
        if offered is None:
            raise FieldErrors({"model": f"There is no model named '{found['model']}' here."})
        request = ClipRequest(
            prompt=found["prompt"] or "",
            model=found["model"],
            negative=(found["negative"] or "") if isinstance(offered.sampler, NoiseSampler) else "",
            size=str(found["size"] or ""),
            frames=str(found["frames"] or ""),
            steps=found["steps"],
            guidance=found["guidance"],
            seed=found["seed"] or "",
            policy=found["policy"] if found["policy"] != "custom" else found["base"],
            picture=picture,
            last_picture=last,
        )
        if found["policy"] == "custom":
            request = with_sliders(request, offered.spec, {name: found[name] for name in SLIDERS})
        return request, language

    def look(self, *values: Any) -> list[Any]:
        """Errors beside their fields, and the schedule picture."""
        language = values[-1]
        try:
            request, language = self.read(values)
            clip = self.studio.check(request)
        except FieldErrors as error:
            # An empty prompt or seed has no part in the schedule: whoever begins to write still sees it.
            return [*_beside(error.by_field), self._schedule_without_prompt(values, error, language)]
        return [*_beside({}), show_schedule(self.studio, clip, language)]

    def _schedule_without_prompt(self, values: tuple[Any, ...], error: FieldErrors, language: str) -> str:
        if set(error.by_field) <= {"prompt", "seed", "guidance", "negative", "picture"}:
            stand_in: Mapping[str, Any] = {"prompt": "a", "seed": "1", "guidance": None, "negative": ""}
            fields = [stand_in.get(name, value) for name, value in zip(VALUES, values, strict=False)]
            request, _ = self.read((*fields, *values[len(VALUES) : -2], ("", ""), language))
            return show_schedule(self.studio, self.studio.check(request), language)
        return f'<div class="pab-card">{message(text("no_schedule", language), "note")}</div>'

    def _choose_level(self, level: str, model: str) -> list[Any]:
        if level == "custom":
            return [gr.skip()] * (1 + len(SLIDERS))
        values = preset_values(level, self.studio.offered[model].spec)
        return [level, *(values[name] for name in SLIDERS)]

    def _choose_model(self, model: str) -> list[Any]:
        offered = self.studio.offered[model]
        spec = offered.spec
        values = preset_values("quality", spec)
        return [
            gr.update(**size_choices(spec)),
            gr.update(**length_choices(spec)),
            spec.steps,
            spec.guidance,
            gr.update(visible=isinstance(offered.sampler, NoiseSampler)),
            gr.update(visible=takes_pictures(spec)),
            "quality",
            "quality",
            *(values[name] for name in SLIDERS),
        ]

    def _keep_picture(self, place: int, path: str, kept: tuple[str, str], language: str) -> tuple[Any, Any, str]:
        try:
            name = self.studio.keep_picture(path)
        except PabError as error:
            return kept, gr.skip(), message(str(error))
        pictures = (name, kept[1]) if place == 0 else (kept[0], name)
        return pictures, show_pictures(self.studio, pictures, language), ""

    async def _generate(self, request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        """Puts the video into the queue and follows it."""
        language = values[-1]
        owner, visitor = owner_of(request)
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        try:
            wish, language = self.read(values)
            job = await asyncio.to_thread(self.studio.submit, wish, owner, visitor)
        except FieldErrors as error:
            yield [gr.skip(), gr.skip(), *idle, *_beside(error.by_field)]
            return
        except PabError as error:
            yield [_refused(str(error)), gr.skip(), *idle, *_beside({})]
            return
        busy = [gr.update(interactive=False), gr.update(interactive=True)]
        clear = _beside({})
        async for view in follow(self.studio, job, owner):
            buttons = idle if view.ended else busy
            yield [show_view(self.studio, view, owner, language), job, *buttons, *clear]
            busy, clear = [gr.skip(), gr.skip()], [gr.skip()] * len(_FIELDS)

    def cancel(self, job: str, request: gr.Request) -> Any:
        owner, _ = owner_of(request)
        if job:
            with contextlib.suppress(PabError):  # a page from before the studio was started anew
                self.studio.queue.cancel(job, owner)
        return gr.update(interactive=False)


def _error() -> gr.HTML:
    return gr.HTML(elem_classes="pab-error-slot")


def _beside(wrong: Mapping[str, str]) -> list[str]:
    return [message(wrong.get(name, "")) for name in _FIELDS]


def _refused(words: str) -> str:
    return f'<div class="pab-stage pab-empty">{message(words)}</div>'
