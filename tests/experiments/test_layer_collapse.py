"""Layer collapse: the smoke run through its command, and what is made of the rows."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments import layer_collapse, methods, published
from experiments.figures import agreement, limits
from experiments.figures import layer_collapse as figures
from experiments.harness import command

PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.usefixtures("standard_promotion")


# --- the run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Three criteria on the first network, one seed."""
    folder = tmp_path_factory.mktemp("smoke")
    places = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    with jax.numpy_dtype_promotion("standard"):
        command.main(
            layer_collapse.EXPERIMENT,
            [*places, "--only", "mlp-(magnitude|grasp|synflow)-s0"],
        )
    return folder


def rows_of(folder):
    return command.results(folder / "out")


def test_every_row_of_the_smoke_run_keeps_exactly_its_count(smoke):
    rows = [row for row in rows_of(smoke) if row["kind"] == "layers"]
    assert {row["run"] for row in rows} == {
        f"mlp-{method}-s0" for method in ("magnitude", "grasp", "synflow")
    }
    for row in rows:
        size = sum(size for *_, size in row["layers"])
        kept = [kept for _, kept, _ in row["layers"]]
        assert size == 47_400
        assert row["kept"] == row["k"] == sum(kept)
        assert row["k"] == sj.num_kept(size, 10 ** -row["compression"])
        assert row["whole"] == all(kept)
        assert row["connected"] == (row["log10_flow"] is not None)
        assert row["whole"] or not row["connected"]
    names = [name for name, *_ in rows[0]["layers"]]
    assert names == [f"linear{i}" for i in range(1, 7)]
    synflow = [row for row in rows if row["run"] == "mlp-synflow-s0"]
    assert len(synflow) == 4 and all(row["connected"] for row in synflow)
    assert not all(row["connected"] for row in rows)


def test_the_smoke_run_is_drawn_and_in_the_tables(smoke):
    assert (smoke / "out" / "layers_cifar.png").read_bytes().startswith(PNG)
    assert not (smoke / "out" / "layers_imagenet.png").exists()  # nothing to draw
    (reached,) = figures.tables(rows_of(smoke))
    assert reached.title.startswith("mlp with 10 classes: the largest compression")
    assert reached.title.endswith("10^3.9 is possible")
    assert reached.rows[-1] == ["SynFlow", "1", "10^3", "10^3"]
    assert len(reached.headings) == 4  # nothing is published of this network


def test_an_interrupted_run_goes_on(smoke, tmp_path, monkeypatch):
    run = next(r for r in layer_collapse.the_runs("smoke") if r.method == "magnitude")
    whole = [row for row in rows_of(smoke) if row["run"] == run.name][1:]
    begun = [{k: v for k, v in row.items() if k != "run"} for row in whole[:2]]
    (tmp_path / "part.json").write_text(json.dumps(begun))
    monkeypatch.setattr(layer_collapse, "one_shot", counting(layer_collapse.one_shot))
    again = list(layer_collapse.execute(run, layer_collapse.Context(tmp_path)))
    assert again[:2] == begun and layer_collapse.one_shot.densities == [1e-2, 1e-3]
    for row, before in zip(again, whole, strict=True):
        assert {"run": run.name, **row, "seconds": 0} == {**before, "seconds": 0}
    assert list(layer_collapse.execute(run, layer_collapse.Context(tmp_path))) == again


def counting(one_shot):
    """The same, which remembers the densities that it was asked for."""

    def counted(score_fn, params):
        masks_at = one_shot(score_fn, params)

        def remembered(density):
            counted.densities.append(density)
            return masks_at(density)

        return remembered

    counted.densities = []
    return counted


# --- its parts ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def criteria():
    """Criteria of a network of two layers with biases, which are not pruned, and it."""
    keys = jax.random.split(jax.random.key(5), 4)
    params = {
        name: {"kernel": jax.random.normal(key, shape), "bias": jnp.ones(shape[1:])}
        for name, key, shape in (("one", keys[0], (6, 9)), ("two", keys[1], (9, 4)))
    }

    def loss(params, x):
        for layer in params.values():
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
        return (x**2).mean()

    x = jax.random.normal(keys[2], (2, 5, 6))
    by_name = {
        "random": sj.random(keys[3]),
        "magnitude": sj.magnitude(),
        "snip": sj.snip(loss, x),
        "grasp": sj.grasp(loss, x),
    }
    return by_name, params


@pytest.mark.parametrize("method", ["random", "magnitude", "snip", "grasp"])
def test_one_shot_is_pruning_in_one_round(criteria, method):
    score, params = criteria[0][method], criteria[1]
    masks_at = layer_collapse.one_shot(score, params)
    for density in (1.0, 0.3, 0.02):
        masks, _ = sj.prune(score, params, density, rounds=1)
        jax.tree.map(np.testing.assert_array_equal, masks_at(density), masks)


def test_synflow_says_what_its_rounds_removed():
    keys = jax.random.split(jax.random.key(7), 2)
    params = {
        "one": {"kernel": jax.random.normal(keys[0], (6, 9))},
        "two": {"kernel": jax.random.normal(keys[1], (9, 4))},
    }

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["one"]["kernel"]) @ params["two"]["kernel"]

    problem = methods.Problem(apply_fn, params, (6,), None, None, None, None)
    by_method = {run.method: run for run in layer_collapse.the_runs("smoke")}
    found = {}
    for method, rounds in (("synflow", 1), ("certified", 0)):
        run = dataclasses.replace(by_method[method], rounds=rounds)
        prune = layer_collapse._pruner(run, problem, jax.random.key(0))
        masks, found[method] = prune(2 / 90)
        assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) == 2
    # At once all goes but two weights, of two layers that carry the whole flow each.
    assert found["synflow"]["rounds"] == 1 and 1 < found["synflow"]["largest_ratio"] < 2
    assert found["certified"]["rounds"] > 2 and found["certified"]["largest_ratio"] <= 0.9
    assert all(mask["kernel"].any() for mask in masks.values())


def test_scores_that_are_no_numbers_are_refused():
    params = {"kernel": jnp.array([[1.0, jnp.nan]])}
    with pytest.raises(FloatingPointError):
        layer_collapse.one_shot(sj.magnitude(), params)


def test_the_runs_of_every_scale_are_those_of_the_paper():
    for scale in ("smoke", "cpu", "paper"):
        todo = layer_collapse.the_runs(scale)
        assert len({run.name for run in todo}) == len(todo)
        for run in todo:
            assert (run.data is None) == (not run.method.startswith(("snip", "grasp")))
    for scale in ("cpu", "paper"):
        todo = layer_collapse.the_runs(scale)
        first, certified, last, again = todo[:35], todo[35:40], todo[40:46], todo[46:]
        for run in certified:
            counts = [sj.num_kept(14_761_664, 10.0**-c) for c in run.compressions]
            assert counts == [15, 14] and run.ratio == 0.9 and run.method == "certified"
        assert {run.network for run in first} == {"vgg16_cifar"}
        assert {run.compressions for run in first} == {tuple(np.arange(25) / 4)}
        assert [run.network for run in last] == ["vgg19_imagenet"] * 6
        np.testing.assert_allclose(
            [10.0 ** -np.array(run.compressions) for run in last],
            np.broadcast_to(0.25 ** np.arange(12), (6, 12)),
            rtol=1e-14,
        )
        assert [(run.method, run.seed) for run in again] == [("synflow", 1), ("synflow", 2)]
        assert {run.compressions for run in again} == {last[0].compressions[9:]}
        assert {run.rounds for run in first + last if run.method == "synflow"} == {100}


# --- what is made of the rows -------------------------------------------------------------


def rows_for(method, seed, counts, network="vgg16_cifar", num_classes=100):
    """A run with ``counts``: compression to (weights kept in each layer, connected)."""
    part = "cifar" if network.endswith("cifar") else "imagenet"
    theirs = published.load("layer_collapse")[part]
    sizes = theirs["sizes"] if network == theirs["network"] else [100, 200]
    run = f"{network}-{method}-s{seed}"
    config = {
        **{"part": part, "network": network, "num_classes": num_classes},
        **{"method": method, "seed": seed, "compressions": list(counts)},
        **{"rounds": 1, "ratio": 0.8 if method == "certified" else None},
        **{"data": None, "input_shape": [32, 32, 3]},
    }
    names = [f"conv{i:02d}" for i in range(1, len(sizes) + 1)]
    return [
        {"run": run, "kind": "run", "config": config},
        *(
            {
                **{"run": run, "kind": "layers", "compression": compression},
                "layers": [list(layer) for layer in zip(names, kept, sizes, strict=True)],
                "whole": all(kept),
                "connected": connected,
            }
            for compression, (kept, connected) in counts.items()
        ),
    ]


def test_the_critical_compression_is_that_of_the_worst_seed():
    one = {0.0: ((9, 9), True), 1.0: ((2, 2), True), 2.0: ((1, 1), True)}
    two = {0.0: ((9, 9), True), 1.0: ((1, 2), False), 2.0: ((0, 2), False)}
    seeds = [rows_for("random", i, c, "net")[1:] for i, c in enumerate((one, two))]
    assert limits.critical(seeds[:1]) == (2.0, 2.0)
    assert limits.critical(seeds) == (1.0, 0.0)
    never = rows_for("random", 0, {0.0: ((0, 9), False)}, "net")[1:]
    assert limits.critical([never]) == (None, None)


def test_certified_rounds_have_a_table():
    rows = []
    for seed in range(3):
        own = rows_for("certified", seed, {2.0: ((1, 1), True)}, "net")
        own[-1] |= {"rounds": 20 + seed, "k": 2, "kept": 2}
        rows += own
    (table,) = figures.tables(rows)
    assert table.rows == [["2 (10^2)", "3 of 3", "20 to 22"]]
    assert "each removing at most 0.8 of the flow" in table.title
    own[-1] |= {"kept": 3}  # ended above its target
    assert figures.tables(rows)[0].rows[0][1] == "2 of 3"


def test_n_over_l_is_the_largest_compression():
    layers = [["a", 1, 600], ["b", 1, 1400]]
    assert limits.largest_possible(layers) == 3.0


@pytest.mark.parametrize(
    "count, sample, verdict",
    [
        (103, (100, 101, 99), True),  # three deviations of 1
        (103.1, (100, 101, 99), False),
        (102, (100, 100), True),  # two in a hundred
        (103, (100, 100), False),
        (0, (0, 0), True),
        (1, (0, 0), False),
    ],
)
def test_numbers_agree_within_the_spread_or_two_in_a_hundred(count, sample, verdict):
    assert agreement.agrees(count, sample) is verdict


def as_published(method, compressions):
    theirs = published.load("layer_collapse")["cifar"]
    return {
        c: (
            [
                round(d * n)
                for d, n in zip(theirs["density"][method][str(c)], theirs["sizes"])
            ],
            True,
        )
        for c in compressions
    }


def test_published_densities_are_compared_layer_by_layer():
    counts = as_published("synflow", (1.0, 3.0))
    moved = {c: (list(kept), alive) for c, (kept, alive) in counts.items()}
    moved[3.0][0][4] = round(1.1 * moved[3.0][0][4])
    rows = rows_for("synflow", 0, moved) + rows_for("synflow", 1, moved)
    found = limits.of_method(rows, "cifar")
    table = agreement.comparison(found, published.load("layer_collapse")["cifar"])
    assert len(table) == 28
    (far,) = (row for row in table if not row["agrees"])
    assert (far["method"], far["compression"], far["layer"]) == ("synflow", 3.0, "conv05")
    assert far["mean"] == moved[3.0][0][4] and far["deviation"] == 0
    reached, counts_, exceptions = figures.tables(rows)
    assert reached.rows == [["SynFlow", "2", "10^3", "10^3", "10^5.75", "10^6"]]
    cells = {layer: cell for layer, _, cell in counts_.rows}
    assert counts_.headings == ["layer", "weights", "SynFlow"]
    assert (cells["conv04"], cells["conv05"]) == ("2 of 2", "1 of 2")
    assert cells["all"] == cells["all with 20 weights or more"] == "27 of 28"
    ((method, layer, compression, published_, ours, deviation),) = exceptions.rows
    assert (method, layer, compression) == ("SynFlow", "conv05", "10^3")
    assert published_ == f"{counts[3.0][0][4]:,}" and ours == f"{moved[3.0][0][4]:,}.0"
    assert deviation == "0.0" and "SynFlow: the 1 exceptions" in exceptions.title


def test_the_published_snip_stands_beside_ours_in_both_modes():
    counts = as_published("snip", (1.0,))
    far = {1.0: ([0] * 14, False)}
    rows = rows_for("snip_evaluated", 0, counts) + rows_for("snip", 0, far)
    _, agreed, *_ = figures.tables(rows)
    assert agreed.headings[2:] == ["SNIP", "SNIP, evaluation mode"]
    assert agreed.rows[-2][2:] == ["0 of 14", "14 of 14"]


def test_one_draw_beside_one_draw_has_the_deviation_of_independent_choices():
    found = limits.of_method(rows_for("random", 0, as_published("random", (2.0,))), "cifar")
    table = agreement.comparison(found, published.load("layer_collapse")["cifar"])
    for row in table:
        np.testing.assert_allclose(row["deviation"], math.sqrt(row["mean"]))


def test_only_the_same_network_is_compared():
    rows = rows_for("random", 0, as_published("random", (1.0,)))
    assert len(figures.tables(rows)) == 2
    rows[0]["config"]["num_classes"] = 10
    assert len(figures.tables(rows)) == 1


def test_seeds_may_have_parts_of_the_compressions():
    counts = as_published("synflow", (1.0, 3.0))
    rows = rows_for("synflow", 0, counts)
    rows += rows_for("synflow", 1, {3.0: counts[3.0]})
    at = limits.by_compression(limits.of_method(rows, "cifar")["synflow"])
    assert {c: len(own) for c, own in at.items()} == {1.0: 1, 3.0: 2}


@pytest.mark.parametrize("part, size", [("cifar", 14_761_664), ("imagenet", 143_652_544)])
def test_the_published_numbers_are_whole(part, size):
    theirs = published.load("layer_collapse")[part]
    assert sum(theirs["sizes"]) == size and len(theirs["layers"]) == len(theirs["sizes"])
    assert set(theirs["density"]) == set(methods.PAPER)
    steps = np.arange(25) / 4 if part == "cifar" else math.log10(4) * np.arange(13)
    for method, densities in theirs["density"].items():
        np.testing.assert_allclose(sorted(map(float, densities)), steps, atol=1e-6)
        for compression, density in densities.items():
            kept = sum(d * n for d, n in zip(density, theirs["sizes"], strict=True))
            whole = sj.num_kept(size, 10.0 ** -float(compression))
            if part == "imagenet" and kept == 0:  # ties are all pruned in their code
                assert method == "synflow" and float(compression) > 7
            else:
                np.testing.assert_allclose(kept, whole, rtol=1e-3, atol=0.8)


def test_both_figures_are_drawn(tmp_path):
    counts = as_published("random", (1.0, 2.0, 3.0))
    rows = rows_for("random", 0, counts)
    counts = {0.0: ([1000] * 19, True), 2.0: ([0] + [3] * 18, False)}
    rows += rows_for("snip", 0, counts, "vgg19_imagenet")
    for name, draw in layer_collapse.EXPERIMENT.figures.items():
        draw(rows, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(PNG)
