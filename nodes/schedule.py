"""The live schedule: what the settings of a broadcast node mean, for the picture that the page shows on it."""

from typing import Any

from pab_core import PabError

from . import host
from .calibrate import curves_file
from .figure import curves_svg, load_curves
from .types import BroadcastSettings

_DEFAULTS: dict[str, Any] = {
    "policy": "pab246",
    "spatial_range": 0,
    "temporal_range": 0,
    "cross_range": 0,
    "mlp": True,
    "window_start": 0.0,
    "window_stop": 0.0,
    "kept": "plain",
}
_WIDTH = 420  # of the picture's view box
_MARGINS = (76, 46)  # beside its steps, as picture_svg.py has them
# Of the sampler's widgets, as they have it.
_MOST = {"steps": 1000, "frames": 17 * 60, "height": 4096, "width": 4096}


def describe_schedule(given: dict[str, Any]) -> dict[str, Any]:
    """The widgets of a broadcast node, and of the loader and sampler it is wired to -> {"svg", "curves", "saving",
    "reused", "kept_bytes"}; curves: where the model was calibrated here, or comes with them; kept_bytes: where they are
    known.

    Raises:
        PabError: settings that do not go together, or a model that is not known.
    """
    # Not at the top: with them the host would wait for its start, and most pages show no such node.
    from pab_core import Policy
    from pab_core.broadcast.picture_svg import draw_schedule_svg
    from pab_core.checkpoints import default_dtype, find_model, known_model
    from pab_core.evaluate.flops import PAPER, predicted_saving
    from pab_core.evaluate.packaged import packaged_curves
    from pab_core.evaluate.peak import predicted_peak
    from pab_core.models.registry import MODELS
    from pab_core.settings import clip_size, schedule_for

    name = str(given.get("model") or "demo")
    source = host.checkpoint_folders().get(name, name)
    if source == name and name not in MODELS:
        raise PabError(f"The checkpoint folder '{name}' is not in models/pab: choose another model.")
    spec, sampler = known_model(source)
    values = {key: given.get(key, usual) for key, usual in _DEFAULTS.items()}
    settings = BroadcastSettings(
        str(values["policy"]),
        _whole(values["spatial_range"]),
        _whole(values["temporal_range"]),
        _whole(values["cross_range"]),
        bool(values["mlp"]),
        _fraction(values["window_start"]),
        _fraction(values["window_stop"]),
        str(values["kept"]),
    )
    policy = settings.for_model(spec)
    # 0 stands for the model's own, as in the nodes.
    steps, frames, height, width = (_whole(given.get(key) or 0, most) or None for key, most in _MOST.items())
    table = schedule_for(spec, policy, sampler, steps, frames, height, width)
    size = dict(zip(("num_frames", "height", "width"), clip_size(spec, frames, height, width), strict=True))
    config = PAPER[name].config if source == name and name in PAPER else find_model(source).config
    kept: Any = settings.kept
    dtype = default_dtype(spec, host.compute_device())
    # Of reused scores nobody knows their size.
    about: dict[str, Any] = {"dtype": dtype, "sampler": sampler, "kept": kept, **size}
    peak = None if table.scores else predicted_peak(spec, config, table, **about)
    curves, told = load_curves(curves_file(spec.name)), "as calibrated"
    if curves is None and source == name and (packaged := packaged_curves(name)):
        curves = packaged.kinds
        told = f"as it comes with the model: {packaged.clips} clips on one {packaged.machine.get('gpu', 'CPU')}"
    window = policy.window if isinstance(policy, Policy) and not policy.is_off else None
    inside = [i for i, t in enumerate(table.timesteps) if window and (i, table.steps, t) in window]
    shaded = (inside[0] / table.steps, (inside[-1] + 1) / table.steps) if inside else None
    return {
        "model": spec.title,
        "policy": table.policy,
        "steps": table.steps,
        "svg": draw_schedule_svg(table, policy, width=_WIDTH),
        "curves": curves_svg(curves, shaded, _WIDTH, *_MARGINS, told) if curves else None,
        "kept_bytes": peak.kept if peak else None,
        "saving": round(predicted_saving(spec, config, table, **size), 4),
        "reused": {kind: round(table.reused_share(kind), 4) for kind in table.kinds},
    }


def _whole(value: Any, most: int = 10**6) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1:
        raise PabError(f"{value!r} is not a whole number.")
    if not abs(value) <= most:
        raise PabError(f"{str(value)[:20]} is too large; the most is {most}.")
    return int(value)


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PabError(f"{value!r} is not a number.")
    if not abs(value) <= 1:
        raise PabError(f"{str(value)[:20]} is no fraction of the run, which goes from 0 to 1.")
    return float(value)


host.route("/pab/schedule", describe_schedule)
