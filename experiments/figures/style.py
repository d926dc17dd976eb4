"""What the figures of all experiments share: colours of the methods, sizes, axes."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from experiments import methods

# A colour and a marker for each method. The paper's five have colours of Okabe and Ito,
# told apart by colour-blind readers; no two methods have one marker.
MARKS = {
    "random": ("#009E73", "^"),
    "magnitude": ("#D55E00", "s"),
    "snip": ("#CC79A7", "D"),
    "grasp": ("#E69F00", "v"),
    "synflow": ("#0072B2", "o"),
    "erk": ("#117733", "<"),
    "synflow_densities": ("#333333", "X"),
    "shuffled_synflow": ("#56B4E9", "P"),
    "reinitialised_synflow": ("#882255", "*"),
    "inverted_synflow": ("#B8860B", "d"),
    "synflow_l2": ("#44AA99", "h"),
    "certified_synflow": ("#332288", "p"),
    "iterative_snip": ("#AA3377", ">"),
    "iterative_grasp": ("#7A4A00", "8"),
    "ntk_sap": ("#EE6677", "H"),
    "synflow_on_images": ("#4477AA", "+"),
    "synflow_on_noise": ("#66CCEE", "x"),
    "synflow_in_training": ("#999933", "1"),
    "snip_random_labels": ("#DDAACC", "2"),
    "grasp_random_labels": ("#CCBB44", "3"),
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
        "color": MARKS[method][0],
        "marker": MARKS[method][1],
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
