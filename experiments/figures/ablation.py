"""What came out of `experiments.ablation`: accuracies, times, and the figure."""

import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run


def _by_run(rows: list[Row]) -> Iterator[tuple[dict[str, Any], list[Row], Row]]:
    """For each run its settings, its networks, and their comparison with separate ones."""
    of_runs = by_run(rows)
    for name, config in command.configs(rows).items():
        own = of_runs[name]
        networks = [row for row in own if row["kind"] == "trained"]
        (separate,) = (row for row in own if row["kind"] == "separate")
        yield config, networks, separate


def _at(networks: list[Row], compression: float) -> list[float]:
    """The accuracies of all seeds, in percent."""
    return [100 * r["accuracy"] for r in networks if r["compression"] == compression]


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("s" if count > 1 else "")


def sentences(rows: list[Row]) -> list[str]:
    """The accuracies, and what one program is worth."""
    said = []
    for config, networks, separate in _by_run(rows):
        grid = config["compressions"]
        ends = [
            f"{statistics.mean(_at(networks, c)):.1f} % ({min(_at(networks, c)):.1f} to "
            f"{max(_at(networks, c)):.1f}) at 10^{c:g}"
            for c in (grid[0], grid[-1])
        ]
        said.append(
            f"{config['network']} on {config['dataset']}, mean and range over "
            f"{len(config['seeds'])} seeds: {' and '.join(ends)}."
        )
        together_, alone_ = (
            statistics.median(separate[f"seconds_{how}"]) for how in ("together", "alone")
        )
        ratio = alone_ / together_
        faster = f"{ratio:.2g} times as fast"
        if ratio < 1:
            faster = f"{1 / ratio:.2g} times as slow"
        said.append(
            f"{separate['networks']} networks in one program took {together_:.1f} s, one "
            f"after the other {alone_:.1f} s: together {faster} (median of "
            f"{config['timed']} turns; trained for {_epochs(config['timed_epochs'])}; both "
            "compiled before)."
        )
        said.append(
            "Entries of the masks that differ between the two: "
            f"{separate['masks_differ']}; largest difference in accuracy: "
            f"{100 * separate['accuracies_differ']:.2f} percentage points."
        )
    return said


def caption(rows: list[Row]) -> str:
    """What the figure shows, in words."""
    text = "Accuracy after training against compression, SynFlow"
    for config, _, _ in _by_run(rows):
        text += (
            f"; {config['network']} on {config['dataset']}, {len(config['seeds'])} seeds "
            f"times {len(config['compressions'])} densities in one program, "
            f"trained for {_epochs(config['training']['epochs'])}"
        )
    return text + ". Line: the mean over seeds; shade: from the lowest to the highest."


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """The mean over seeds against compression, the range, and every network as a point."""
    for config, networks, _ in _by_run(rows):
        grid = config["compressions"]
        found = np.array([_at(networks, c) for c in grid])
        with style.settings():
            figure = Figure((5.6, 3.7), layout="constrained")
            axes = figure.subplots()
            mark = style.mark("synflow")
            color = mark["color"]
            low, high = found.min(axis=1), found.max(axis=1)
            axes.fill_between(grid, low, high, color=color, alpha=0.18, lw=0)
            for seed in found.T:
                axes.plot(grid, seed, ".", color=color, ms=3.5, alpha=0.6)
            axes.plot(grid, found.mean(axis=1), **mark)
            style.compressions(axes)
            axes.set_ylabel(f"accuracy on {config['dataset']} (%)")
            axes.set_title(
                f"{len(config['seeds'])} seeds times {len(grid)} densities of "
                f"{config['network']}, one program"
            )
            figure.savefig(path, dpi=160)
