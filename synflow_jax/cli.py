"""The `synflow` command: prunes a network from the shell and prints masks files."""

import dataclasses
import importlib
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import rich.console
import rich.markup
import rich.progress
import rich.table
import tyro
from jaxtyping import Array, Key, PyTree

import synflow_jax
from synflow_jax import criteria
from synflow_jax.analysis.effective import unreached
from synflow_jax.analysis.summary import Row, summarize
from synflow_jax.mask_files import load_masks, save_masks
from synflow_jax.masks import apply_masks
from synflow_jax.models import NETWORKS, build
from synflow_jax.pruning.loop import prune
from synflow_jax.pruning.rounds import PruneInfo
from synflow_jax.pruning.schedules import exponential, linear
from synflow_jax.transform.network_flow import log_flow
from synflow_jax.trees import Masks, ScoreFn, names_kernel
from synflow_jax.xla.jaxprs import FlowError
from synflow_jax.xla.program_cache import keep_programs


class CommandError(Exception):
    """An error that the user can fix: one line on standard error, exit code 2."""


@dataclasses.dataclass(frozen=True)
class Prune:
    """Prune a network at initialisation and write its masks.

    TARGET is the name of a built-in network (vgg16_cifar, resnet50_imagenet, mlp, ...) or
    package.module:function, a function without arguments that returns
    (apply_fn, params, input_shape).
    """

    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """Built-in network, or package.module:function."""
    density: float
    """Fraction of the prunable weights to keep, in (0, 1]; 0.01 is a compression of 100."""
    out: pathlib.Path
    """The masks file to write (safetensors)."""
    criterion: Literal["synflow", "magnitude", "random"] = "synflow"
    """How weights are ranked."""
    rounds: int = 100
    """Rounds of scoring and selecting."""
    schedule: Literal["exponential", "linear"] = "exponential"
    """How the density falls from round to round."""
    scope: Literal["global", "layer"] = "global"
    """One ranking over the network, or one for each layer."""
    seed: int = 0
    """Seed of a built-in network's initial weights and of the random criterion."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print how many weights of each layer a masks file keeps."""

    masks: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="FILE")]
    """A file written by `synflow prune` or by save_masks."""


Command = (
    Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
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
        "`synflow --version` prints the version.",
        args=argv,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    keep_programs()
    try:
        if isinstance(command, Prune):
            _prune(command)
        else:
            _inspect(command)
    except CommandError as error:
        print(f"synflow: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _prune(command: Prune) -> None:
    if not 0 < command.density <= 1:
        raise CommandError(
            "--density is the fraction of weights to keep, in (0, 1]; got "
            f"{command.density}."
        )
    if command.rounds < 1:
        raise CommandError(f"--rounds is at least 1; got {command.rounds}.")
    if command.out.is_dir():
        raise CommandError(f"--out: {command.out} is a folder; name a file in it.")
    if not command.out.absolute().parent.is_dir():
        raise CommandError(f"--out: there is no folder {command.out.absolute().parent}.")
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        loading = progress.add_task(f"loading {command.target}", total=None)
        apply_fn, params, input_shape = _load(command.target, command.seed)
        progress.remove_task(loading)
        criterion = {
            "synflow": lambda: criteria.synflow(apply_fn, input_shape),
            "magnitude": criteria.magnitude,
            "random": lambda: criteria.random(_key(command.seed)),
        }[command.criterion]
        pruning = progress.add_task(
            f"compiling, then {command.rounds} rounds", total=command.rounds
        )
        try:
            pruned = _pruned(
                command,
                criterion(),
                (apply_fn, params, input_shape),
                lambda info: progress.update(pruning, advance=1),
            )
        except Exception as error:  # the user's model may raise anything
            raise CommandError(
                f"{command.target} cannot be pruned: {type(error).__name__}: {error}"
            ) from error
    if pruned.without_flow:
        print(
            "synflow: warning: no flow reaches the output through "
            f"{', '.join(pruned.without_flow)}: the network does not use these weights, or "
            "parameters that are zero block every path",
            file=sys.stderr,
        )
    try:
        save_masks(command.out, pruned.masks)
    except OSError as error:
        raise CommandError(f"--out: {error}.") from error
    _print_table(pruned.masks)
    print(f"log10 R, the total flow: {pruned.before} before, {pruned.after} after")
    print(f"masks written to {command.out}")


class _Pruned(NamedTuple):
    """Masks, log10 of R before and after, and names of leaves that no flow reaches."""

    masks: Masks
    before: str
    after: str
    without_flow: list[str]


def _pruned(
    command: Prune,
    criterion: ScoreFn,
    network: tuple[Callable[..., PyTree], PyTree, PyTree],
    on_round: Callable[[PruneInfo], None],
) -> _Pruned:
    apply_fn, params, input_shape = network
    flow_of = _flow_of(apply_fn, input_shape)
    whole = jax.tree.map(lambda leaf: np.ones(np.shape(leaf), bool), params)
    # The flow is compiled while the rounds are traced.
    with futures.ThreadPoolExecutor(1) as beside:
        before = beside.submit(flow_of, params, whole)
        with warnings.catch_warnings():  # said by the command, of any criterion
            warnings.filterwarnings("ignore", "all scores of .* leaves are 0")
            masks, info = prune(
                criterion,
                params,
                command.density,
                rounds=command.rounds,
                schedule={"exponential": exponential, "linear": linear}[command.schedule],
                scope=command.scope,
                on_round=on_round,
            )
        after = flow_of(params, masks)
    # Scores of synflow have shown already whether flow reaches every leaf.
    is_reached = command.criterion == "synflow" and not np.asarray(info.unreached)[0]
    without_flow = [] if is_reached else _unreached(apply_fn, params, input_shape)
    return _Pruned(masks, before.result(), after, without_flow)


def _inspect(command: Inspect) -> None:
    try:
        masks = load_masks(command.masks)
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error
    _print_table(masks)


def _flow_of(apply_fn: Callable[..., PyTree], input_shape: PyTree) -> Callable:
    """Formats log10 of R, or "unknown": criteria other than synflow need no flow."""

    @jax.jit
    def compiled(params, masks):
        return log_flow(apply_fn, apply_masks(params, masks), input_shape)

    def flow_of(params: PyTree, masks: PyTree) -> str:
        try:
            value = float(compiled(params, masks)) / math.log(10)
        except FlowError:
            return "unknown"
        return "no path is left" if value == -math.inf else f"{value:.2f}"

    return flow_of


def _unreached(
    apply_fn: Callable[..., PyTree], params: PyTree, input_shape: PyTree
) -> list[str]:
    """Calls `unreached`; without a flow, which other criteria do not need, no names."""
    try:
        return unreached(apply_fn, params, input_shape)
    except FlowError:
        return []


def _load(target: str, seed: int) -> tuple[Callable[..., PyTree], PyTree, PyTree]:
    """Builds the network that TARGET names."""
    if ":" not in target:
        if target not in NETWORKS:
            raise CommandError(
                f"there is no network {target!r}: give package.module:function or one of "
                f"{', '.join(sorted(NETWORKS))}."
            )
        return build(target, _key(seed))
    module_name, _, function_name = target.partition(":")
    sys.path.insert(0, os.getcwd())  # finds the user's module, as `python -m` does
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise CommandError(f"{target}: {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 3 or not callable(made[0]):
        raise CommandError(
            f"{target} must return (apply_fn, params, input_shape); it returned "
            f"{type(made).__name__}."
        )
    return made


def _key(seed: int) -> Key[Array, ""]:
    """`jax.random.key`, which compiles two programs for it; here none, where it can be."""
    is_default = jax.config.values["jax_default_prng_impl"] == "threefry2x32"
    if not is_default or not 0 <= seed < 2**31:
        return jax.random.key(seed)
    data: Any = np.array([0, seed], np.uint32)
    return jax.random.wrap_key_data(data)


def _print_table(masks: PyTree) -> None:
    """Prints a row for each layer: kernels, and other leaves that lost weights."""
    rows = summarize(masks, masks)
    layers = [row for row in rows if row.kept < row.size or _is_layer(row)]
    table = rich.table.Table()
    table.add_column("layer")
    for column in ("shape", "weights", "kept", "density"):
        table.add_column(column, justify="right")
    for row in layers:
        _add_row(table, row, style="bold red" if row.size and not row.kept else None)
    size, kept = sum(r.size for r in layers), sum(r.kept for r in layers)
    table.add_section()
    _add_row(
        table, Row("total", (), size, kept, kept / size if size else 1.0), style="bold"
    )
    console = rich.console.Console()
    if not console.is_terminal:  # a pipe or a file: wide enough to cut nothing off
        console = rich.console.Console(width=200)
    console.print(table)
    whole = len(rows) - len(layers)
    empty = [row.name for row in layers if row.size and not row.kept]
    print(f"{whole} other leaves are whole; {len(empty)} layers are empty", end="")
    print(f": {', '.join(empty)}" if empty else "")


def _is_layer(row: Row) -> bool:
    return names_kernel(row.name) and len(row.shape) >= 2


def _add_row(table: rich.table.Table, row: Row, style: str | None) -> None:
    shape = "x".join(map(str, row.shape))
    numbers = (f"{row.size:,}", f"{row.kept:,}", f"{row.density:.3g}")
    table.add_row(rich.markup.escape(row.name), shape, *numbers, style=style)


if __name__ == "__main__":
    sys.exit(main())
