"""One score against the pixels of the image: equal positions once, all of them, PyTorch.

    python -m benchmarks.resolution                        # all networks and sizes: minutes
    python -m benchmarks.resolution "unet of 2 levels" --most 256
    python -m benchmarks.resolution --out ROWS.jsonl --figure resolution.png

They run in turns; PyTorch, if it is installed, on VGG-19 and on the U-Nets. Of large
images only the first is computed: all positions take minutes, or do not fit.
"""

import argparse
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp

import synflow_jax as sj
from benchmarks import measuring
from benchmarks.flow import compiled
from benchmarks.unets import unet
from synflow_jax import models
from synflow_jax.transform.network_flow import ones, total_flow, uniform
from synflow_jax.xla.backends import on_backend


def paper(name):
    apply_fn, params, _ = models.build(name, jax.random.key(0))
    return apply_fn, params


# Of each network: how it is made, the axes of an image, the pixels along each, and up to
# how many pixels all positions are computed too.
NETWORKS = {
    "vgg19_imagenet": (functools.partial(paper, "vgg19_imagenet"), 2, (224,), 224),
    "resnet50_imagenet": (
        functools.partial(paper, "resnet50_imagenet"),
        2,
        (64, 128, 224, 448),
        224,
    ),
    "unet of 2 levels": (lambda: unet(2, 2), 2, (128, 256, 512, 1024), 512),
    "unet of 4 levels": (lambda: unet(4, 2), 2, (128, 256, 512, 1024), 512),
    "resizing unet of 2 levels": (
        lambda: unet(2, 2, way="resized"),
        2,
        (128, 256, 512, 1024),
        512,
    ),
    "3d unet of 2 levels": (lambda: unet(2, 3), 3, (32, 64, 128), 64),
}


def score(apply_fn, shape, once):
    """``score(params)``: each weight's share of the flow."""
    inputs = uniform(ones(shape))

    def shares(backend, params):
        def mantissa(params):
            return total_flow(apply_fn, params, inputs, once=once, backend=backend).mantissa

        total, gradients = jax.value_and_grad(mantissa)(params)
        return jax.tree.map(lambda w, g: jnp.abs(w * g) / total, params, gradients)

    return lambda params: on_backend(shares, params)


def pytorch(name, params, shape):
    """``run()``: PyTorch's scores; None where it is not installed or lacks the network."""
    if importlib.util.find_spec("torch") is None:
        return None
    from benchmarks import pytorch_baseline as baseline

    if name in baseline.NETWORKS:
        network, layers = baseline.NETWORKS[name][0], baseline.layers_of(params)
    elif "up" in params:  # a U-Net with transposed convolutions
        named = zip(sj.leaf_names(params), jax.tree.leaves(params))
        network = baseline.unet
        layers = baseline.layers_of({name: {"kernel": kernel} for name, kernel in named})
    else:
        return None
    image = baseline.torch.ones(1, shape[-1], *shape[:-1])
    return baseline.scores(network, layers, image)


def measured(name, pixels, seconds=2.0, least=3):
    """The row of one network at one size."""
    make, space, _, whole = NETWORKS[name]
    apply_fn, params = make()
    shape = (*(pixels,) * space, 3)
    kinds = {"once": None, "whole": False} if pixels <= whole else {"once": None}
    functions = [score(apply_fn, shape, once) for once in kinds.values()]
    programs, spent = compiled(functions, (params,), 1)
    runs = [functools.partial(program, params) for program in programs]
    beside = pytorch(name, params, shape) if pixels <= whole else None
    runs += [beside] if beside else []
    milliseconds, turns = measuring.interleaved(runs, seconds=seconds, least=least)
    row = {"network": name, "pixels": pixels, "runs": turns}
    for kind, program, ms, compile_s in zip(kinds, programs, milliseconds, spent):
        row[f"{kind}_ms"] = round(ms, 3)
        row[f"{kind}_temp_bytes"] = program.memory_analysis().temp_size_in_bytes
        row[f"{kind}_compile_s"] = round(compile_s, 2)
    if beside:
        row["pytorch_ms"] = round(milliseconds[-1], 3)
    return row


# How a line of each kind is drawn.
STYLES = {
    "once": ("equal positions once", {"ls": "-", "marker": "o"}),
    "whole": ("all positions", {"ls": "--", "marker": "x", "ms": 8}),
    "pytorch": ("PyTorch", {"ls": ":", "marker": "s", "mfc": "none", "ms": 8}),
}


def draw(rows, path):
    """Time and temporary memory of one score against the pixels along an axis."""
    import matplotlib.pyplot as plt  # an extra
    from matplotlib.lines import Line2D

    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    names = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    for panel, field, title, unit in zip(
        panels, ("ms", "temp_bytes"), ("milliseconds a score", "temporary MB"), (1, 2**20)
    ):
        for number, name in enumerate(names):
            for kind, (_, style) in STYLES.items():
                points = [
                    (row["pixels"], row[f"{kind}_{field}"] / unit)
                    for row in rows
                    if row["network"] == name and f"{kind}_{field}" in row
                ]
                if points:  # no memory of PyTorch's
                    panel.plot(*zip(*points), color=f"C{number}", **style)
        panel.set(xscale="log", yscale="log", xlabel="pixels along an axis", ylabel=title)
        least, most = (end(row["pixels"] for row in rows) for end in (min, max))
        powers = [2**i for i in range((least - 1).bit_length(), most.bit_length())]
        panel.set_xticks(powers, powers)
        panel.minorticks_off()
    handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(names)]
    handles += [Line2D([], [], color="0.3", label=n, **s) for n, s in STYLES.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--most", type=int, default=1024, help="pixels along an axis")
    parser.add_argument("--seconds", type=float, default=2.0, help="of runs, each row")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines, one a size")
    parser.add_argument("--figure", type=pathlib.Path, help="draws what --out holds")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in NETWORKS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(NETWORKS)}.")
    console, facts = measuring.console(), measuring.described()
    rows = []
    for name in args.names or NETWORKS:
        for pixels in NETWORKS[name][2]:
            if pixels <= args.most:
                rows.append(measured(name, pixels, args.seconds))
                measuring.report(console, args.out, rows[-1], facts)
    if args.figure:
        if args.out:
            rows = [json.loads(line) for line in args.out.read_text().splitlines()]
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
