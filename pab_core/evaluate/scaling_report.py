"""What `pab bench scaling` tells: each measured loop beside what was predicted of it and what the paper published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PabError
from .scaling import Measured
from .scaling_cases import ALONE, WORKLOADS
from .scaling_estimate import ASSUMED, Estimate, cell_of

# arXiv 2408.12588: seconds of its workload (Open-Sora 480p) on 8 H100, and on one; PAB is pab246.
PAPER_DEVICES = 8
PAPER: dict[tuple[str, str], float] = {
    (ALONE, "off"): 97.51,
    (ALONE, "pab246"): 71.25,
    ("megatron", "off"): 17.17,
    ("megatron", "pab246"): 14.78,
    ("ulysses", "off"): 12.34,
    ("ulysses", "pab246"): 9.85,
    ("dsp", "off"): 12.01,
    ("dsp", "pab246"): 9.29,
}
PAPER_WORKLOAD = "open-sora-480p-2s"
PAPER_FPS = 21.6  # at most, at 480p on 8
TITLES = {workload.name: workload.title for workload in WORKLOADS}
COLUMNS = (
    "policy | method | devices | seconds | FPS | speed-up | to one, off | GB sent | temporal GB | peak GiB | predicted"
    " | by measured links | difference | steps measured"
)


@dataclass(frozen=True)
class ScalingReport:
    """All plain data, as in scaling.json.

    Of a row: seconds of the loop, that of the slowest rank; fps: frames of video a second; speedup: to one device with
    the same policy, speedup_off: to one without reuse; sent: bytes that leave the rank that sends most; temporal: bytes
    of temporal attention as the paper counts, a rank's mean; peak: bytes of each rank's tensors at most; predicted: as
    `pab bench comm` extrapolates, from the measured one-device time, predicted_link: with the links as measured here;
    errors: predicted / measured - 1; difference: relative, of the latents, from those of one device.
    """

    header: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    links: tuple[Mapping[str, Any], ...]  # devices, bandwidth in bytes a second for each, start in seconds
    not_run: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        paper = [{"method": method, "policy": policy, "seconds": s} for (method, policy), s in PAPER.items()]
        return {
            **self.header,
            "runs": list(self.rows),
            "links": list(self.links),
            "not_run": list(self.not_run),
            "notes": list(self.notes),
            "paper": {"devices": PAPER_DEVICES, "fps": PAPER_FPS, "runs": paper},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ScalingReport:
        """PabError where it is something else than `to_json` wrote."""
        parts = {name: found.get(name) for name in ("runs", "links", "not_run", "notes")}
        if found.get("bench") != "scaling" or not all(isinstance(part, list) for part in parts.values()):
            raise PabError("This file holds no results of pab bench scaling: give its scaling.json or scaling.jsonl.")
        header = {name: value for name, value in found.items() if name not in (*parts, "paper")}
        return cls(header, *(tuple(part) for part in parts.values() if part is not None))

    def to_markdown(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        machine = self.header.get("machine", {})
        yield ", ".join(f"{name} {value}" for name, value in machine.items())
        yield ""
        speeds = ", ".join(dict.fromkeys(row["speed"] for row in self.rows if "speed" in row))
        yield (
            f"Denoise loops of models of {self.header.get('sizes')} size with random weights, "
            f"{self.header.get('dtype')}, speed {self.header.get('speed')}{f' ({speeds})' if speeds else ''}."
        )
        for name in dict.fromkeys(row["workload"] for row in self.rows):
            yield from (
                "",
                f"### {TITLES.get(name, name)}",
                "",
                f"| {COLUMNS} |",
                "|" + "-|" * (COLUMNS.count("|") + 1),
            )
            yield from (_table_line(row) for row in self.rows if row["workload"] == name)
        if self.links:
            yield from ("", "### Links", "", "| devices | all-to-all, GB/s of each | start |", "|-|-|-|")
            for link in self.links:
                yield f"| {link['devices']} | {link['bandwidth'] / 1e9:.1f} | {link['start'] * 1e6:.0f} us |"
        yield from ("", f"### The paper's: {PAPER_DEVICES} H100, its workload at 480p", "")
        yield from ("| policy | method | seconds | to one, off |", "|-|-|-|-|")
        for (method, policy), seconds in PAPER.items():
            alone = "one GPU" if method == ALONE else method
            yield f"| {policy} | {alone} | {seconds:.2f} | {PAPER[ALONE, 'off'] / seconds:.2f}x |"
        yield f"\nAt most {PAPER_FPS} frames a second."
        if self.not_run:
            yield from ("", "### Not run", "")
            yield from (f"- {_titled(each)}: {each['why']}" for each in self.not_run)
        if self.notes:
            yield from ("", "### Notes", "")
            yield from (f"- {note}" for note in self.notes)


def report_of(measured: Measured) -> ScalingReport:
    header, lines = measured.header, measured.lines
    not_run = tuple(cell.to_json() | {"why": why} for cell, why in measured.not_run)
    order = {cell: number for number, cell in enumerate(measured.plan.cells)}
    return build_report(header, lines, not_run, measured.notes, order)


def build_report(
    header: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    not_run: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    order: Mapping[Any, int] | None = None,
) -> ScalingReport:
    """From the lines of a file of results; `order`: the cells that are told, None: all."""
    cells = [line for line in lines if "workload" in line and (order is None or cell_of(line) in order)]
    about = header.get("machine", {})
    workloads = [workload for workload in WORKLOADS if workload.name in {line["workload"] for line in cells}]
    estimate = Estimate(workloads, str(about.get("device", "cpu")), header.get("sizes") == "tiny")
    for line in lines:
        estimate.add(line)
    place = {workload.name: number for number, workload in enumerate(WORKLOADS)}
    policies = list(dict.fromkeys(line["policy"] for line in cells))
    methods = list(dict.fromkeys(line["method"] for line in cells))

    def rank(line: Mapping[str, Any]) -> tuple[int, ...]:
        found = cell_of(line)
        return place[found.workload], policies.index(found.policy), methods.index(found.method), found.devices

    rows = tuple(_row(line, estimate) for line in sorted(cells, key=rank))
    told = tuple(
        {"devices": count, "bandwidth": link.bandwidth, "start": link.start}
        for count, link in sorted(estimate.links.items())
    )
    return ScalingReport(dict(header), rows, told, tuple(not_run), tuple(notes))


def read_report(path: Path) -> ScalingReport:
    """Of scaling.json, or of the scaling.jsonl of a measurement that was cut off. PabError where it is neither."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PabError(f"{path} cannot be read ({error}): give scaling.json or scaling.jsonl.") from None
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and "header" not in whole:
        return ScalingReport.from_json(whole)
    try:
        # What follows the last end of a line was cut off in the middle.
        first, *lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line]
        return build_report({**ScalingReport.from_json({**_EMPTY, **first["header"]}).header}, lines)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PabError):
            raise
        raise PabError(f"{path} holds no results of pab bench scaling: give scaling.json or scaling.jsonl.") from None


_EMPTY: dict[str, Any] = {"runs": [], "links": [], "not_run": [], "notes": []}


def _row(line: Mapping[str, Any], estimate: Estimate) -> dict[str, Any]:
    cell, seconds = cell_of(line), line["seconds"]
    row: dict[str, Any] = cell.to_json() | {name: line[name] for name in ("steps", "steps_measured", "seconds")}
    if seconds is None:
        return row | {"lacking": line["lacking"]}
    measured = estimate.measured
    frames = estimate.workloads[cell.workload].num_frames
    same = measured.get(type(cell)(cell.workload, cell.policy, ALONE, 1))
    off = measured.get(type(cell)(cell.workload, "off", ALONE, 1))
    predictions: dict[str, float | None] = {}
    # What is assumed of links is of GPUs.
    assumed = ASSUMED if estimate.device == "cuda" else None
    for name, link in (("predicted", assumed), ("predicted_link", estimate.links.get(cell.devices))):
        value = estimate.predicted(cell, link) if cell.devices > 1 else None
        predictions |= {name: value, f"{name}_error": None if value is None else value / seconds - 1}
    return row | {
        "speed": line["speed"],
        "loops": line["loops"],
        "warm_up": line["warm_up"],
        "fps": frames / seconds,
        "speedup": same and same / seconds,
        "speedup_off": off and off / seconds,
        "sent": max(line["sent"]),
        "temporal": sum(line["temporal"]) / cell.devices,
        "temporal_padded": max(line["temporal_padded"]),
        "collectives": line["collectives"],
        "peak": line["peak"],
        **predictions,
        "difference": line["difference"] if cell.devices > 1 else None,
    }


def _table_line(row: Mapping[str, Any]) -> str:
    method = "one" if row["method"] == ALONE else row["method"]
    start = f"| {row['policy']} | {method} | {row['devices']} |"
    if row["seconds"] is None:
        return start + " no memory |" + " - |" * (COLUMNS.count("|") - 3)

    def shown(value: float | None, form: str, end: str = "") -> str:
        return "-" if value is None else f"{value:{form}}{end}"

    def guess(name: str) -> str:
        value = row.get(name)
        return "-" if value is None else f"{value:.3g} s ({row[f'{name}_error']:+.0%})"

    peaks = [peak for peak in row["peak"] if peak is not None]
    cells = [
        f"{row['seconds']:.3f}",
        f"{row['fps']:.1f}",
        shown(row["speedup"], ".2f", "x"),
        shown(row["speedup_off"], ".2f", "x"),
        f"{row['sent'] / 1e9:.4g}",
        f"{row['temporal'] / 1e9:.4g}",
        shown(max(peaks, default=None) and max(peaks) / 2**30, ".2f"),
        guess("predicted"),
        guess("predicted_link"),
        shown(row["difference"], ".1e"),
        f"{row['steps_measured']} of {row['steps']}",
    ]
    return f"{start} {' | '.join(cells)} |"


def _titled(cell: Mapping[str, Any]) -> str:
    method = "" if cell["method"] == ALONE else f", {cell['method']}"
    return f"{TITLES.get(cell['workload'], cell['workload'])}, {cell['policy']}{method}, devices {cell['devices']}"


def draw_scaling(report: ScalingReport, path: Path) -> None:
    """Speed-up over one device without reuse against devices, a picture for each clip. Needs matplotlib."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["workload"] for row in report.rows))
    columns = min(3, max(len(names), 1))
    rows = -(-max(len(names), 1) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    methods = list(dict.fromkeys(row["method"] for row in report.rows if row["method"] != ALONE))
    for place, axes in enumerate(grid.flat):
        if place < len(names):
            _draw_workload(axes, report, names[place], methods)
        else:
            axes.set_axis_off()
    kind = report.header.get("machine", {}).get("gpu", "CPU")
    sizes = ", models of tiny size" if report.header.get("sizes") == "tiny" else ""
    figure.suptitle(f"speed-up over one device without reuse; {kind}, random weights{sizes}")
    figure.savefig(path, dpi=110)


def _draw_workload(axes: Any, report: ScalingReport, name: str, methods: Sequence[str]) -> None:
    rows = [row for row in report.rows if row["workload"] == name and row.get("speedup_off")]
    styles = {policy: ("-", "--", ":", "-.")[number % 4] for number, policy in _numbered(rows, "policy")}
    most = max((row["devices"] for row in rows), default=1)
    axes.plot([1, most], [1, most], color="0.8", lw=1, label="ideal, off")
    for policy, style in styles.items():
        for number, method in enumerate(methods):
            points = sorted(
                (row["devices"], row["speedup_off"])
                for row in rows
                if row["policy"] == policy and row["method"] in (method, ALONE)
            )
            if len(points) > 1:
                axes.plot(
                    *zip(*points, strict=True), "o" + style, color=f"C{number}", ms=4, label=f"{method}, {policy}"
                )
    predicted = [
        (row["devices"], row["speedup_off"] * row["seconds"] / p) for row in rows if (p := row.get("predicted"))
    ]
    if predicted:
        axes.plot(*zip(*predicted, strict=True), "x", color="0.4", ms=4, label="predicted")
    if name == PAPER_WORKLOAD and most >= PAPER_DEVICES:
        published = [PAPER[ALONE, "off"] / PAPER["dsp", policy] for policy in ("off", "pab246")]
        axes.plot([PAPER_DEVICES] * 2, published, "*", color="0", ms=9, label="paper, dsp: off, pab246")
    axes.set(xlabel="devices", ylabel="speed-up", title=TITLES.get(name, name))
    axes.set_xticks(sorted({row["devices"] for row in rows} | {1}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, handlelength=4.5)  # long enough to tell a dashed line from a whole one


def _numbered(rows: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, str]]:
    return list(enumerate(dict.fromkeys(row[field] for row in rows)))
