"""VBench's package run on a folder of videos, by the Python that has it: our own package need not be there.

One argument, JSON: {"device", "info", "output", "name", "videos", "dimensions"}. Writes NAME_eval_results.json.
"""

import argparse
import json
import os
import sys

FLICKER = "temporal_flickering"


def main() -> None:
    from vbench import VBench  # pyright: ignore[reportAttributeAccessIssue] - it takes the file beside this one

    given = json.loads(sys.argv[1])
    judge = VBench(given["device"], given["info"], given["output"])
    dimensions = given["dimensions"] or judge.build_full_dimension_list()
    folders = {given["videos"]: dimensions}
    if FLICKER in dimensions and given["device"].startswith("cuda"):
        others = [name for name in dimensions if name != FLICKER]
        folders = {given["videos"]: others, still_videos(given): [FLICKER]}
    found, results = {}, os.path.join(given["output"], given["name"] + "_eval_results.json")
    for folder, names in folders.items():
        if names:
            judge.evaluate(videos_path=folder, name=given["name"], dimension_list=names)
            with open(results, encoding="utf-8") as file:
                found.update(json.load(file))
    with open(results, "w", encoding="utf-8") as file:
        json.dump(found, file)


def still_videos(given: dict) -> str:
    """The folder of the videos that stand still: temporal_flickering is judged on no others."""
    from vbench.cli.static_filter import register_subparsers  # pyright: ignore[reportMissingImports]
    from vbench.utils import init_submodules  # pyright: ignore[reportMissingImports]

    init_submodules(["dynamic_degree"])
    parser, result = argparse.ArgumentParser(), os.path.join(given["output"], given["name"] + "_still")
    register_subparsers(parser.add_subparsers())
    args = parser.parse_args(["static_filter", "--videos_path", given["videos"], "--result_path", result])
    args.func(args)
    return os.path.join(result, "filtered_videos")


if __name__ == "__main__":
    main()
