"""Create: what the fields of one video do, the live picture of its schedule, and the stage on which it appears."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from ..errors import PabError
from ..noise_sampling import NoiseSampler
from .create_fields import FIELDS, SLIDERS, VALUES, CreateFields
from .explaining import explained
from .following import JobOfBrowser
from .ideas import is_demo, new_idea
from .illustration import show_pictures, show_schedule
from .jobs import View
from .labels import Labels
from .offering import first_level, length_choices, size_choices, takes_pictures
from .request import ClipRequest, FieldErrors, with_sliders
from .service import Studio
from .stage import empty_stage, message, refusal, show_view
from .texts import text, wrong

# What a click changes is changed in the browser: an answer from the server may come after the next click and undo it.
_CHOOSE_LEVEL = "(level, known) => known.levels[level]"  # nothing for "custom"
# Who has left the choice of a level to the studio leaves it so with the next model, too.
_SETTLE_LEVEL = """(level, known) => {
    if (known.kept) return;
    const stays = known.levels[level] && level !== known.before ? level : known.first;
    return [stays, ...known.levels[stays]];
}"""
# Answers may come out of turn: several are on their way when many fields change at once.
_ASK = "(...values) => [...values.slice(0, -1), performance.timeOrigin + performance.now()]"
_SHOW_UNLESS_LATE = """(answer) => {
    if (!answer || answer.asked < (window.pabLooked || 0)) return;
    window.pabLooked = answer.asked;
    return answer.shown;
}"""


class CreatePage(CreateFields):
    """`read` turns the `inputs` into a request."""

    def __init__(self, studio: Studio, labels: Labels, language: gr.State, job: gr.BrowserState):
        super().__init__(studio, labels, language)
        self.job = JobOfBrowser(studio, job, self._show)

    def connect(self, page: gr.Blocks) -> None:
        """Ties the controls to what they do. Nothing here has a name in the API; that is api.py's."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        errors = self.look_outputs[:-1]
        sliders = [getattr(self, name) for name in SLIDERS]
        # `known` for the model: when it changes, the other fields are filled in for that.
        watched = [self.known, *(getattr(self, name) for name in (*VALUES, *SLIDERS) if name not in ("model", "base"))]
        looked = gr.on(
            [page.load, self.language.change, *(control.change for control in watched)],
            self._answer,
            [*self.inputs, self.asked],
            self.answer,
            js=_ASK,
            **quiet,
            trigger_mode="always_last",
            concurrency_limit=4,
        )
        looked.then(None, self.answer, self.look_outputs, js=_SHOW_UNLESS_LATE, **quiet)
        # By `change`: a list of gradio's says `input` whenever it is left, too. One event for all three, since such
        # events come after one another, as do their answers.
        filled = gr.on(
            [page.load, self.language.change, self.model.change],
            self.fill,
            [self.model, self.filled, self.language],
            [
                self.filled,
                self.size,
                self.frames,
                self.steps,
                self.guidance,
                self.negative,
                self.knows,
                self.given,
                self.policy,
                self.known,
            ],
            **quiet,
            trigger_mode="always_last",
        )
        filled.then(None, [self.policy, self.known], [self.policy, self.base, *sliders], js=_SETTLE_LEVEL, **quiet)
        # By `input`, which only a person's hand makes: what a level does to the sliders must not name it "custom".
        self.policy.input(None, [self.policy, self.known], [self.base, *sliders], js=_CHOOSE_LEVEL, **quiet)
        gr.on([slider.input for slider in sliders], None, None, self.policy, js="() => 'custom'", **quiet)
        self.idea.click(
            lambda model, prompt: new_idea(self.studio.offered[model].spec, prompt),
            [self.model, self.prompt],
            self.prompt,
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
        self.resumed = [self.stage, *buttons]
        gr.on(
            [self.go.click],
            self._generate,
            self.inputs,
            [self.stage, self.job.id, *buttons, *errors],
            concurrency_limit=None,
            **quiet,
        )
        self.stop_button.click(self.job.cancel, [self.job.id], [self.stop_button], **quiet)

    def read(self, values: tuple[Any, ...]) -> tuple[ClipRequest, str]:
        """What the `inputs` hold -> the request and the language. PabError where there is no such model."""
        *fields, (picture, last), language = values
        found = dict(zip((*VALUES, *SLIDERS), fields, strict=True))
        offered = self.studio.offered.get(found["model"])
        if offered is None:
            raise FieldErrors({"model": f"There is no model named '{found['model']}' here."})
        # What the model does not take is hidden with what stands in it, for one that does.
        if not takes_pictures(offered.spec):
            picture = last = ""
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
            return [*_beside(error.by_field, language), self._schedule_without_prompt(values, error, language)]
        return [*_beside({}, language), show_schedule(self.studio, clip, language)]

    def _schedule_without_prompt(self, values: tuple[Any, ...], error: FieldErrors, language: str) -> str:
        if set(error.by_field) <= {"prompt", "seed", "guidance", "negative", "picture"}:
            stand_in: Mapping[str, Any] = {"prompt": "a", "seed": "1", "guidance": None, "negative": ""}
            fields = [stand_in.get(name, value) for name, value in zip(VALUES, values, strict=False)]
            request, _ = self.read((*fields, *values[len(VALUES) : -2], ("", ""), language))
            return show_schedule(self.studio, self.studio.check(request), language)
        return f'<div class="pab-card">{message(text("no_schedule", language), "note")}</div>'

    def _answer(self, *values: Any) -> dict[str, Any]:
        """`look`, with when it was asked for."""
        return {"asked": values[-1], "shown": self.look(*values[:-1])}

    def fill(self, model: str, filled: str, language: str) -> list[Any]:
        """What the fields offer for a model; unless they were filled in for it before, its own values, too."""
        offered = self.studio.offered[model]
        spec, kept = offered.spec, model == filled
        lists = [size_choices(spec), length_choices(spec)]
        if kept:
            lists = [{"choices": one["choices"]} for one in lists]
        return [
            model,
            *(gr.update(**one) for one in lists),
            gr.skip() if kept else spec.steps,
            gr.skip() if kept else spec.guidance,
            gr.update(visible=isinstance(offered.sampler, NoiseSampler)),
            gr.update(visible=is_demo(spec)),
            gr.update(visible=takes_pictures(spec)),
            gr.update(choices=self.levels(model, language)),
            self.sliders_of_levels(model, kept=kept, before=first_level(self.studio.offered[filled])),
        ]

    def _keep_picture(self, place: int, path: str, kept: tuple[str, str], language: str) -> tuple[Any, Any, str]:
        try:
            name = self.studio.keep_picture(path)
        except PabError as error:
            return kept, gr.skip(), message(wrong("picture", str(error), language))
        pictures = (name, kept[1]) if place == 0 else (kept[0], name)
        return pictures, show_pictures(self.studio, pictures, language), ""

    async def _generate(self, request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        """Puts the video into the queue and follows it."""
        language = values[-1]
        beside: list[Any] = _beside({}, language)

        def submit(owner: str, visitor: str) -> str:
            return self.studio.submit(self.read(values)[0], owner, visitor)

        def refused(error: PabError) -> Any:
            nonlocal beside
            if isinstance(error, FieldErrors):
                beside = _beside(error.by_field, language)
                return gr.skip()
            return refusal(message(explained(str(error), language)))

        async for update in self.job.start(submit, refused, language, request):
            yield [*update, *beside]
            beside = [gr.skip()] * len(FIELDS)

    def _show(self, view: View | None, owner: str, language: str) -> str:
        return empty_stage(language) if view is None else show_view(self.studio, view, owner, language)


def _beside(by_field: Mapping[str, str], language: str) -> list[str]:
    return [message(wrong(name, by_field.get(name, ""), language)) for name in FIELDS]
