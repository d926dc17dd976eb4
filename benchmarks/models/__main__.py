"""Goes through all models of other libraries, each in the environment of its library.

    python -m benchmarks.models            # what results/models.json lacks; then the page
    python -m benchmarks.models BERT DiT   # these again
    python -m benchmarks.models --page     # only docs/models.md, of what was measured

Needs the package index, and about an hour. An environment is made once, in .venv-models; a
model has ten minutes of CPU time. After each model its row is in results/models.json, so a
run that was interrupted goes on where it stopped.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import venv

from benchmarks.models import page
from benchmarks.models.cases import SECONDS
from benchmarks.models.listed import ENVIRONMENTS, pairs

ROOT = pathlib.Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "results/models.json", ROOT / "docs/models.md"


def python_of(environment: str) -> pathlib.Path:
    """The interpreter of an environment, made if its requirements are not installed."""
    folder = ROOT / ".venv-models" / environment
    python, done = folder / "bin/python", folder / "installed.txt"
    wanted = "\n".join(ENVIRONMENTS[environment].REQUIREMENTS)
    if not done.exists() or done.read_text() != wanted:
        print(f"making the environment {environment}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "-e", ".[equinox]"]
        command = [*install, *ENVIRONMENTS[environment].REQUIREMENTS]
        subprocess.run(command, cwd=ROOT, check=True)
        flags = [ROOT / ".ci/fast_flags", python]
        found = subprocess.run(flags, capture_output=True, text=True, check=True)
        (folder / "flags.txt").write_text(found.stdout)
        done.write_text(wanted)
    return python


def run(environment: str, name: str) -> dict:
    """The row of a model, from a process of its own."""
    python = python_of(environment)
    # What is not timed is compiled fast.
    flags = (python.parents[1] / "flags.txt").read_text().strip()
    command = [python, "-m", "benchmarks.models.one", environment, name]
    row = {"environment": environment, "model": name, "status": "failed"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
    )
    if done.returncode == -signal.SIGXCPU:
        return row | {"reason": f"it took more than {SECONDS} seconds."}
    if done.returncode:
        errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", done.stderr, re.MULTILINE)
        reason = errors[-1] if errors else f"it ended with {done.returncode}."
        return row | {"reason": re.sub(r"/\S*?/site-packages/", "", reason)}
    return json.loads(done.stdout.splitlines()[-1])


def read() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def write(rows: list[dict]) -> None:
    """All rows, in the order of the list; a model that left the list leaves the file."""
    named = {(row["environment"], row["model"]): row for row in rows}
    ordered = [named[pair] for pair in pairs() if pair in named]
    lines = ",\n".join(map(json.dumps, ordered))
    new = RESULTS.with_suffix(".new")
    new.write_text(f"[\n{lines}\n]\n")
    new.replace(RESULTS)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="models to run again")
    parser.add_argument("--page", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - {name for _, name in pairs()}:
        parser.error(f"no model is called {', '.join(sorted(unknown))}.")
    have = {
        (row["environment"], row["model"]) for row in read() if row["status"] != "failed"
    }
    for environment, name in [] if args.page else pairs():
        if name in args.names if args.names else (environment, name) not in have:
            print(f"{environment}: {name} ...", end=" ", flush=True)
            row = run(environment, name)
            print(row["status"], row.get("reason") or f"{row['seconds']} s", flush=True)
            write([*read(), row])
    PAGE.write_text(page.of(read()))


if __name__ == "__main__":
    sys.exit(main())
