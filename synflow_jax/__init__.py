"""synflow_jax: pruning as pure functions over parameter pytrees."""

import importlib

from synflow_jax.analysis import (
    collapsed,
    connectivity,
    conservation,
    critical_compression,
    effective_masks,
    largest_compression,
    summarize,
    unreached,
)
from synflow_jax.criteria import (
    fisher,
    gradient_norm,
    grasp,
    inverted,
    magnitude,
    ntk_sap,
    on_input,
    random,
    reinitialised,
    rescaled,
    shuffled,
    snip,
    synflow,
    synflow_as_written,
    synflow_l2,
)
from synflow_jax.interop import (
    from_equinox,
    from_linen,
    from_nnx,
    to_equinox,
    to_linen,
    to_nnx,
)
from synflow_jax.mask_files import (
    load_masks,
    save_masks,
)
from synflow_jax.masks import (
    all_kept,
    apply_masks,
    count,
)
from synflow_jax.paths.fewest import (
    fewest_weights,
)
from synflow_jax.pruning import (
    PruneInfo,
    Pruner,
    PruneState,
    balanced,
    certified,
    counts_per_round,
    cubic,
    densities_of,
    erk,
    exponential,
    iterative,
    linear,
    lower_prune,
    num_kept,
    prune,
    uniform,
)
from synflow_jax.selection.groups import keep_top_per_layer
from synflow_jax.selection.structured import (
    blocks,
    n_of_m,
)
from synflow_jax.selection.top_k import keep_top
from synflow_jax.training import (
    RewindState,
    dynamic_sparsity,
    freeze_pruned,
    gradient_criterion,
    gradual_pruning,
    grow_at_random,
    grow_by_gradient,
    mask_train_state,
    masks_of,
    replace_masks,
    replace_schedule,
    static_pruning,
    train_and_prune,
    weight_times_gradient,
)
from synflow_jax.transform import (
    FlowError,
    flow,
    flow_rules,
    log_flow,
)
from synflow_jax.trees import (
    filled,
    is_kernel,
    leaf_names,
    matching,
)

__version__ = "0.2.0"


def __getattr__(name: str):
    if name == "models":  # imports flax, which nothing else here needs
        return importlib.import_module("synflow_jax.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    # Score functions: (params, masks) -> scores; higher means keep
    "synflow",
    "synflow_l2",
    "magnitude",
    "random",
    "snip",
    "grasp",
    "fisher",
    "gradient_norm",
    "ntk_sap",
    # Controls of an ablation
    "inverted",
    "on_input",
    "reinitialised",
    "rescaled",
    "shuffled",
    "synflow_as_written",
    # Pruning in rounds
    "prune",
    "lower_prune",
    "iterative",
    "Pruner",
    "PruneState",
    "PruneInfo",
    "counts_per_round",
    "exponential",
    "linear",
    "cubic",
    "certified",
    "num_kept",
    "uniform",
    "erk",
    "balanced",
    "densities_of",
    # Masks and parameters
    "all_kept",
    "apply_masks",
    "count",
    "save_masks",
    "load_masks",
    "is_kernel",
    "matching",
    "leaf_names",
    "filled",
    "keep_top",
    "keep_top_per_layer",
    "n_of_m",
    "blocks",
    # Training under masks
    "static_pruning",
    "freeze_pruned",
    "gradual_pruning",
    "gradient_criterion",
    "weight_times_gradient",
    "dynamic_sparsity",
    "grow_by_gradient",
    "grow_at_random",
    "masks_of",
    "replace_masks",
    "replace_schedule",
    "mask_train_state",
    "train_and_prune",
    "RewindState",
    # The flow of a network
    "flow",
    "log_flow",
    "flow_rules",
    "FlowError",
    # What masks leave of a network
    "summarize",
    "collapsed",
    "effective_masks",
    "unreached",
    "connectivity",
    "fewest_weights",
    "largest_compression",
    "critical_compression",
    "conservation",
    # Models of other libraries
    "from_linen",
    "to_linen",
    "from_nnx",
    "to_nnx",
    "from_equinox",
    "to_equinox",
]
