"""What the figures of all experiments share: colours of the methods, sizes, axes."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from experiments import methods

# Colours of Okabe and Ito, told apart by colour-blind readers; the markers differ as well.
# A control has the colour of what it is made from, and is dashed where both are drawn.
COLORS = {
    "random": "#009E73",
    "magnitude": "#D55E00",
    "snip": "#CC79A7",
    "grasp": "#E69F00",
    "synflow": "#0072B2",
    "iterative_snip": "#CC79A7",
    "iterative_grasp": "#E69F00",
    "shuffled_synflow": "#56B4E9",
    "synflow_densities": "#333333",
}
MARKERS = {
    "random": "^",
    "magnitude": "s",
    "snip": "D",
    "grasp": "v",
    "synflow": "o",
    "iterative_snip": "D",
    "iterative_grasp": "v",
    "shuffled_synflow": "P",
    "synflow_densities": "X",
}
INK, PALE = "#333333", "#8c8c8c"
SETTINGS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def mark(method: str) -> dict[str, str]:
    """Keywords of `Axes.plot` for a method."""
    return {
        "label": methods.LABELS[method],
        "color": COLORS[method],
        "marker": MARKERS[method],
    }


def settings():
    """A context in which figures look alike."""
    return matplotlib.rc_context(SETTINGS)


def power(exponent: float) -> str:
    """A power of ten, as a label."""
    return f"$10^{{{exponent:g}}}$"


def compressions(axes: Axes) -> None:
    """Labels the horizontal axis, on which log10 of the compression is drawn, by powers."""
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: power(x)))
    axes.set_xlabel("compression (weights / weights kept)")


def note(axes: Axes, height: float, text: str) -> None:
    """Writes on the right of the axes what a horizontal line is."""
    axes.annotate(
        text,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color="#595959",
    )


def span(numbers: Sequence[float], form: str = "") -> str:
    """From the least to the largest, in words; ``form`` is how a number is written."""
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low} to {high}"
