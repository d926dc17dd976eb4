"""Training with masks: optax transformations, and pruning with rewinding."""

from synflow_jax.training.dynamic import dynamic_sparsity as dynamic_sparsity
from synflow_jax.training.dynamic import grow_at_random as grow_at_random
from synflow_jax.training.dynamic import grow_by_gradient as grow_by_gradient
from synflow_jax.training.gradient_criteria import gradient_criterion as gradient_criterion
from synflow_jax.training.gradient_criteria import (
    weight_times_gradient as weight_times_gradient,
)
from synflow_jax.training.gradual import gradual_pruning as gradual_pruning
from synflow_jax.training.opt_state import mask_train_state as mask_train_state
from synflow_jax.training.opt_state import masks_of as masks_of
from synflow_jax.training.opt_state import replace_masks as replace_masks
from synflow_jax.training.opt_state import replace_schedule as replace_schedule
from synflow_jax.training.optim import freeze_pruned as freeze_pruned
from synflow_jax.training.optim import static_pruning as static_pruning
from synflow_jax.training.rewinding import RewindState as RewindState
from synflow_jax.training.rewinding import train_and_prune as train_and_prune
