"""Pyramid Attention Broadcast: the policy for the sampler"""

from pab_core.broadcast import policy_names
from pab_core.broadcast.calibrated import PACKAGED, calibrated_names
from pab_core.models.registry import MODELS, ModelSpec

from . import host
from .host import io
from .types import BroadcastSettings, PolicyType, kept_input


def _packaged(model: ModelSpec) -> tuple[str, ...]:
    """What was calibrated for a model and comes with the package."""
    return calibrated_names(model.family, model.depth, (PACKAGED,))


# Of all families; one that a model does not know is refused when it runs, in words. A user's own schedules are not
# among them: what can be chosen is the same on every machine.
POLICIES = [name for model in MODELS.values() for name in policy_names(model.family)]
POLICIES = list(dict.fromkeys([*POLICIES, *sorted(name for model in MODELS.values() for name in _packaged(model))]))
WINDOW_TOOLTIP = (
    "as a fraction of the run; 0: as the policy has it. Early steps shape the video: reuse there costs most."
)


class PyramidAttentionBroadcast(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        slider = io.NumberDisplay.slider

        def range_slider(kind: str, what: str):
            return io.Int.Input(
                f"{kind}_range",
                default=0,
                min=0,
                max=12,
                step=1,
                display_mode=slider,
                tooltip=f"{what}: computed at every n-th step, reused between. 1: always computed; 0: as the policy.",
            )

        def window_slider(end: str, what: str):
            return io.Float.Input(
                f"window_{end}",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.01,
                display_mode=slider,
                tooltip=f"{what} the part of the run in which results are reused, {WINDOW_TOOLTIP}",
            )

        return host.schema(
            node_id="PABBroadcast",
            display_name="Pyramid Attention Broadcast",
            description=(
                "PAB: makes video generation faster, without training, by reusing attention results from step to step. "
                "Choose a policy, and where you like change it with the sliders. Connect it to Video Sampler (PAB)."
            ),
            search_aliases=["pab", "speed up video", "attention cache", "teacache", "accelerate"],
            inputs=[
                io.Combo.Input(
                    "policy",
                    options=POLICIES,
                    default="pab246",
                    tooltip="The digits are the ranges of spatial, temporal and cross attention. pab246 keeps nearly "
                    "all quality, pab579 is the fastest, off computes everything; for Latte pab236 to pab469. "
                    "calibrated was chosen by trials, for models that it comes with; leave the sliders at 0. The "
                    "others are methods to compare with: steps20 plainly makes fewer steps.",
                ),
                range_slider("spatial", "Spatial attention (inside a frame, changes most)"),
                range_slider("temporal", "Temporal attention (between frames)"),
                range_slider("cross", "Cross attention (to the prompt, changes least)"),
                io.Boolean.Input(
                    "mlp",
                    default=True,
                    label_on="reused",
                    label_off="computed",
                    tooltip="Whether the first blocks' MLPs are reused too, at the few steps that the policy names.",
                ),
                window_slider("start", "Start of"),
                window_slider("stop", "End of"),
                kept_input(optional=True),  # workflows of the first version have it not
            ],
            outputs=[PolicyType.Output(display_name="policy", tooltip="For Video Sampler (PAB).")],
        )

    @classmethod
    def validate_inputs(cls, policy: str) -> bool:
        """A workflow may name any policy, such as one that was calibrated on its machine: `execute` checks it."""
        return True

    @classmethod
    def execute(
        cls,
        policy: str,
        spatial_range: int,
        temporal_range: int,
        cross_range: int,
        mlp: bool,
        window_start: float,
        window_stop: float,
        kept: str = "plain",
    ):
        ranges = (spatial_range, temporal_range, cross_range)
        settings = BroadcastSettings(policy, *ranges, mlp, window_start, window_stop, kept)
        return io.NodeOutput(settings)
