"""Connected at one weight for each layer: a run of each way, and what is made of rows."""

import pytest

from experiments import connected
from experiments.figures import connected as figures
from experiments.harness.sweeps import Context
from tests.experiments.small import narrow

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("way", ["one_shot", "keep_connected"])
def test_a_run_keeps_one_weight_for_each_layer(way, tmp_path):
    run = connected.Run("mlp", way, seeds=2, rounds=3)
    with narrow(width=0.1):
        rows = list(connected.execute(run, Context(tmp_path)))
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["kept"] == row["layers"] == 6 for row in rows)
    assert [figures.whole(row) for row in rows] == [way == "keep_connected"] * 2


def test_every_network_is_pruned_in_every_way_from_twenty_initialisations():
    runs = connected.runs("cpu")
    assert {run.seeds for run in runs} == {20} and len(runs) == 12
    assert {run.way for run in runs} == set(connected.WAYS) == set(figures.WAYS)


def by_hand(way, seed, flow, kept=6):
    row = {"kind": "pruned", "network": "mlp", "way": way, "seed": seed, "layers": 6}
    return row | {"kept": kept, "rounds": 5, "retries": seed, "log10_flow": flow}


def test_the_table_counts_those_that_have_a_path_and_no_weight_more(tmp_path):
    rows = [
        by_hand("published", 0, None),
        by_hand("published", 1, -3.0),
        by_hand("certified", 0, -3.0, kept=7),
        by_hand("certified", 1, -2.0),
    ]
    (table,) = figures.tables(rows)
    assert table.rows == [
        ["mlp, 100 rounds, as published", "1 of 2", "5", "1", "-3.00"],
        ["mlp, certified rounds", "1 of 2", "5", "1", "-2.00"],
    ]
    figures.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
