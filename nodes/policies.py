"""Other Policy (PAB), and schedules from and to files"""

import hashlib

from pab_core import PabError

from . import host
from .broadcast import POLICIES
from .host import io
from .types import AnyChoice, ChosenPolicy, LoadedModel, ModelType, PolicyType, check_name, kept_input

OTHERS = [name for name in POLICIES if name != "off" and not name.startswith("pab")]


class OtherPolicy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABPolicy",
            display_name="Other Policy (PAB)",
            description=(
                "Other ways to make a video faster, to compare with Pyramid Attention Broadcast: T-GATE, delta-DiT, "
                "TeaCache, plainly fewer steps, and what a calibration of the model has chosen."
            ),
            search_aliases=["teacache", "tgate", "t-gate", "delta-dit", "fewer steps", "calibrated", "speed up video"],
            inputs=[
                io.Combo.Input(
                    "policy",
                    options=OTHERS,
                    default="tgate",
                    tooltip="tgate and delta-dit reuse by a fixed plan; teacache decides at each step; steps20 makes "
                    "20 steps, the honest rival of any reuse; scores reuses attention's scores and is slower (an "
                    "ablation); calibrated is there for models that one was made for.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="In place of the choice above, any policy by its full name: steps15, teacache0.15, "
                    "scores357, pab2-4-12, calibrated-mine.",
                ),
                kept_input(),
            ],
            outputs=[PolicyType.Output(display_name="policy", tooltip="For Video Sampler (PAB).")],
        )

    @classmethod
    def execute(cls, policy: str, name: str = "", kept: str = "plain"):
        return io.NodeOutput(ChosenPolicy(check_name(name.strip() or policy), kept))


class LoadSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABLoadSchedule",
            display_name="Load Schedule (PAB)",
            description=(
                "A schedule from a file: written by hand, by Save Schedule (PAB) or by pab calibrate. Files lie in "
                "models/pab/schedules or output/pab_schedules."
            ),
            search_aliases=["schedule file", "calibrated schedule", "policy from file", "pab"],
            inputs=[
                io.Combo.Input(
                    "schedule",
                    options=host.schedule_files(),
                    tooltip="A .json file in models/pab/schedules or output/pab_schedules. It is for one model.",
                ),
                kept_input(),
            ],
            outputs=[PolicyType.Output(display_name="policy", tooltip="For Video Sampler (PAB).")],
        )

    @classmethod
    def validate_inputs(cls, schedule: str | None) -> bool:
        """As with models: `execute` says what to do about one that is not there."""
        return True

    @classmethod
    def fingerprint_inputs(cls, schedule: str, **_: object):
        path = host.schedule_path(schedule)
        return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()

    @classmethod
    def execute(cls, schedule: str, kept: str = "plain"):
        from pab_core.broadcast.schedule_file import load_schedule  # with pydantic, which takes its time

        path = host.schedule_path(schedule)
        if path is None:
            raise PabError(
                f"The schedule '{schedule}' is not in models/pab/schedules or output/pab_schedules: put it there, "
                "choose another, or make one with Save Schedule (PAB)."
            )
        return io.NodeOutput(ChosenPolicy(load_schedule(path), kept))


class SaveSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABSaveSchedule",
            display_name="Save Schedule (PAB)",
            description=(
                "Writes a policy, as it is for a model, as a JSON file that people can read, edit and pass on. Load "
                "Schedule (PAB) and the command line's --policy read it."
            ),
            search_aliases=["export schedule", "schedule file", "pab"],
            is_output_node=True,
            inputs=[
                ModelType.Input("model", tooltip="From Load Video DiT (PAB): the schedule is for this one."),
                PolicyType.Input("policy", tooltip="From any of the policy nodes, or from Calibrate (PAB)."),
                io.String.Input(
                    "filename_prefix",
                    default="schedule",
                    tooltip="Name of the file in output/pab_schedules; a number is added.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Denoising steps that the schedule is written for; 0: the model's own.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, model: LoadedModel, policy: AnyChoice, filename_prefix: str, steps: int):
        from pab_core.broadcast.schedule_file import ScheduleFile, save_schedule, schedule_of

        spec = model.pipeline.spec
        name = check_prefix(filename_prefix)
        chosen = policy.for_model(spec)
        if not isinstance(chosen, ScheduleFile):
            table = model.pipeline.schedule(chosen, steps=steps or None)
            if table.decide is not None or table.scores:
                raise PabError(
                    f"The policy {table.policy} cannot be written as a schedule: it decides in the run, or reuses more "
                    "than results. Give its name instead."
                )
            chosen = schedule_of(table, spec.family, spec.depth)
        path, result = host.output_file(f"{host.SCHEDULES_FOLDER}/{name}", ".json")
        save_schedule(chosen, path)
        return io.NodeOutput(ui={"pab_saved": [dict(result)]})


def check_prefix(prefix: str) -> str:
    """PabError unless a file of that name lies where Load Schedule (PAB) looks; nothing stands for "schedule"."""
    parts = prefix.strip().replace("\\", "/").split("/")
    if ".." in parts or (not parts[0] and len(parts) > 1):
        raise PabError(
            f"'{prefix[:80]}' leads out of output/pab_schedules, where Load Schedule (PAB) would not find the file: "
            "give a name, or a folder in there and a name."
        )
    return "/".join(parts) if parts[-1] else "/".join([*parts[:-1], "schedule"])
