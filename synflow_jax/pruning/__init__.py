"""The pruning loop: schedules, allocations, one round, and all rounds compiled once."""

from synflow_jax.pruning.allocations import balanced as balanced
from synflow_jax.pruning.allocations import densities_of as densities_of
from synflow_jax.pruning.allocations import erk as erk
from synflow_jax.pruning.allocations import uniform as uniform
from synflow_jax.pruning.certified_rounds import certified as certified
from synflow_jax.pruning.counts import counts_per_round as counts_per_round
from synflow_jax.pruning.loop import Pruner as Pruner
from synflow_jax.pruning.loop import PruneState as PruneState
from synflow_jax.pruning.loop import iterative as iterative
from synflow_jax.pruning.loop import prune as prune
from synflow_jax.pruning.lowering import lower_prune as lower_prune
from synflow_jax.pruning.rounds import PruneInfo as PruneInfo
from synflow_jax.pruning.schedules import cubic as cubic
from synflow_jax.pruning.schedules import exponential as exponential
from synflow_jax.pruning.schedules import linear as linear
from synflow_jax.pruning.schedules import num_kept as num_kept
