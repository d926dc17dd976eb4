"""What is promised of files, tried for long: kills, a full disk, damage.

    make soak    # a quarter to half an hour; prints a table, for docs/reliability.md

Processes are killed at random moments, also while they write, and started again until they
end; what they measured must be that of a process that nobody disturbed, to the bit. Files
are damaged at random; what loads must be what was written. `pytest` does all of it in a
short form, in tests/experiments/harness and tests/test_masks.py.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

import synflow_jax as sj

# --- the sweep that is disturbed ----------------------------------------------------------


def sweep(argv: list[str], epochs: int, count: int) -> None:
    """A sweep of small trainings with checkpoints, as an experiment's command line."""
    import dataclasses

    import jax

    from experiments.datasets.load import load
    from experiments.harness import command
    from experiments.training import loop, networks, steps
    from experiments.training.settings import Settings
    from synflow_jax import models

    @dataclasses.dataclass(frozen=True)
    class Run:
        seed: int

        @property
        def name(self) -> str:
            return f"soak-s{self.seed}"

    def execute(run, context):
        data = load("digits")
        module = networks.NormalisedMLP(data.num_classes, hidden=(50, 50))
        variables = models.init(module, jax.random.key(run.seed), (8, 8, 1))
        settings = Settings(epochs=epochs, batch=64, learning_rate=0.05, decay="cosine")
        plan = steps.plan(module, settings, data)
        score = sj.random(jax.random.key(run.seed))
        masks, _ = sj.prune(score, variables["params"], 0.2, rounds=1)
        state = steps.start(plan, variables, masks)
        splits = steps.on_device(plan, data)
        state, history = loop.train(
            plan, state, splits, run.seed, folder=context.folder, advance=context.advance
        )
        for epoch in history:
            yield {"kind": "epoch", **epoch._asdict()}
        total = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(state.params))
        yield {"kind": "trained", "total": total}

    runs = [Run(seed) for seed in range(count)]
    found = command.Experiment("soak", "Soaked.", lambda scale: runs, execute, {})
    command.main(found, argv)


def started(folder: pathlib.Path, epochs: int, count: int) -> subprocess.Popen:
    """The sweep, in a process of its own."""
    arguments = ["--out", folder / "out", "--runs", folder / "runs"]
    line = [sys.executable, "-m", "tests.soak", "sweep", str(epochs), str(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*line, *map(str, arguments)], **pipes)


def measured(folder: pathlib.Path) -> list[dict]:
    """What the sweep measured, without times."""
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    own = {"seconds", "ended", "command", "seal", "commit"}
    return [{k: v for k, v in json.loads(line).items() if k not in own} for line in lines]


def finished(folder: pathlib.Path, epochs: int, count: int) -> list[dict]:
    """The rows of a process that nobody disturbs."""
    process = started(folder, epochs, count)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)
    return measured(folder)


def killed(folder, epochs, count, kills, longest, draw) -> str:
    """Kills the sweep at random moments, lets it end, and compares."""
    wanted = finished(folder / "whole", epochs, count)
    done, starts = 0, 0
    own = folder / "killed"
    while done < kills:
        process = started(own, epochs, count)
        starts += 1
        try:
            process.wait(draw.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        # It ended before: its rows are as wanted, and it begins anew.
        if measured(own) != wanted:
            raise SystemExit(f"after {done} kills other rows were measured")
        own = folder / f"killed{starts}"
    if finished(own, epochs, count) != wanted:
        raise SystemExit(f"after {done} kills other rows were measured")
    parts = [p for p in own.rglob("*.part")]
    return f"{done} kills in {starts} starts, equal rows; {len(parts)} parts left behind"


# --- one at a time, a full disk, a read-only folder ---------------------------------------


def together(folder, epochs, count) -> str:
    """Two processes on one sweep: one does it, the other says who holds it."""
    one, two = started(folder, epochs, count), started(folder, epochs, count)
    outputs = [(p.communicate()[0], p.returncode) for p in (one, two)]
    refused = [text for text, code in outputs if code]
    if len(refused) != 1 or "is in use by process" not in refused[0]:
        raise SystemExit(f"two processes: {outputs}")
    if len(refused[0].strip().splitlines()) > 3:
        raise SystemExit(f"more than a line was said: {refused[0]}")
    return "one did it, the other said who holds it, in a line"


def full_disk(folder) -> str:
    """A file that cannot be written whole: the old one stays, nothing else is left."""
    path = folder / "masks"
    old = {"w": np.ones(1000, bool)}
    sj.save_masks(path, old)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        sj.save_masks(path, {"w": np.ones(100_000, bool)})
    except OSError as error:
        said = str(error)
    else:
        raise SystemExit("a disk that is full was not noticed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if list(folder.iterdir()) != [path] or not sj.load_masks(path)["w"].all():
        raise SystemExit("a full disk left something behind")
    return f"the old file stays; {said}"


def read_only(folder, epochs, count) -> str:
    """A folder that cannot be written: one line."""
    out = folder / "file"
    out.write_text("not a folder")
    line = [sys.executable, "-m", "tests.soak", "sweep", str(epochs), str(count)]
    done = subprocess.run(
        [*line, "--out", str(out), "--runs", str(folder / "runs")],
        capture_output=True,
        text=True,
    )
    said = done.stderr.strip().splitlines()
    if done.returncode == 0 or not said[-1].startswith("error: "):
        raise SystemExit(f"a folder that cannot be written: {done}")
    return said[-1].replace(str(folder), "...")


# --- damaged files ------------------------------------------------------------------------


def damaged(text: bytes, draw: random.Random) -> bytes:
    """A byte changed, lost or put in, the end or a part lost."""
    place, other = draw.randrange(len(text)), bytes([draw.randrange(256)])
    end = min(len(text), place + draw.randrange(1, 50))
    forms = (
        text[:place] + other + text[place + 1 :],
        text[:place] + text[place + 1 :],
        text[:place] + other + text[place:],
        text[:place],
        text[:place] + text[end:],
    )
    return draw.choice(forms)


def masks_damaged(folder, number, draw) -> str:
    """Masks on disk."""
    path = folder / "masks"
    source = np.random.default_rng(0)
    masks = {f"layer{i}": {"kernel": source.random((30, 20)) < 0.5} for i in range(4)}
    sj.save_masks(path, masks)
    whole, loaded = path.read_bytes(), 0
    for _ in range(number):
        path.write_bytes(damaged(whole, draw))
        try:
            found = sj.load_masks(path)
        except ValueError:
            continue
        loaded += 1
        for name, of in masks.items():
            if not np.array_equal(found[name]["kernel"], of["kernel"]):
                raise SystemExit("other masks were loaded")
    return f"{number} files, {number - loaded} refused, {loaded} loaded as written"


def runs_damaged(folder, number, draw) -> str:
    """The folder of a finished run."""
    from experiments.harness import runs, sweeps
    from tests.experiments.harness.counting import TODO, perform

    perform(folder)
    (wanted,) = sweeps.finished(TODO[1:2], folder)
    refused = again = loaded = 0
    for name in (runs.METRICS, runs.CONFIG):
        path = folder / "two" / name
        whole = path.read_bytes()
        for _ in range(number // 2):
            path.write_bytes(damaged(whole, draw))
            try:
                (found,) = sweeps.finished(TODO[1:2], folder)
            except (runs.Damaged, FileExistsError):
                refused += 1
                continue
            again += found is None
            loaded += found is not None
            if found is not None and found[1:] != wanted[1:]:
                raise SystemExit("other rows were taken for those of a run")
        path.write_bytes(whole)
    return f"{number} folders, {refused} refused, {again} to do again, {loaded} as measured"


def main() -> None:
    if sys.argv[1:2] == ["sweep"]:
        epochs, count = map(int, sys.argv[2:4])
        sweep(sys.argv[4:], epochs, count)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--short", action="store_true", help="one kill of each, few files")
    args = parser.parse_args()
    draw, few = random.Random(args.seed), args.short
    with tempfile.TemporaryDirectory() as place:
        folders = iter(pathlib.Path(place, str(i)) for i in range(100))

        def tried(what, check, *more):
            folder = next(folders)
            folder.mkdir()
            print(f"| {what} | {check(folder, *more)} |", flush=True)

        print(f"| seed {args.seed} | |\n|---|---|")
        long = (30, 1), (3, 4)  # one long training; a sweep of four
        tried("masks damaged", masks_damaged, 100 if few else 3000, draw)
        tried("runs damaged", runs_damaged, 100 if few else 3000, draw)
        tried("full disk", full_disk)
        tried("no folder to write to", read_only, *long[1])
        tried("two processes", together, *long[1])
        for what, shape, kills in zip(("training", "sweep"), long, (20, 10)):
            kills = 1 if few else kills
            tried(f"{what} killed", killed, *shape, kills, 25.0, draw)


if __name__ == "__main__":
    main()
