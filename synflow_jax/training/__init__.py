"""Training with masks: optax transformations, and pruning with rewinding."""

from synflow_jax.training.optim import freeze_pruned as freeze_pruned
from synflow_jax.training.optim import mask_train_state as mask_train_state
from synflow_jax.training.optim import replace_masks as replace_masks
from synflow_jax.training.rewinding import RewindState as RewindState
from synflow_jax.training.rewinding import train_and_prune as train_and_prune
