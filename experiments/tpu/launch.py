"""Runs a module as one of the processes that work together, or alone.

  python -m experiments.tpu.launch experiments.demo --out results/demo

Does what `python -m experiments.demo --out results/demo` does, and before it, where there
are several processes, `jax.distributed.initialize()`, which finds the others by itself: on
the hosts of a TPU that run.sh started, and in a step of SLURM with more than one task.

Then, before the first line of the module, every process sees the devices of all in
`jax.devices()` and its own number in `jax.process_index()`. Only process 0 prints to
standard output; errors of each still reach its standard error. When the module fails in one
process, that process ends at once with the status, which ends the others soon after.

It does not divide the work, and it keeps no process from writing files: a module does so
where `jax.process_index()` is 0, or into a folder for each process. The hosts of a TPU have
disks of their own, so there what the others write does no harm; nodes of a SLURM cluster
mostly share theirs. A module that goes on where it stopped must let process 0 say where.
"""

import argparse
import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Mapping


def joins(environ: Mapping[str, str]) -> bool:
    """Whether this process is one of several, or run.sh says that it may be.

    Args:
      environ: the environment. ``SYNFLOW_DISTRIBUTED`` decides where it is set: 1 to join,
        which on a TPU of one host is harmless, and 0 to stay alone. Else SLURM does.
    """
    if "SYNFLOW_DISTRIBUTED" in environ:
        return environ["SYNFLOW_DISTRIBUTED"] != "0"
    # The last two are set inside srun only, without which there is nobody to join.
    in_step = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= set(environ)
    return in_step and int(environ.get("SLURM_NTASKS", "1")) > 1


def main(argv: list[str] | None = None) -> None:
    """Runs the module that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tpu.launch",
        description="Joins the processes of a TPU or a SLURM step, and runs a module.",
    )
    parser.add_argument("module", help="as python -m takes it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the module")
    options = parser.parse_args(argv)
    # Before joining, as a name that is wrong would otherwise keep the others waiting.
    if not _exists(options.module):
        parser.error(f"there is no module {options.module!r}")

    joined = joins(os.environ)
    if joined:
        import jax  # not needed alone, and slow to import

        jax.distributed.initialize()
        if jax.process_index() != 0:
            sys.stdout = open(os.devnull, "w")
    sys.argv = [options.module, *options.arguments]
    try:
        runpy.run_module(options.module, run_name="__main__", alter_sys=True)
    except BaseException as error:
        if not joined or (isinstance(error, SystemExit) and error.code in (None, 0)):
            raise
        _leave(error)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of a package on the way to it
        return False


def _leave(error: BaseException) -> None:
    """Ends without the goodbye of jax.distributed, which waits for the other processes."""
    status = 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    elif isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
