"""Exactness at depth: the networks on which a plain float32 flow overflows, and more.

    python -m benchmarks.depth                      # all of them
    python -m benchmarks.depth resnet110 resnet1202
    python -m benchmarks.depth --overlap resnet110  # masks of 100 rounds

--out FILE adds a JSON line for each network.

Of each network, in float32: log10 of its flow R, how far the cuts are from carrying all of
it, one round against float64, and a prune to 10^2 in 100 rounds. With --overlap: how many
of the weights kept after 100 rounds in float32 float64 keeps too, beside the same for two
float64 runs whose weights differ in their last float32 bit.

Runs with jax_enable_x64; what is called float32 has float32 parameters.
"""

import argparse
import functools
import math
import pathlib
import re
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import synflow_jax as sj
from benchmarks import measuring
from synflow_jax import models

# Algorithm 1 of the paper to the letter.
prune = functools.partial(sj.prune, keep_connected=False)

# Those that the authors' code cannot prune, then two of the paper's, then a transformer.
DEFAULT = (
    "resnet32 resnet44 resnet56 resnet110 resnet34_tiny resnet50_tiny resnet101_tiny "
    "resnet152_tiny resnet1202 vgg16_cifar vgg19_cifar transformer48"
).split()


class Transformer(nn.Module):
    """Causal, with layer norm before attention and before the two dense layers."""

    depth: int = 48
    width: int = 64
    heads: int = 4
    vocabulary: int = 256

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = (
            x
            + self.param("positions", nn.initializers.normal(0.02), (length, self.width))[
                None
            ]
        )
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(self.heads)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(hidden))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class ScannedResNet(nn.Module):
    """CIFAR ResNet-1202 with the equal blocks of a stage in one scan: unrolled, it takes
    minutes and 11 GB to trace and compile. Batch norm as at initialisation."""

    blocks: int = 200
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.zeros
        x = nn.relu(_conv(x, self.param("stem", init, (3, 3, 3, 16))))
        for stage, width in enumerate((16, 32, 64)):
            shapes = {"first": (3, 3, x.shape[-1], width), "second": (3, 3, width, width)}
            if stage:
                shapes["shortcut"] = (1, 1, x.shape[-1], width)
            kernels = {k: self.param(f"{stage}_{k}", init, s) for k, s in shapes.items()}
            x = _block(x, kernels, stride=2 if stage else 1)
            repeated = (self.blocks - 1, 3, 3, width, width)
            kernels = {
                k: self.param(f"{stage}_{k}s", init, repeated) for k in ("first", "second")
            }
            x, _ = jax.lax.scan(lambda x, k: (_block(x, k), None), x, kernels)
        x = x.mean((1, 2))
        return x @ self.param("linear", init, (x.shape[-1], self.num_classes))


def _conv(x, kernel, stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
    )
    return y * (1 + 1e-5) ** -0.5


def _block(x, kernels, stride=1):
    y = nn.relu(_conv(x, kernels["first"], stride))
    shortcut = _conv(x, kernels["shortcut"], stride) if "shortcut" in kernels else x
    return nn.relu(_conv(y, kernels["second"]) + shortcut)


def built(name):
    """``(apply_fn, params, input_shape)``, in float32."""
    if name == "resnet1202":
        module, shape = ScannedResNet(), (32, 32, 3)
        inputs = jnp.ones((1, *shape))
    elif name == "transformer48":
        module, shape = Transformer(), jax.ShapeDtypeStruct((1, 32), jnp.int32)
        inputs = jnp.ones(shape.shape, shape.dtype)
    else:
        network = models.NETWORKS[name]
        module, shape = network.make(num_classes=network.num_classes), network.input_shape
        inputs = jnp.ones((1, *shape))
    # Leaf by leaf: in one program the draws of a thousand layers compile for minutes.
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        last = jax.tree_util.keystr(path[-1:], simple=True)
        if last in ("scale", "var"):
            return jnp.ones(leaf.shape, jnp.float32)
        if leaf.ndim < 2:
            return jnp.zeros(leaf.shape, jnp.float32)
        stacked = leaf.ndim == 5  # one kernel for each step of a scan
        fan_in = math.prod(leaf.shape[stacked:-1])
        if last in ("embedding", "positions"):
            fan_in = leaf.shape[-1]
        return jnp.asarray(
            rng.standard_normal(leaf.shape) * (2 / fan_in) ** 0.5, jnp.float32
        )

    variables = jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))
    return (*sj.from_linen(module, variables), shape)


def in_double(params):
    return jax.tree.map(lambda p: p.astype(jnp.float64), params)


def flat(tree, params):
    """The entries of the kernels, one after the other."""
    named = zip(sj.leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(tree))
    return np.concatenate([np.ravel(x) for name, p, x in named if prunable(name, p)])


def prunable(name, leaf):
    """The kernels; in the scanned network everything is one."""
    return sj.is_kernel(name, leaf) or bool(re.fullmatch(r"stem|linear|\d_\w+", name))


def cut_gap(name, params, scores):
    """The largest distance from 1 of what a kernel scores that all paths cross."""
    kernels = [
        (path, float(np.sum(s, dtype=np.float64)))
        for path, p, s in zip(
            sj.leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(scores)
        )
        if prunable(path, p) or path.endswith("embedding")
    ]
    if name == "transformer48":
        head = f"Dense_{2 * Transformer.depth}/kernel"
        ends = [k for k in kernels if k[0].endswith("embedding") or k[0] == head]
    elif name.startswith("vgg"):
        ends = kernels
    elif name == "resnet1202":
        ends = [k for k in kernels if k[0] in ("stem", "linear")]
    else:
        ends = [kernels[0], kernels[-1]]
    return max(abs(total - 1) for _, total in ends)


def one_round_beside_double(score, params, scores, density):
    """Weights that one round in float32 and in float64 keep differently, and how far the
    furthest of their scores is from the threshold, relatively."""
    single = flat(scores, params)
    double = flat(jax.jit(score)(in_double(params), sj.all_kept(params)), params)
    k = sj.num_kept(double.size, density)
    keep = jax.jit(sj.keep_top)
    kept = [np.asarray(keep(jnp.asarray(s), jnp.uint32(k))) for s in (single, double)]
    differ = kept[0] != kept[1]
    threshold = double[kept[1]].min()
    return int(differ.sum()), float(abs(double[differ] / threshold - 1).max(initial=0))


def measured(name):
    """The row of one network."""
    apply_fn, params, shape = built(name)
    score = sj.synflow(apply_fn, shape)
    kept = sj.all_kept(params)
    log10_flow = jax.jit(lambda p: sj.log_flow(apply_fn, p, shape) / np.log(10))
    scores = jax.jit(score)(params, kept)
    finite = all(bool((jnp.isfinite(s) & (s >= 0)).all()) for s in jax.tree.leaves(scores))
    log10_r = float(log10_flow(params))
    # Above 1e308 a plain float64 has no number for R, and there is nothing to compare with.
    differ = band = None
    if log10_r < 308:
        differ, band = one_round_beside_double(score, params, scores, 0.1)
    start = time.perf_counter()
    prune(score, params, 0.5, prunable=prunable)  # compiles
    middle = time.perf_counter()
    masks, info = jax.block_until_ready(prune(score, params, 0.01, prunable=prunable))
    seconds = time.perf_counter() - middle
    alive = float(log10_flow(sj.apply_masks(params, masks)))
    return {
        "network": name,
        "weights": flat(kept, params).size,
        "log10_R": round(log10_r, 2),
        "finite": finite,
        "cut_gap": cut_gap(name, params, scores),
        "one_round_differs": differ,
        "furthest_from_threshold": band,
        "kept": int(info.kept[-1]),
        "connected": math.isfinite(alive),
        "log10_R_pruned": round(alive, 2),
        "emptied": len(sj.collapsed(params, masks, prunable=prunable)),
        "prune_s": round(seconds, 2),
        "compile_s": round(middle - start - seconds, 1),
    }


def overlaps(name):
    """Of the weights that float64 keeps, the fraction that another run keeps."""
    apply_fn, params, shape = built(name)
    score = sj.synflow(apply_fn, shape)
    bits = np.random.default_rng(0)

    def nudged(p):
        up = bits.random(p.shape) < 0.5
        return jnp.nextafter(p, jnp.where(up, jnp.inf, -jnp.inf).astype(p.dtype))

    runs = {
        "float64": in_double(params),
        "float32": params,
        "float64, last bits changed": in_double(jax.tree.map(nudged, params)),
    }
    rows = []
    for compression in (1, 2, 3, 4):
        masks = {
            run: flat(prune(score, p, 10.0**-compression, prunable=prunable)[0], params)
            for run, p in runs.items()
        }
        double = masks.pop("float64")
        common = {run: float((m & double).sum() / double.sum()) for run, m in masks.items()}
        rows.append(
            {"network": name, "compression": compression, "kept": int(double.sum())}
        )
        rows[-1] |= {
            f"overlap with float64 of {run}": round(x, 4) for run, x in common.items()
        }
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks; default, all")
    parser.add_argument("--overlap", action="store_true", help="masks of 100 rounds")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines are added to it")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in models.NETWORKS and name != "transformer48":
            parser.error(f"there is no network {name}.")
    jax.config.update("jax_enable_x64", True)
    console, facts = measuring.console(), measuring.described()
    for name in args.names or DEFAULT:
        for row in overlaps(name) if args.overlap else [measured(name)]:
            console.print(", ".join(f"{k} {v}" for k, v in row.items()), soft_wrap=True)
            measuring.append(args.out, [row | facts])
        jax.clear_caches()


if __name__ == "__main__":
    main()
