"""Runs that count, for tests of sweeps and of their command."""

import dataclasses

from experiments.harness import sweeps


@dataclasses.dataclass(frozen=True)
class Counting:
    """A run that counts to ``upto``."""

    name: str
    upto: int = 2
    sizes: tuple[int, ...] = (1, 2)


class Counter:
    """Executes such runs, remembers which, and stops where it is told to."""

    def __init__(self, stop=None, error=RuntimeError):
        self.done, self.stop, self.error = [], stop, error

    def __call__(self, run, context):
        self.done.append(run.name)
        for number in range(run.upto):
            if (run.name, number) == self.stop:
                raise self.error("stopped")
            context.advance((number + 1) / run.upto)
            yield {"kind": "count", "epoch": number, "half": number / 2, "whole": number}


TODO = [Counting("one"), Counting("two", 3), Counting("three", 1)]


def perform(folder, todo=TODO, execute=None, known=(), **more):
    execute = execute or Counter()
    rows = list(
        sweeps.perform(
            todo, execute, folder, experiment="count", command="do it", known=known, **more
        )
    )
    return execute.done, rows


def counts(rows):
    return [[row["whole"] for row in own if row["kind"] == "count"] for own in rows]
