"""What each criterion keeps of a network: the table of docs/criteria.md.

    python -m experiments criteria_table    # VGG-16 at 10^2; minutes on two cores

Every criterion prunes the same initial weights to the same density: SynFlow and its square
in 100 rounds, all others at once, as in the paper. Those of a loss see ten images of each
class in one batch, and batch norm sees the batch, as in `experiments.methods`.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import rich.table

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import load
from experiments.harness.console import CONSOLE, progress, say
from experiments.harness.tables import Table, markdown
from synflow_jax import models

ROUNDS = {"synflow": 100, "synflow_l2": 100}


def criteria(problem):
    """Every criterion of the package, by name."""
    loss_fn = methods.cross_entropy(problem.logits_fn)
    key = jax.random.key(2)
    batches, shape = problem.batches, problem.input_shape
    noise = jax.random.normal(jax.random.key(1), batches["images"].shape)
    return {
        **{name: methods.score_fn(name, problem, key) for name in methods.PAPER},
        "gradient_norm": sj.gradient_norm(loss_fn, batches),
        "ntk_sap": sj.ntk_sap(problem.apply_fn, noise, jax.random.key(3)),
        "synflow_l2": sj.synflow_l2(problem.apply_fn, shape),
    }


def sample(name, shape, num_classes, each=10):
    """One batch of ``each`` images of every class; of noise where ``name`` says so."""
    count = each * num_classes
    if name == "noise":
        images = jax.random.normal(jax.random.key(0), (1, count, *shape))
        return {"images": images, "labels": jnp.arange(count)[None] % num_classes}
    loaded = load(name)
    if loaded.train_images.shape[1:] != shape or loaded.num_classes != num_classes:
        raise ValueError(
            f"{loaded.name} has {loaded.num_classes} classes of images of "
            f"{loaded.train_images.shape[1:]}; the network takes {num_classes} of {shape}."
        )
    return methods.batches(loaded, 0, each=each, size=count)


def measured(name, score_fn, problem, density):
    """The row of one criterion."""
    rounds, began, params = ROUNDS.get(name, 1), time.perf_counter(), problem.params
    with progress(name, rounds) as advance:
        masks, _ = sj.prune(
            score_fn,
            params,
            density,
            rounds=rounds,
            keep_connected=False,
            on_round=lambda info: advance(1),
        )
    seconds = time.perf_counter() - began
    pruned = sj.apply_masks(params, masks)
    flow = sj.log_flow(problem.apply_fn, pruned, problem.input_shape)
    layers = [row for row in sj.summarize(params, masks) if row.name.endswith("/kernel")]
    return {
        "criterion": name,
        "rounds": rounds,
        "kept": {row.name.removesuffix("/kernel"): row.kept for row in layers},
        "sizes": {row.name.removesuffix("/kernel"): row.size for row in layers},
        "connected": bool(jnp.isfinite(flow)),
        "seconds_with_compiling": round(seconds, 1),
    }


def compared(rows):
    """The table of the document: a line a layer, a column a criterion."""
    names = [row["criterion"] for row in rows]
    body = [
        [layer, f"{size:,}", *(f"{row['kept'][layer]:,}" for row in rows)]
        for layer, size in rows[0]["sizes"].items()
    ]
    alive = ["yes" if row["connected"] else "no" for row in rows]
    return Table(
        "Weights kept", ["layer", "weights", *names], [*body, ["connected", "", *alive]]
    )


def on_terminal(table):
    """The same for a terminal."""
    shown = rich.table.Table(title=table.title)
    for place, heading in enumerate(table.headings):
        shown.add_column(heading, justify="right" if place else "left", overflow="fold")
    for cells in table.rows:
        shown.add_row(*cells)
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="vgg16_cifar", choices=models.NETWORKS)
    parser.add_argument("--compression", type=float, default=2.0, help="log10")
    parser.add_argument("--data", default="cifar10_20k", help="or cifar10, digits, noise")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines, written at the end")
    args = parser.parse_args(argv)
    network = models.NETWORKS[args.network]
    shape, num_classes = network.input_shape, network.num_classes
    module = network.make(num_classes=num_classes)
    batch = sample(args.data, shape, num_classes)
    problem = methods.problem(module, jax.random.key(0), shape, batch)
    rows = []
    for name, score_fn in criteria(problem).items():
        row = measured(name, score_fn, problem, 10.0**-args.compression)
        setting = {"network": args.network, "compression": args.compression}
        rows.append(row | setting | {"data": args.data, "jax": jax.__version__})
        say(f"{name}: {row['seconds_with_compiling']} s, connected: {row['connected']}")
    table = compared(rows)
    CONSOLE.print(on_terminal(table))
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(markdown(table))


if __name__ == "__main__":
    main()
