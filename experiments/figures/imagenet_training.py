"""What came out of `experiments.imagenet_training`: accuracies, sentences, the figure."""

import math
import pathlib

from matplotlib.figure import Figure

from experiments import methods, published
from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row


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


def sentences(rows: list[Row]) -> list[str]:
    """Each accuracy, beside that of Wang et al. where there is one."""
    theirs, texts = _published(), []
    on_imagenet = any(row.get("dataset") == "imagenet2012" for row in rows)
    for method, found in accuracies(rows).items():
        for density, percent in found.items():
            known = theirs.get(method, {})
            close = [d for d in known if math.isclose(d, density, rel_tol=1e-4)]
            beside = f" (Wang et al. {theirs[method][close[0]]:.1f})" if close else ""
            texts.append(
                f"{method} at density {density:.4g}: {percent:.1f} %"
                f"{beside if on_imagenet else ''}."
            )
    return texts


def caption(rows: list[Row]) -> str:
    """What was trained."""
    config = next(iter(command.configs(rows).values()))
    training = config["training"]
    return (
        f"{config['network']} on {config['dataset']} at {config['size']} pixels, "
        f"{training['epochs']} epochs of batches of {training['batch']} in "
        f"{training['precision']}. Dashed: Wang et al. 2023, Table 1."
    )
