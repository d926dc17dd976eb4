"""What masks that change cost a training step, beside masks that do not.

    python -m benchmarks.sparse_training                     # all four networks
    python -m benchmarks.sparse_training mlp --out FILE

A step prunes once in `EVERY` steps, so its share of the time is (a step that prunes - a
step that does not) / `EVERY`, in per cent of a step of `static_pruning`: medians of ten
interleaved runs. Of eight seeds under vmap too, where a branch that had become both
branches would show.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

EVERY = 100
TURNS = 10
FAR = 10**9  # the number of an update that does not come


def image_classifier(name, batch):
    """(loss, params, batch) of one of the paper's networks, on noise."""
    apply_fn, params, shape = models.build(name, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (batch, *shape))

    def loss(params, images):
        return -jax.nn.log_softmax(apply_fn(params, images))[:, 0].mean()

    return loss, params, images


def transformer(layers, width, batch=8, length=64):
    """The same of a transformer without embeddings, which predicts its input."""
    keys = iter(jax.random.split(jax.random.key(0), 6 * layers))
    draw = jax.nn.initializers.lecun_normal()

    def kernel(*shape):
        return {"kernel": draw(next(keys), shape)}

    def layer():
        block = {name: kernel(width, width) for name in ("q", "k", "v", "out")}
        return block | {"up": kernel(width, 4 * width), "down": kernel(4 * width, width)}

    params = [layer() for _ in range(layers)]
    tokens = jax.random.normal(jax.random.key(1), (batch, length, width))

    def normed(x):
        return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6)

    def block(x, p):
        h = normed(x)
        q, k, v = (h @ p[n]["kernel"] for n in ("q", "k", "v"))
        weights = jax.nn.softmax(jnp.einsum("bqw,bkw->bqk", q, k) / width**0.5)
        x = x + jnp.einsum("bqk,bkw->bqw", weights, v) @ p["out"]["kernel"]
        return x + jax.nn.gelu(normed(x) @ p["up"]["kernel"]) @ p["down"]["kernel"]

    def loss(params, tokens):
        return jnp.mean((functools.reduce(block, params, tokens) - tokens) ** 2)

    return loss, params, tokens


PROBLEMS = {
    "vgg16": (lambda: image_classifier("vgg16_cifar", 128), None),
    "transformer-12": (lambda: transformer(12, 256), None),
    "mlp": (lambda: image_classifier("mlp", 128), 8),
    "transformer-2": (lambda: transformer(2, 128), 8),
}


def transformations(params):
    """By name: an optimizer, its state before a step that prunes, one before another."""
    inner = optax.sgd(0.1, momentum=0.9)
    masks = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 2 == 0, params)
    static = sj.static_pruning(inner, masks)
    gradual = sj.gradual_pruning(inner, sj.magnitude(), 0.1, begin=1, end=1, every=EVERY)
    moving = sj.dynamic_sparsity(
        inner, masks, sj.grow_by_gradient(), every=EVERY, until=2 * EVERY
    )
    start, first = gradual.init(params), moving.init(params)
    return {
        "static": (static, static.init(params), static.init(params)),
        "gradual": (gradual, start, sj.replace_schedule(start, begin=FAR, end=FAR)),
        "rigl": (moving, first._replace(step=jnp.int32(EVERY - 1)), first),
    }


def measured(name, *, turns=TURNS, problem=None, seeds=None):
    """The row of one network.

    Args:
      name: of `PROBLEMS`.
      turns: runs of each step.
      problem, seeds: another network, and how many of it under vmap.
    """
    make, own = PROBLEMS[name] if problem is None else (problem, seeds)
    loss, params, batch = make()
    functions, names = [], []
    size = {}
    for kind, (optimizer, due, later) in transformations(params).items():
        size[kind] = sum(leaf.nbytes for leaf in jax.tree.leaves(later))

        def step(params, state, optimizer=optimizer):
            updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        run, stack = jax.jit(step), lambda tree: tree
        if own:
            run = jax.jit(jax.vmap(step))
            stack = functools.partial(jax.tree.map, lambda x: jnp.stack([x] * own))
        for when, state in (("due", due), ("plain", later)):
            functions.append(functools.partial(run, stack(params), stack(state)))
            names.append((kind, when))
    times = dict(zip(names, measuring.interleaved(functions, least=turns)[0]))
    static = times["static", "plain"]
    row = {
        "network": name,
        "seeds": own or 1,
        "weights": int(sj.count(sj.all_kept(params))),
    }
    row["static_ms"] = round(static, 2)
    for kind in ("gradual", "rigl"):
        plain, due = times[kind, "plain"], times[kind, "due"]
        row[f"{kind}_plain_ms"], row[f"{kind}_due_ms"] = round(plain, 2), round(due, 2)
        row[f"{kind}_per_cent"] = round(100 * (due - plain) / EVERY / static, 2)
        row[f"{kind}_more_bytes"] = size[kind] - size["static"]
    return row


def table(rows):
    shown = Table(title=f"a training step, milliseconds; pruning once in {EVERY} steps")
    columns = ("network", "seeds", "static", "gradual: plain, pruning, cost", "RigL: same")
    for column in columns:
        shown.add_column(column, justify="right")
    for row in rows:
        cells = [
            f"{row[f'{k}_plain_ms']:.1f}, {row[f'{k}_due_ms']:.1f}, "
            f"{row[f'{k}_per_cent']:.2f} %"
            for k in ("gradual", "rigl")
        ]
        own = row["network"], str(row["seeds"]), f"{row['static_ms']:.1f}"
        shown.add_row(*own, *cells)
    return shown


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*PROBLEMS, []], metavar="NETWORK")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    facts, console, rows = measuring.described(), measuring.console(), []
    for name in args.names or PROBLEMS:
        rows.append(measured(name))
        measuring.append(args.out, [rows[-1] | facts])
    console.print(table(rows))


if __name__ == "__main__":
    main()
