"""`synflow prune`: a network in, its masks out."""

import dataclasses
import math
import pathlib
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import tyro
from jaxtyping import Array, Key, PyTree

from synflow_jax import criteria
from synflow_jax.analysis.effective import unreached
from synflow_jax.cli.errors import CommandError, printable, say
from synflow_jax.cli.tables import as_json, print_json, print_table
from synflow_jax.cli.targets import Network, key_of, load
from synflow_jax.mask_files import save_masks
from synflow_jax.masks import apply_masks
from synflow_jax.pruning.allocations import balanced, erk, uniform
from synflow_jax.pruning.certified_rounds import certified
from synflow_jax.pruning.loop import prune
from synflow_jax.pruning.rounds import PruneInfo
from synflow_jax.pruning.schedules import exponential, linear
from synflow_jax.transform.network_flow import log_flow, ones
from synflow_jax.transform.values import Fixed
from synflow_jax.trees import (
    Masks,
    Prunable,
    ScoreFn,
    is_kernel,
    leaf_names,
    matching,
    names_leaf,
)
from synflow_jax.xla.jaxprs import FlowError

_ALLOCATIONS = {"uniform": uniform, "erk": erk, "balanced": balanced}

# Inputs that ntk_sap draws.
_NOISE = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune a network at initialisation and write its masks."""

    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """Built-in network, or package.module:function."""
    density: float
    """Fraction of the prunable weights to keep, in (0, 1]; 0.01 is a compression of 100."""
    out: pathlib.Path
    """The masks file to write (safetensors)."""
    criterion: Literal["synflow", "synflow_l2", "ntk_sap", "magnitude", "random"] = (
        "synflow"
    )
    """How weights are ranked; those criteria that need no data (ntk_sap draws noise)."""
    rounds: int = 100
    """Rounds of scoring and selecting; `certified` finds their number itself."""
    schedule: Literal["exponential", "linear", "certified"] = "exponential"
    """How the density falls; certified: as far in each round as cannot cut the network."""
    max_ratio: float = 0.5
    """With `certified`: the largest share of the flow that a round removes."""
    scope: Literal["global", "layer"] = "global"
    """One ranking over the network, or one for each layer."""
    allocation: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME|PATTERN=DENSITY")
    ] = ()
    """How many weights layers keep: uniform, erk or balanced; or densities of single leaves
    ('head/*=0.5'), the others sharing the rest."""
    prunable: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN")] = ()
    """Leaves to prune, by patterns of their names ('*/w'); default, those named kernel or
    weight."""
    without: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN")] = ()
    """Leaves not to prune, by patterns of their names."""
    seed: int = 0
    """Seed of a built-in network's initial weights, and of random and ntk_sap."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


class _Pruned(NamedTuple):
    """Masks, reports, log10 of R before and after (None: there is no flow), and names of
    leaves that no flow reaches."""

    masks: Masks
    info: PruneInfo
    before: float | None
    after: float | None
    without_flow: list[str]


def prune_target(options: Options) -> None:
    """Prunes, writes the masks, and prints what they keep.

    Raises:
      CommandError: if the user can mend it.
    """
    _check(options)
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        loading = progress.add_task(f"loading {options.target}", total=None)
        network = load(options.target, options.seed)
        progress.remove_task(loading)
        rounds = None if options.schedule == "certified" else options.rounds
        pruning = progress.add_task(
            f"compiling, then {rounds or 'certified'} rounds", total=rounds
        )
        try:
            _check_patterns(options, network[1])
            pruned = _pruned(
                options, network, lambda info: progress.update(pruning, advance=1)
            )
        except CommandError:
            raise
        except Exception as error:  # the user's model may raise anything
            raise CommandError(
                f"{options.target} cannot be pruned: {type(error).__name__}: {error}"
            ) from error
    if pruned.without_flow:
        say(
            "warning: no flow reaches the output through "
            f"{', '.join(pruned.without_flow)}: the network does not use these weights, or "
            "parameters that are zero block every path"
        )
    try:
        save_masks(options.out, pruned.masks)
    except (OSError, ValueError) as error:
        raise CommandError(f"--out: {error}.") from error
    if options.json:
        print_json(_described(options, pruned))
        return
    print_table(pruned.masks)
    before, after = map(_shown, (pruned.before, pruned.after))
    print(f"log10 R, the total flow: {before} before, {after} after")
    print(printable(f"masks written to {options.out}"))


def _check(options: Options) -> None:
    if not 0 < options.density <= 1:
        raise CommandError(
            "--density is the fraction of weights to keep, in (0, 1]; got "
            f"{options.density}."
        )
    if options.rounds < 1:
        raise CommandError(f"--rounds is at least 1; got {options.rounds}.")
    if options.out.is_dir():
        raise CommandError(f"--out: {options.out} is a folder; name a file in it.")
    if not options.out.absolute().parent.is_dir():
        raise CommandError(f"--out: there is no folder {options.out.absolute().parent}.")
    if options.schedule == "certified":
        if not 0 < options.max_ratio < 1:
            raise CommandError(f"--max-ratio is between 0 and 1; got {options.max_ratio}.")
        if options.criterion not in ("synflow", "synflow_l2"):
            raise CommandError(
                "--schedule certified is for synflow and synflow_l2, not "
                f"{options.criterion}."
            )
        if options.scope != "global" or options.allocation:
            raise CommandError(
                "--schedule certified ranks all weights together: without --scope layer "
                "and --allocation."
            )
    if options.allocation and options.scope == "layer":
        raise CommandError("--scope layer is an allocation already: without --allocation.")
    _allocation(options)


def _allocation(options: Options) -> Any:
    """The function, or the densities by pattern, that --allocation names."""
    given = options.allocation
    if not given:
        return None
    if len(given) == 1 and given[0] in _ALLOCATIONS:
        return _ALLOCATIONS[given[0]]
    densities = {}
    for one in given:
        pattern, equals, density = one.rpartition("=")
        try:
            densities[pattern] = float(density)
        except ValueError:
            equals = ""
        if not equals or not pattern or not 0 < densities[pattern] <= 1:
            raise CommandError(
                f"--allocation is one of {', '.join(_ALLOCATIONS)}, or PATTERN=DENSITY "
                f"with densities in (0, 1], such as 'head/*=0.5'; got {one!r}."
            )
    return densities


def _check_patterns(options: Options, params: PyTree) -> None:
    """Raises with the options of the shell, and not of Python, if nothing is chosen."""
    names = leaf_names(params)
    for option in ("prunable", "without"):
        for pattern in getattr(options, option):
            if not any(names_leaf(pattern, name) for name in names):
                raise CommandError(
                    f"--{option}: the pattern {pattern!r} matches no leaf; the leaves are "
                    f"{', '.join(names) or '(none)'}."
                )
    chosen = _prunable(options)
    leaves = jax.tree.leaves(params)
    if not any(chosen(name, leaf) for name, leaf in zip(names, leaves)):
        raise CommandError(
            f"no leaf of {options.target} is prunable. The default are floating leaves of "
            "two or more dimensions named kernel or weight; choose others by their names, "
            "such as --prunable '*/w'. The leaves are "
            f"{', '.join(names) or '(none)'}."
        )


def _prunable(options: Options) -> Prunable:
    if not options.prunable and not options.without:
        return is_kernel
    return matching(*options.prunable, without=options.without)


def _criterion(options: Options, network: Network) -> ScoreFn:
    apply_fn, _, input_shape = network
    if options.criterion == "random":
        return criteria.random(key_of(options.seed))
    if options.criterion == "magnitude":
        return criteria.magnitude()
    if options.criterion == "ntk_sap":
        noise, directions = jax.random.split(key_of(options.seed))
        return criteria.ntk_sap(apply_fn, _noise(input_shape, noise), directions)
    make = {"synflow": criteria.synflow, "synflow_l2": criteria.synflow_l2}
    return make[options.criterion](apply_fn, input_shape)


def _noise(input_shape: PyTree, key: Key[Array, ""]) -> PyTree:
    """One batch of normal noise, for ntk_sap: of ``_NOISE`` inputs, or of one input if it
    is described with its batch axis."""

    def drawn(one, key):
        if isinstance(one, Fixed):
            return one.value[None]
        if not jnp.issubdtype(one.dtype, jnp.floating):
            raise CommandError(
                "--criterion ntk_sap draws noise, so the inputs must be floats; got "
                f"{one.dtype}."
            )
        shape = one.shape if described else (_NOISE, *one.shape[1:])
        return jax.random.normal(key, (1, *shape), one.dtype)

    inputs = ones(input_shape)
    leaves, tree = jax.tree.flatten(inputs, is_leaf=lambda x: isinstance(x, Fixed))
    described = not isinstance(inputs, jax.Array)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [*map(drawn, leaves, keys)])


def _pruned(
    options: Options, network: Network, on_round: Callable[[PruneInfo], None]
) -> _Pruned:
    apply_fn, params, input_shape = network
    schedules = {"exponential": exponential, "linear": linear}
    flow_of = _flow_of(apply_fn, input_shape)
    whole = jax.tree.map(lambda leaf: np.ones(np.shape(leaf), bool), params)
    # The flow is compiled while the rounds are traced. What is said there is caught too:
    # all threads have the same filters of warnings, so none may outlast the other's.
    with (
        warnings.catch_warnings(record=True) as said,
        futures.ThreadPoolExecutor(1) as beside,
    ):
        warnings.simplefilter("always")
        # Said by the command, of any criterion.
        warnings.filterwarnings("ignore", "all scores of .* leaves are 0")
        before = beside.submit(flow_of, params, whole)
        masks, info = prune(
            _criterion(options, network),
            params,
            options.density,
            rounds=options.rounds,
            schedule=schedules.get(options.schedule) or certified(options.max_ratio),
            scope=options.scope,
            allocation=_allocation(options),
            prunable=_prunable(options),
            on_round=on_round,
        )
    after = flow_of(params, masks)
    for text in dict.fromkeys(str(w.message) for w in said if w.category is UserWarning):
        say(f"warning: {text}")
    # Scores of synflow have shown already whether flow reaches every leaf.
    of_flow = options.criterion.startswith("synflow")
    is_reached = of_flow and not np.asarray(info.unreached)[0]
    without_flow = [] if is_reached else _unreached(network, _prunable(options))
    return _Pruned(masks, info, before.result(), after, without_flow)


def _flow_of(
    apply_fn: Callable[..., PyTree], input_shape: PyTree
) -> Callable[[PyTree, PyTree], float | None]:
    """Computes log10 of R; None without a flow: other criteria than synflow need none."""

    @jax.jit
    def compiled(params, masks):
        return log_flow(apply_fn, apply_masks(params, masks), input_shape)

    def flow_of(params, masks):
        try:
            return float(compiled(params, masks)) / math.log(10)
        except FlowError:
            return None

    return flow_of


def _unreached(network: Network, prunable: Prunable) -> list[str]:
    """Calls `unreached`; without a flow, which other criteria do not need, no names."""
    try:
        return unreached(*network, prunable=prunable)
    except FlowError:
        return []


def _shown(log10: float | None) -> str:
    if log10 is None:
        return "unknown"
    return "no path is left" if log10 == -math.inf else f"{log10:.2f}"


def _described(options: Options, pruned: _Pruned) -> dict[str, Any]:
    """What --json prints. Numbers that are not finite are null there."""

    def finite(x):
        return x if x is not None and math.isfinite(x) else None

    return {
        "target": options.target,
        "criterion": options.criterion,
        "density": options.density,
        "seed": options.seed,
        "rounds": len(pruned.info.kept),
        "certified": bool(pruned.info.certificate),
        "connected": None if pruned.after is None else pruned.after > -math.inf,
        "log10_flow": [finite(pruned.before), finite(pruned.after)],
        "masks": str(options.out),
        "without_flow": pruned.without_flow,
        **as_json(pruned.masks),
    }
