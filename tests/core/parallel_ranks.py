"""Ranks for the tests of pab_core.parallel: four processes, started once, that work through a list of cases.

    python parallel_ranks.py RANK FOLDER

FOLDER holds cases.json; each rank meets the others there, runs its cases and writes results-RANK.json. Cases of two
ranks are shared out between two groups of two, so that none idles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parallel_cases import Case, Decode, case_of, compare, compare_decode

RANKS = 4


def work(rank: int, folder: Path) -> list[dict[str, Any]]:
    store = dist.FileStore(str(folder / "meeting"), RANKS)  # pyright: ignore[reportPrivateImportUsage]
    bound = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=bound)
    # Every process makes every group, in one order.
    pairs = [dist.new_group([0, 1], bound), dist.new_group([2, 3], bound)]
    three = dist.new_group([0, 1, 2], bound)
    listed = json.loads((folder / "cases.json").read_text())
    cases = [Decode(**values) if values["method"] == "decode" else case_of(values) for values in listed]
    results = []
    seen = 0
    for number, case in enumerate(cases):
        if case.ranks == 2:
            # torch knows a subgroup by how many groups its ranks are in, and rank 3 is in fewer than rank 2.
            seen += 1
            members, group = ([0, 1], pairs[0]) if seen % 2 or case.method == "cfg" else ([2, 3], pairs[1])
        else:
            members, group = ([0, 1, 2], three) if case.ranks == 3 else ([0, 1, 2, 3], dist.group.WORLD)
        if rank not in members:
            continue
        assert isinstance(group, dist.ProcessGroup)
        result = compare_decode(case, group) if isinstance(case, Decode) else compare(case, group)
        results.append({"case": number} | result)
    dist.barrier()
    return results


def run_cases(cases: Sequence[Case | Decode], folder: Path, seconds: float = 240) -> list[list[dict[str, Any]]]:
    """Starts the ranks and waits for them -> for each case what its ranks found, in their order."""
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    here = Path(__file__).resolve().parent
    paths = [str(here), str(here.parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        said = [process.communicate(timeout=seconds)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), "\n".join(said)
    found: list[list[dict[str, Any]]] = [[] for _ in cases]
    for rank in range(RANKS):
        for result in json.loads((folder / f"results-{rank}.json").read_text()):
            found[result["case"]].append(result)
    return found


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        results = work(rank, folder)
    except Exception:
        traceback.print_exc()
        # Without goodbyes, which would wait for the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    (folder / f"results-{rank}.json").write_text(json.dumps(results))
    os._exit(0)  # at once: gloo's threads may abort a process that takes itself down step by step


if __name__ == "__main__":
    main()
