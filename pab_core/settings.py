"""What is asked of a run, completed and checked by what is known of its model without its weights."""

from .broadcast import AnyPolicy, ScheduleTable, find_policy, resolve, steps_of
from .checkpoints import SAMPLERS, Sampler
from .errors import PabError
from .models.registry import ModelSpec
from .noise_sampling import NoiseSampler
from .sizes import is_named_size


def clip_size(spec: ModelSpec, num_frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int]:
    """The clip's size with the model's defaults filled in; PabError where the model cannot take it."""
    size = (
        spec.num_frames if num_frames is None else num_frames,
        spec.height if height is None else height,
        spec.width if width is None else width,
    )
    # Open-Sora's own sizes need be no multiple of 8: the VAE leaves out the pixels beyond one.
    named = spec.family == "stdit3" and is_named_size(*size[1:])
    spec.check_size(size[0], *((spec.height, spec.width) if named else size[1:]))
    return size


def schedule_for(
    spec: ModelSpec,
    policy: str | AnyPolicy,
    sampler: Sampler | None = None,
    steps: int | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> ScheduleTable:
    """The table of a run, from what is known of a model without its weights; None stands for the model's default.

    Its steps are calls of the model, of which some samplers make more than the `steps` asked for.
    """
    chosen = find_policy(policy, spec.family, spec.depth)
    size = clip_size(spec, num_frames, height, width)
    sampler = sampler or SAMPLERS[spec.family]
    timesteps = sampler.timesteps(steps_of(chosen, spec.steps if steps is None else steps), *size)
    return resolve(chosen, timesteps.tolist(), spec.branches)


def check_table(table: ScheduleTable, sampler: Sampler, steps: int) -> None:
    """PabError unless the table is for the calls of the model that the sampler makes in so many steps.

    A rectified flow follows whatever timesteps a table has.
    """
    if not isinstance(sampler, NoiseSampler):
        return
    expected = sampler.timesteps(steps).tolist()
    if [float(t) for t in expected] != list(table.timesteps):
        raise PabError(
            f"The schedule has {table.steps} calls of the model, and the sampler makes {len(expected)} in {steps} "
            "steps: make the schedule with the same sampler and steps as the run."
        )


def check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise PabError(f"The seed must be a whole number from 0 to {2**64 - 1}, not {seed!r}.")
    return seed


def check_guidance(guidance: float) -> float:
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance <= 100:
        raise PabError(f"The guidance must be a number from 0 to 100, not {guidance!r}.")
    return float(guidance)
