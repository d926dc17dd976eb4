"""synflow_jax: pruning as pure functions over parameter pytrees."""

from synflow_jax.analysis import collapsed as collapsed
from synflow_jax.analysis import summarize as summarize
from synflow_jax.flow import FlowError as FlowError
from synflow_jax.flow import flow as flow
from synflow_jax.flow import log_flow as log_flow
from synflow_jax.interop import from_linen as from_linen
from synflow_jax.masks import all_kept as all_kept
from synflow_jax.masks import apply_masks as apply_masks
from synflow_jax.masks import count as count
from synflow_jax.masks import load_masks as load_masks
from synflow_jax.masks import save_masks as save_masks
from synflow_jax.optim import freeze_pruned as freeze_pruned
from synflow_jax.pruning import Pruner as Pruner
from synflow_jax.pruning import counts_per_round as counts_per_round
from synflow_jax.pruning import iterative as iterative
from synflow_jax.pruning import prune as prune
from synflow_jax.schedules import exponential as exponential
from synflow_jax.schedules import linear as linear
from synflow_jax.schedules import num_kept as num_kept
from synflow_jax.scores import magnitude as magnitude
from synflow_jax.scores import random as random
from synflow_jax.scores import synflow as synflow
from synflow_jax.selection import keep_top as keep_top
from synflow_jax.selection import keep_top_per_layer as keep_top_per_layer
from synflow_jax.trees import is_kernel as is_kernel
from synflow_jax.trees import leaf_names as leaf_names
