"""The paper's table of communication, from collectives counted in small runs, and what is extrapolated from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pab_core.cli_comm import comm
from pab_core.errors import PabError
from pab_core.evaluate import comm as measuring
from pab_core.evaluate.comm_ranks import WIDTH
from pab_core.evaluate.links import (
    BETWEEN_NODES,
    FIGURES,
    GPUS,
    ONE_GPU,
    describe_latency,
    exchange_bytes,
    extrapolate,
    extrapolate_all,
)
from pab_core.parallel.layout import shares

# arXiv 2408.12588, Open-Sora, 51 frames, 480p, 30 steps, 8 GPUs: GB of each.
PAPER = {
    ("megatron", "off"): 184.63,
    ("ulysses", "off"): 46.16,
    ("dsp", "off"): 23.08,
    ("megatron", "pab246"): 104.62,
    ("ulysses", "pab246"): 26.16,
    ("dsp", "pab246"): 13.08,
}

app = typer.Typer()
app.command()(comm)


@pytest.fixture(scope="module")
def counted() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def answer(counted: list[Any]) -> dict[str, Any]:
    """What `pab bench comm --ranks 8 --json` prints; `counted` is filled with what the eight processes counted."""
    run = measuring._run_ranks

    def spied(*args: Any) -> Any:
        counted.append(run(*args))
        return counted[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_run_ranks", spied)
        done = CliRunner().invoke(app, ["--ranks", "8", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_papers_table(answer: dict[str, Any]):
    rows = {(row["method"], row["policy"]): row for row in answer["rows"]}
    assert rows.keys() == PAPER.keys()
    for key, row in rows.items():
        assert row.keys() == {"method", "policy", "gigabytes", "gigabytes_padded"}
        assert row["gigabytes"] == pytest.approx(PAPER[key], abs=0.01), key
        # 15 latent frames on 8 ranks: padded to 16.
        assert row["gigabytes_padded"] == pytest.approx(row["gigabytes"] * 16 / 15), key


def test_extrapolated_bytes_are_those_that_ranks_sent(answer: dict[str, Any], counted: list[Any]):
    m = 2 * 15 * 16 * WIDTH * 4  # of the small runs
    for number, method in enumerate(("megatron", "ulysses", "dsp")):
        of_ranks = counted[0][2 * number]  # off, then pab246
        rows = [[row for row in rows if row["purpose"] == "temporal attention"] for rows in of_ranks]
        passes = 30 * 2
        sent, calls = exchange_bytes(method, m, shares(15, 8))
        assert sum(row["calls"] for row in rows[0]) == calls * passes
        most = max(sum(row["sent"] for row in counts) for counts in rows) / passes
        # Half of the exchanges go from frames to tokens, where shards are even: a little less than extrapolated.
        assert 0.9 * sent < most <= sent, method


def test_reuse_saves_in_the_proportion_of_computed_steps(answer: dict[str, Any], counted: list[Any]):
    for method in range(3):
        off, reused = (
            sum(row["calls"] for row in counted[0][2 * method + policy][0] if row["purpose"] == "temporal attention")
            for policy in (0, 1)
        )
        assert reused * 30 == off * 17


def test_a_table_for_people(answer: dict[str, Any]):
    report = measuring.CommReport(
        "open-sora",
        8,
        tuple(measuring.CommRow(**row) for row in answer["rows"]),
        answer["predictions"],
    )
    text = measuring.describe_comm(report)
    assert all(part in text for part in ("184.63", "8 ranks", "padded"))


def test_other_models_and_few_ranks():
    report = measuring.measure_comm("latte", 2, ["dsp"], ["pab236"])
    (row,) = report.rows
    # M of 16 frames of 1024 tokens; 50 steps, of which 10 to 43 may reuse, each third computed.
    m = 2 * 16 * 1024 * 1152 * 2
    computed = sum(not (10 <= step <= 43) or step % 3 == 0 for step in range(50))
    assert row.gigabytes == pytest.approx(2 * m / 2 * 28 * computed / 1e9)
    assert row.gigabytes_padded == pytest.approx(row.gigabytes)  # 16 frames are shared out evenly


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "0"], "1 or more, not 0"),
        (["--ranks", "-2"], "1 or more, not -2"),
        (["--ranks", "many"], "not 'many'"),
        (["--ranks", "16", "--method", "dsp"], "15 ranks at most, not 16"),
        (["--ranks", "15", "--method", "cfg+dsp"], "15 cannot be halved"),
        (["--method", "ulises"], "Did you mean ulysses?"),
        (["--method", "cfg"], "exchanges nothing in temporal attention"),
        (["--policy", "teacache"], "decides while it runs"),
        (["--policy", "scores246"], "runs all attentions"),
        (["--policy", "pab"], "There is no policy named 'pab'"),
        (["--model", "open-soro"], "Did you mean open-sora?"),
    ],
)
def test_bad_input(arguments: list[str], said: str):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr


def test_a_rank_that_fails_ends_the_wait():
    with pytest.raises(RuntimeError, match=r"Rank 0 .* failed"):
        # A policy that this model's ranks do not know: each of them fails.
        measuring._run_ranks(measuring.model_spec("open-sora"), 1, 2, [("dsp", "nonsense")], 60)


def test_latency_grows_with_what_is_exchanged_and_shrinks_with_gpus():
    rows = {(row.gpus, row.method, row.policy): row for row in extrapolate_all()}
    assert {row.gpus for row in rows.values()} == set(GPUS)
    for (gpus, method, policy), row in rows.items():
        assert row.seconds > row.exchange > 0
        assert row.speedup == pytest.approx(ONE_GPU[policy].value / row.seconds)
        assert row.speedup <= row.used <= gpus, "no more than so many GPUs can do"
        if method.startswith("cfg+"):
            # Sixteen devices: halves first, so that every exchange stays inside a node.
            assert gpus == 8 or row.seconds < rows[gpus, method[4:], policy].seconds
    for gpus in GPUS:
        dsp, ulysses, megatron = (rows[gpus, method, "off"].exchange for method in ("dsp", "ulysses", "megatron"))
        assert dsp < ulysses < megatron
        assert rows[gpus, "dsp", "pab246"].exchange < dsp


def test_exchanges_over_nodes_wait_for_the_slower_link():
    inside, over = extrapolate(8, "dsp", "off"), extrapolate(16, "dsp", "off")
    assert (over.used, over.nodes) == (15, 2)
    # Less to send for each GPU, over a slower link.
    assert over.exchange > inside.exchange
    assert extrapolate(16, "cfg+dsp", "off").exchange < over.exchange


def test_assumed_figures_are_marked():
    text = describe_latency()
    for figure in FIGURES:
        (line,) = [line for line in text.splitlines() if line.startswith(f"- {figure.name}:")]
        assert ("ASSUMED" in line) is not figure.measured
    assert not BETWEEN_NODES.measured


def test_no_such_model():
    with pytest.raises(PabError, match="no model named"):
        measuring.measure_comm("nothing")
