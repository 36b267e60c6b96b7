"""Calibrate (PAB)"""

import copy
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pab_core import PabError, Pipeline, Policy
from pab_core.broadcast import Window, customise, find_policy

from . import host
from .broadcast import POLICIES
from .host import io
from .types import ChosenPolicy, LoadedModel, ModelType, PolicyType, check_name, one_of

RANGES = [name for name in POLICIES if name.startswith("pab")]
METHODS = ("window", "search")
_PROMPTS = (
    "a red ball rolls left over a green floor\n"
    "a blue cube spins on sand at sunset\n"
    "a yellow cone moves towards the camera over a checkered floor"
)
_MOST_PROMPTS = 64


class CalibratePolicy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABCalibrate",
            display_name="Calibrate (PAB)",
            description=(
                "Measures, on a few prompts of yours, how much a model's attention changes from step to step, and "
                "makes a policy for that model of it. Slow, but done once: keep it with Save Schedule (PAB). A "
                "cancelled calibration goes on where it was."
            ),
            search_aliases=["calibrate", "tune", "u-shape", "find policy", "pab"],
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB)."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default=_PROMPTS,
                    tooltip="One prompt a line, such as you use; three or more. Each costs a whole run without reuse.",
                ),
                host.choice(
                    "method",
                    METHODS,
                    tooltip="window: the ranges below, in the part of the run where attention changes least; one run a "
                    "prompt. search: finds the steps to compute, for the saving below; some fifty runs a prompt.",
                ),
                io.Combo.Input(
                    "ranges", options=RANGES, default="pab246", tooltip="For the method window: the ranges to use."
                ),
                io.Float.Input(
                    "tolerance",
                    default=2.0,
                    min=1.0,
                    max=20.0,
                    step=0.5,
                    tooltip="For the method window: a step counts as calm as long as attention changes at most so many "
                    "times as much as at its calmest. More: a wider window, a faster run, a less equal video.",
                ),
                io.Float.Input(
                    "saving",
                    default=0.2,
                    min=0.05,
                    max=0.6,
                    step=0.05,
                    tooltip="For the method search: the share of the denoising's arithmetic to save.",
                ),
                io.Int.Input("seed", default=1, min=0, max=2**32, tooltip="Of the first prompt; each has the next."),
            ],
            outputs=[
                PolicyType.Output(display_name="policy", tooltip="For Video Sampler (PAB) or Save Schedule (PAB)."),
                io.Image.Output(display_name="figure", tooltip="What was measured, and the schedule made of it."),
                io.String.Output(display_name="report", tooltip="The same in words; for Preview Any."),
            ],
        )

    @classmethod
    def execute(
        cls, model: LoadedModel, prompts: str, method: str, ranges: str, tolerance: float, saving: float, seed: int
    ):
        from pab_core.evaluate.generation import Clip
        from pab_core.evaluate.recording import record, stable_window

        from .figure import draw_figure, save_curves

        one_of("method", method, METHODS)
        check_name(ranges)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not 1 <= len(lines) <= _MOST_PROMPTS:
            raise PabError(f"A calibration takes 1 to {_MOST_PROMPTS} prompts, one a line, and here are {len(lines)}.")
        pipeline = model.pipeline
        spec = pipeline.spec
        clips = [Clip(line, seed + i) for i, line in enumerate(lines)]
        model.bring("transformer")
        recording = record(watched(model, len(clips) * spec.steps), clips, scratch_file(pipeline, clips, "record"))
        curves = {kind: recording.of_kind(kind) for kind in pipeline.schedule("off").kinds}
        try:
            save_curves(curves, curves_file(spec.name))
        except PabError as error:  # they are for the page alone: no reason to lose what was measured
            logging.warning(error)
        steps = len(recording.timesteps)
        if method == "search":
            policy = search(model, clips, saving, scratch_file(pipeline, clips, "search"))
        else:
            start, stop = stable_window(recording, tolerance)
            # A policy of the model's family: pab246 may be chosen for any.
            policy = customise(
                find_policy(ranges, spec.family, spec.depth),
                spec.family,
                spec.depth,
                window=Window(round(start / steps, 4), round(stop / steps, 4)),
            )
        table = pipeline.schedule(policy)
        figure = draw_figure(curves, table, f"{spec.title}: change from step to step, mean of {len(clips)} clips")
        shares = ", ".join(f"{kind} {table.reused_share(kind):.0%}" for kind in table.kinds)
        window = f"\ncalm from {policy.window.text} of the run" if isinstance(policy, Policy) else ""
        return io.NodeOutput(ChosenPolicy(policy), figure, f"{table.policy}\nreused: {shares}{window}")


def search(model: LoadedModel, clips: list[Any], saving: float, path: Path) -> Any:
    """The schedule that saves that share of the arithmetic at the least error, as a file's content."""
    from pab_core.evaluate.calibrate import Trial, calibrated_file, make_units
    from pab_core.evaluate.calibration import BEST, Search
    from pab_core.evaluate.costs import find_costs
    from pab_core.evaluate.spread import spread

    bar = host.count_progress()
    pipe = watched(model, None)
    trial = Trial(pipe, clips, path, batch=1)
    units = make_units(trial.off.branches, 1, "model")
    # First every step is reused once alone, which is half of the bar, then the computed ones are placed and moved.
    trial.on_judged = lambda known: bar(min(100 * known // (trial.off.steps - 1), 100), 200)

    def on_progress(left: float, _: float) -> None:
        bar(100 + min(int(100 * (1 - left) / saving), 100), 200)

    predictors = Search("model", predictor=BEST).predictors
    costs = find_costs(pipe, "flops", clips)
    best = spread(trial, costs, units, share=1 - saving, predictors=predictors, on_progress=on_progress)
    note = f"searched on {len(clips)} clips for {saving:.0%} less arithmetic"
    return calibrated_file(pipe, best, f"calibrated-{round(100 * saving)}", note, merge=True)


def watched(model: LoadedModel, total: int | None) -> Pipeline:
    """The same pipeline, whose runs stop within a step when the user cancels, and count their steps if told of how
    many; its text encoder is brought to the device and asked once for each prompt."""
    pipeline = model.pipeline
    if pipeline.text_encoder is None:
        pipeline.encode_prompt("")  # says so, in words
    pipe = copy.copy(pipeline)
    bar = None if total is None else host.count_progress()
    done = 0

    def on_step(_: Any) -> None:
        nonlocal done
        host.check_cancelled()
        done += 1
        if bar is not None and total is not None:
            bar(min(done, total), total)

    def denoise(*given: Any, **named: Any) -> Any:
        return pipeline.denoise(*given, **{**named, "progress": on_step})

    pipe.denoise = denoise  # pyright: ignore[reportAttributeAccessIssue]
    pipe.text_encoder = PatientEncoder(model)  # pyright: ignore[reportAttributeAccessIssue]
    return pipe


class PatientEncoder:
    """A text encoder that comes to the device for new prompts only, and lets the transformer back to it."""

    def __init__(self, model: LoadedModel):
        self.model = model
        self.inner: Any = model.pipeline.text_encoder
        self.batches: dict[Any, Any] = {}

    @property
    def encoder(self) -> "PatientEncoder":
        return self

    def encode(self, prompt: str) -> Any:
        return self._once((prompt,), lambda: self.inner.encode(prompt))

    def encode_pair(self, prompt: str, negative: str = "") -> Any:
        return self._once((prompt, negative), lambda: self.inner.encode_pair(prompt, negative))

    def encode_batch(self, prompts: Any, negative: str | None = None) -> Any:
        return self._once(
            (tuple(prompts), negative, "batch"), lambda: self.inner.encoder.encode_batch(prompts, negative)
        )

    def _once(self, key: Any, encode: Any) -> Any:
        if key not in self.batches:
            self.model.bring("text_encoder")
            self.batches[key] = encode().to("cpu")
            self.model.bring("transformer")
        return self.batches[key]


def scratch_file(pipeline: Pipeline, clips: list[Any], what: str) -> Path:
    """Where a calibration goes on after it was cancelled: one for each model, prompts and seeds."""
    weight = next(pipeline.transformer.parameters())
    about = [pipeline.spec.name, str(weight.dtype), float(weight.float().sum()), [[c.prompt, c.seed] for c in clips]]
    return host.scratch_folder() / f"{what}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.jsonl"


def curves_file(model: str) -> Path:
    """The last calibration's curves of a model, for the page; the name of a folder is a name of a file."""
    return Path(host.saved_schedules()) / f"{Path(model).name}.curves"
