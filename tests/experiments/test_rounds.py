"""Largest prune-size ratios against rounds, and certified rounds, in their smoke form."""

import dataclasses
import json
import math

import jax
import pytest

from experiments import published, rounds
from experiments.figures import rounds as figures
from experiments.harness import command
from tests.experiments.small import narrow

PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    arguments = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    with jax.numpy_dtype_promotion("standard"), narrow():
        command.main(rounds.EXPERIMENT, ["--scale", "smoke", *arguments])
    return folder / "out"


def by_setting(folder):
    found = figures.measured(command.results(folder))
    return {(row["schedule"], row["ratio"] or row["rounds"]): row for row in found}


def test_the_smoke_run_writes_its_rows_and_its_figure(smoke):
    about = json.loads((smoke / "config.json").read_text())
    assert about["done"] == about["runs"] == len(rounds.runs("smoke"))
    assert (smoke / "rounds.png").read_bytes().startswith(PNG)


def test_one_shot_cuts_the_network_and_rounds_do_not(smoke):
    found = by_setting(smoke)
    for schedule in rounds.SCHEDULES:
        ratios = [found[schedule, n]["largest_ratio"] for n in (1, 5, 20, 100)]
        assert ratios == sorted(ratios, reverse=True)
        one_shot = found[schedule, 1]
        assert one_shot["ln_flow"] is None and one_shot["empty"]
        assert one_shot["largest_ratio"] > 1 and not one_shot["certificate"]
    assert found["exponential", 1]["largest_ratio"] == found["linear", 1]["largest_ratio"]
    for row in found.values():
        assert row["kept"] == 2742
        assert row["certificate"] == (row["largest_ratio"] < 1)
        if row["certificate"]:
            assert row["ln_flow"] is not None and not row["empty"]


def test_certified_rounds_keep_to_their_ratio(smoke):
    found = by_setting(smoke)
    certified = [found["certified", ratio] for ratio in rounds.RATIOS]
    for row in certified:
        assert row["largest_ratio"] <= row["ratio"]
        # What a round removes, and no more, is lost.
        bound = row["ln_flow_dense"] + row["rounds"] * math.log(1 - row["largest_ratio"])
        assert row["ln_flow"] >= bound
    assert [row["rounds"] for row in certified] == sorted(r["rounds"] for r in certified)
    flows = [row["ln_flow"] for row in certified]
    assert flows == sorted(flows)


def test_the_table_of_the_smoke_run_has_what_certified_rounds_keep(smoke):
    rows = command.results(smoke)
    assert figures.compare(rows) == []
    (table,) = figures.tables(rows)
    assert table.headings == ["network", *(f"certified({r:g})" for r in rounds.RATIOS)]
    ((name, *cells),) = table.rows
    assert name == "mlp to 10^1" and all(cell.endswith(")") for cell in cells)


# --- runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_the_published_grid_is_measured(scale):
    todo, theirs = rounds.runs(scale), published.load("rounds")
    assert len({run.name for run in todo}) == len(todo)
    own = [run for run in todo if run.network == theirs["network"]]
    seeds = {run.seed for run in own}
    assert seeds == ({0} if scale == "cpu" else {0, 1, 2})
    for seed in seeds:
        points = {(r.schedule, r.compression, r.rounds) for r in own if r.seed == seed}
        assert points == {
            *(
                (s, c, n)
                for s in rounds.SCHEDULES
                for c in (1, 2)
                for n in theirs["rounds"]
            ),
            *(("certified", c, None) for c in (1, 2)),
        }


def test_every_published_curve_has_a_number_for_each_point():
    theirs = published.load("rounds")
    for curves in theirs["ratios"].values():
        for curve in curves.values():
            assert len(curve) == len(theirs["rounds"])
            assert curve == sorted(curve, reverse=True)
    exponential = dict(zip(theirs["rounds"], theirs["ratios"]["exponential"]["2"]))
    assert exponential[100] == pytest.approx(0.42, abs=5e-4)


# --- beside the published numbers ---------------------------------------------------------


def by_hand(run, ratio, ln_flow=1.0, found=None):
    """The rows of a run that measured this."""
    measured = {
        "rounds": run.rounds or found,
        "largest_ratio": ratio,
        "ln_flow": ln_flow,
        "ln_flow_dense": 34 * math.log(10),
        "empty": [] if ln_flow is not None else ["conv01/kernel"],
    }
    return [
        {"run": run.name, "kind": "run", "config": dataclasses.asdict(run)},
        {"run": run.name, "kind": "pruned", **measured},
    ]


def test_a_point_off_the_published_curve_is_an_exception():
    def run(schedule, n, seed=0):
        return rounds.Run("vgg19_imagenet", 1, schedule, n, seed=seed)

    rows = [
        *by_hand(run("exponential", 10), 1.37),
        *by_hand(run("exponential", 20), 0.74),
        *by_hand(run("linear", 10), 3.0, None),
        *by_hand(run("linear", 50), 0.7),
        # The mean of two seeds is near, neither of them is.
        *by_hand(run("linear", 100), 0.47),
        *by_hand(run("linear", 100, seed=1), 0.67),
        *by_hand(rounds.Run("vgg16_cifar", 1, "exponential", 100), 0.129),
    ]
    points = figures.compare(rows)
    assert [(p.schedule, p.rounds, p.close) for p in points] == [
        ("exponential", 10, True),
        ("exponential", 20, True),
        ("linear", 10, True),
        ("linear", 50, False),
        ("linear", 100, True),
    ]
    (table,) = figures.tables(rows)
    assert table.headings == ["rounds", "exponential to 10^1", "linear to 10^1"]
    assert [row[0] for row in table.rows] == ["10", "20", "50", "100"]
    assert table.rows[2] == ["50", "", "0.700 (1.059)"]
    assert table.rows[3] == ["100", "", "0.570 (0.571)"]
    assert points[3].difference == pytest.approx(0.7 / 1.05904 - 1)


def test_flow_is_set_beside_exponential_rounds_on_the_same_weights():
    def run(seed, **how):
        return rounds.Run("vgg16_cifar", 3, seed=seed, **how)

    exponential = {"schedule": "exponential", "rounds": 100}
    certified = {"schedule": "certified", "ratio": 0.5}
    rows = [
        *by_hand(run(0, **exponential), 0.5, 15.0),
        *by_hand(run(1, **exponential), 0.5, 25.0),
        *by_hand(run(0, **certified), 0.5, 15.5, found=78),
        *by_hand(run(1, **certified), 0.5, 25.25, found=81),
        *by_hand(run(2, **certified), 0.5, 99.0, found=80),  # nothing to set it beside
    ]
    (table,) = figures.tables(rows)
    assert table.headings == ["network", "certified(0.5)"]
    assert table.rows == [["vgg16_cifar to 10^3", "+0.50 +0.25 (78 to 81)"]]


def test_a_figure_with_the_published_curves_is_drawn(tmp_path):
    rows = []
    for run in rounds.runs("cpu"):
        n = run.rounds or int(10 * run.compression / run.ratio)
        flow = None if n == 1 else 30 - 10 / n
        rows += by_hand(run, run.ratio or 15 * run.compression / n, flow, found=n)
    figures.draw(rows, tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").read_bytes().startswith(PNG)
