"""What came out of `experiments.ablation`: accuracies, times and the figure."""

import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.harness import command
from experiments.harness.sweeps import Row, by_run
from experiments.harness.tables import Table


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


def _of_criteria(networks: list[Row]) -> dict[str, list[Row]]:
    """The networks of each criterion; there was a time when all were of SynFlow."""
    found: dict[str, list[Row]] = {}
    for row in networks:
        found.setdefault(row.get("criterion", "synflow"), []).append(row)
    return found


def tables(rows: list[Row]) -> list[Table]:
    """What one program is worth beside separate ones."""
    body = []
    for config, networks, separate in _by_run(rows):
        together, alone = (
            statistics.median(separate[f"seconds_{how}"]) for how in ("together", "alone")
        )
        body.append(
            [
                f"{config['network']} on {config['dataset']}",
                str(len(networks)),
                f"{together:.1f}",
                f"{alone:.1f}",
                str(separate["masks_differ"]),
                f"{100 * separate['accuracies_differ']:.2f}",
            ]
        )
    title = (
        "Seeds times densities in one program and one after the other: median "
        "seconds, compiled before; entries of the masks that differ; largest difference in "
        "accuracy, in points"
    )
    headings = ["network", "networks", "together", "alone", "masks differ", "accuracy"]
    return [Table(title, headings, body)]


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """The mean over seeds against compression, the range, and every network as a point."""
    for config, networks, _ in _by_run(rows):
        grid = config["compressions"]
        with style.settings():
            figure = Figure((5.6, 3.7), layout="constrained")
            axes = figure.subplots()
            for criterion, own in _of_criteria(networks).items():
                found = np.array([_at(own, c) for c in grid])
                mark = style.mark(criterion)
                color = mark["color"]
                low, high = found.min(axis=1), found.max(axis=1)
                axes.fill_between(grid, low, high, color=color, alpha=0.18, lw=0)
                for seed in found.T:
                    axes.plot(grid, seed, ".", color=color, ms=3.5, alpha=0.6)
                axes.plot(grid, found.mean(axis=1), **mark)
            if len(_of_criteria(networks)) > 1:
                axes.legend()
            style.compressions(axes)
            axes.set_ylabel(f"accuracy on {config['dataset']} (%)")
            axes.set_title(
                f"{len(config['seeds'])} seeds times {len(grid)} densities of "
                f"{config['network']}, one program"
            )
            figure.savefig(path, dpi=160)
