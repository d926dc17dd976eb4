"""The figure of docs/speed.md, from results/bench.json: `python -m benchmarks.figure`."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks import pages

# Colours of Okabe and Ito; the markers differ as well.
STYLES = {
    "keep_top": {"label": "keep_top", "color": "#0072B2", "marker": "o"},
    "numpy_partition": {"label": "numpy.partition", "color": "#E69F00", "marker": "s"},
    "top_k": {"label": "lax.top_k", "color": "#009E73", "marker": "^"},
    "sort": {"label": "stable sort", "color": "#D55E00", "marker": "D"},
}
SETTINGS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 5,
}


def draw(results, path):
    """Left: rounds of the whole loop; right: one selection against the number of scores."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure((8.4, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        _loops(left, results["loop"])
        _selections(right, results["selection"])
        figure.savefig(path, dpi=200)


def _loops(axes, rows):
    places = np.arange(len(rows))
    parts = [
        ("floor_s", "floor", "#bbbbbb"),
        ("prune_s", "synflow_jax", "#0072B2"),
        ("pytorch_s", "PyTorch", "#D55E00"),
    ]
    for i, (key, label, color) in enumerate(parts):
        heights = [1e3 * row[key] / row["rounds"] for row in rows]
        bars = axes.barh(places + 0.27 * (1 - i), heights, 0.25, label=label, color=color)
        if key == "prune_s":
            texts = [f"{row['times_faster']:.1f} x" for row in rows]
            axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(
        places, [pages.NAMES[row["network"]].replace(", ", "\n", 1) for row in rows]
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a round")
    axes.legend(fontsize=8, loc="upper right")


def _selections(axes, rows):
    for name, style in STYLES.items():
        points = [(row["scores"], row.get(f"{name}_ms")) for row in rows]
        points = [(x, y) for x, y in points if y is not None]
        axes.plot(*zip(*points), **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("scores")
    axes.set_ylabel("milliseconds to keep 1 %")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    draw(pages.read(), pathlib.Path("docs/bench.png"))
