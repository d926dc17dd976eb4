"""The command line: its options, and what each subcommand does."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

import synflow_jax
from synflow_jax.cli.errors import CommandError, say
from synflow_jax.cli.pruning import Options, prune_target
from synflow_jax.cli.tables import (
    as_json,
    compared,
    print_compared,
    print_json,
    print_table,
)
from synflow_jax.mask_files import load_masks
from synflow_jax.models import NETWORKS
from synflow_jax.trees import Masks
from synflow_jax.xla.program_cache import keep_programs

_TARGETS = (
    "TARGET is package.module:function, a function without arguments that returns "
    "(apply_fn, params, input_shape), imported from the current folder first; or a "
    f"built-in network: {', '.join(sorted(NETWORKS))}."
)

File = Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="FILE")]


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print how many weights of each layer a masks file keeps."""

    masks: File
    """A file written by `synflow prune` or by save_masks."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Print how many weights of each layer two masks files keep, and how many both keep.

    The overlap is the share of the weights kept by either file that both keep.
    """

    first: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="A")]
    """A file written by `synflow prune` or by save_masks."""
    second: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="B")]
    """Another, of the same network."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


Command = (
    Annotated[
        Options,
        tyro.conf.subcommand(
            "prune",
            description="Prune a network at initialisation and write its masks.\n\n"
            f"{_TARGETS}",
        ),
    ]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # Before tyro, which would ask for one of the required subcommands.
    if argv[:1] == ["--version"]:
        print(f"synflow_jax {synflow_jax.__version__}")
        return 0
    command = tyro.cli(
        Command,
        prog="synflow",
        description="Pruning at initialisation for JAX and Flax. "
        "`synflow --version` prints the version, `synflow prune --help` all options.",
        args=argv,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    keep_programs()
    try:
        if isinstance(command, Options):
            prune_target(command)
        elif isinstance(command, Inspect):
            _inspect(command)
        else:
            _compare(command)
    except CommandError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted.")
        return 130
    return 0


def _inspect(command: Inspect) -> None:
    masks = _loaded(command.masks)
    if command.json:
        print_json(as_json(masks))
    else:
        print_table(masks)


def _compare(command: Compare) -> None:
    try:
        rows = compared(_loaded(command.first), _loaded(command.second))
    except ValueError as error:
        raise CommandError(f"{command.first} and {command.second}: {error}") from error
    if command.json:
        named = [{**row._asdict(), "overlap": row.overlap} for row in rows]
        print_json({"leaves": named[:-1], "total": named[-1]})
    else:
        print_compared(rows)


def _loaded(path: pathlib.Path) -> Masks:
    try:
        return load_masks(path)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
