"""One rank of a small run whose collectives are counted: `python -m pab_core.evaluate.comm_ranks RANK FOLDER`.

The model is a tiny one of the family, with random weights, but the latent frames, the heads, the batch and the schedule
are those of the released model's clip: how often what kind of collective runs, and how evenly frames and heads can be
shared out, is not scaled but seen. comm.py starts it, writes runs.json into the folder and reads counts-RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..broadcast import ScheduleTable
from ..checkpoints import SAMPLERS
from ..models.registry import ARCHITECTURES, ModelSpec, model_spec
from ..parallel import attach
from ..pipeline import Pipeline
from ..settings import schedule_for
from ..text import TextEmbedding

HEADS = 16
WIDTH = 32  # hidden_size
LATENT_ROWS = 4
CAPTION = 8
# As the released models, but for their widths.
CONFIGS: dict[str, dict[str, Any]] = {
    "stdit3": {"hidden_size": WIDTH, "num_heads": HEADS, "caption_channels": CAPTION, "model_max_length": 4},
    "latte": {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "caption_channels": CAPTION},
    "open-sora-plan": {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "caption_channels": CAPTION},
}


def latent_columns(ranks: int) -> int:
    """So that tokens, two a rank, can be shared out evenly, as those of large frames nearly can."""
    return 2 * ranks


def small_pipe(spec: ModelSpec, depth: int) -> Pipeline:
    architecture = ARCHITECTURES[spec.family]
    config = architecture.read_config(CONFIGS[spec.family] | {"depth": depth, "num_layers": depth})
    torch.manual_seed(0)
    transformer = architecture.build(config).eval()
    return Pipeline(replace(spec, depth=depth), transformer, None, None, SAMPLERS[spec.family])


def small_table(spec: ModelSpec, policy: str, depth: int) -> ScheduleTable:
    """The released model's schedule, of its first `depth` blocks."""
    table = schedule_for(spec, policy)
    return replace(table, source={branch: row for branch, row in table.source.items() if branch.block < depth})


def count(rank: int, folder: Path) -> list[list[dict[str, Any]]]:
    asked = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    ranks, depth, spec = asked["ranks"], asked["depth"], model_spec(asked["model"])
    bound = timedelta(seconds=asked["seconds"])
    store = dist.FileStore(str(folder / "meeting"), ranks)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=bound)
    whole = small_pipe(spec, depth)
    shape = (1, 4, spec.latent_frames(spec.num_frames), LATENT_ROWS, latent_columns(ranks))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.zeros(1, 4, CAPTION)
    negative = None if spec.family == "stdit3" else tokens
    text = TextEmbedding(tokens, torch.ones(1, 4, dtype=torch.bool), negative=negative)
    found = []
    for run in asked["runs"]:
        pipe: Any = attach(whole, run["method"], timeout=asked["seconds"])
        pipe.denoise(noise, text, small_table(spec, run["policy"], depth))
        rows = [] if pipe is whole else pipe.traffic.rows.items()  # one rank tells nobody anything
        found.append([{"kind": kind, "purpose": purpose} | asdict(row) for (kind, purpose), row in rows])
    dist.barrier()
    return found


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        counts = count(rank, folder)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # without goodbyes, which would wait for the others
    (folder / f"counts-{rank}.json").write_text(json.dumps(counts), encoding="utf-8")
    os._exit(0)  # at once: gloo's threads may abort a process that takes itself down step by step


if __name__ == "__main__":
    main()
