"""What came out of `experiments.imagenet_training`: accuracies and the figure."""

import math
import pathlib

from matplotlib.figure import Figure

from experiments import methods, published
from experiments.figures import style
from experiments.harness.sweeps import Row
from experiments.harness.tables import Table


def accuracies(rows: list[Row]) -> dict[str, dict[float, float]]:
    """Best held-out accuracies in per cent: by method, by density."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["kind"] == "trained":
            of = found.setdefault(row["method"], {})
            of.setdefault(row["density"], []).append(100 * row["best"])
    return {
        method: {density: sum(v) / len(v) for density, v in sorted(of.items())}
        for method, of in found.items()
    }


def tables(rows: list[Row]) -> list[Table]:
    """The accuracies, and those of Wang et al. where they trained to that density."""
    ours, theirs = accuracies(rows), _published()
    densities = sorted({d for own in ours.values() for d in own}, reverse=True)
    body = []
    for method, own in ours.items():
        cells = [f"{own[d]:.1f}" if d in own else "" for d in densities]
        if any(row.get("dataset") == "imagenet2012" for row in rows):
            known = {round(d, 4): p for d, p in theirs.get(method, {}).items()}
            beside = [known.get(round(d, 4)) for d in densities]
            cells = [f"{c} ({p:.1f})" if c and p else c for c, p in zip(cells, beside)]
        body.append([methods.LABELS.get(method, method), *cells])
    title = "Best held-out accuracy in per cent (Wang et al. 2023)"
    return [Table(title, ["method", *(f"density {d:.4g}" for d in densities)], body)]


def _published() -> dict[str, dict[float, float]]:
    numbers = published.load("imagenet")
    found: dict[str, dict[float, float]] = {"dense": {1.0: numbers["dense"]}}
    for density, by_method in numbers["accuracy"].items():
        for method, percent in by_method.items():
            found.setdefault(method, {})[float(density)] = percent
    return found


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Accuracy against compression; dashed: the numbers of Wang et al. 2023."""
    ours, theirs = accuracies(rows), _published()
    on_imagenet = any(row.get("dataset") == "imagenet2012" for row in rows)
    with style.settings():
        figure = Figure((5.6, 3.9), layout="constrained")
        axes = figure.subplots()
        for method in methods.PAPER:
            mark = style.mark(method)
            if method in ours:
                x = [-math.log10(density) for density in ours[method]]
                axes.plot(x, list(ours[method].values()), **mark)
            if on_imagenet:
                x = [-math.log10(density) for density in theirs[method]]
                y = list(theirs[method].values())
                axes.plot(x, y, **mark | {"label": None}, ls="--", lw=1.1, ms=3.5)
        if "dense" in ours:
            axes.axhline(ours["dense"][1.0], color=style.PALE, lw=1.1, zorder=1)
            style.note(axes, ours["dense"][1.0], "dense")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("accuracy (%)")
        style.compressions(axes)
        axes.legend()
        figure.savefig(path, dpi=160)
