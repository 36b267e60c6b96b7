"""Draws training_curves.json, which the training writes: `python -m pab_core.demo.loss_curve CURVES.json OUT.png`.

Needs matplotlib, which the package itself does not.
"""

import json
import sys
from pathlib import Path
from typing import Any

STAGES = {
    "frames": "on single frames",
    "time": "temporal autoencoder",
    "whole": "both, on pixels",
    "clips": "on clips",
}


def draw(curves: dict[str, Any], path: Path) -> None:
    """Quality of the autoencoder's reconstructions, and the transformer's loss, over the seconds of the training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    begin = 0.0
    for stage, title in STAGES.items():
        points = [p for p in curves["vae"] if p["stage"] == stage and "psnr" in p and p["step"]]
        if not points:
            continue
        seconds = [begin + p["seconds"] for p in points]
        (line,) = left.plot(seconds, [p["psnr"] for p in points], "o-", ms=3, label=title)
        left.plot(seconds, [p["object_psnr"] for p in points], "o--", ms=3, color=line.get_color())
        begin = seconds[-1]
    left.set(title="autoencoder", xlabel="seconds", ylabel="PSNR in dB (dashed: object's pixels)")
    left.legend()
    steps = [p for p in curves["dit"] if p["step"]]
    right.plot([p["seconds"] for p in steps], [p["loss"] for p in steps], label="training")
    checked = [p for p in steps if "validation" in p]
    right.plot(
        [p["seconds"] for p in checked],
        [p["validation"] for p in checked],
        "o-",
        ms=3,
        label="held-out clips, even timesteps",
    )
    right.set(title="transformer", xlabel="seconds", ylabel="loss", yscale="log")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"Training of the demo model ({curves.get('family', 'stdit3')}) on one {curves['device']}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
