"""Criteria: functions ``(params, masks) -> scores`` that say which weights to keep."""

from synflow_jax.criteria.baselines import magnitude as magnitude
from synflow_jax.criteria.baselines import random as random
from synflow_jax.criteria.controls import inverted as inverted
from synflow_jax.criteria.controls import on_input as on_input
from synflow_jax.criteria.controls import reinitialised as reinitialised
from synflow_jax.criteria.controls import rescaled as rescaled
from synflow_jax.criteria.controls import shuffled as shuffled
from synflow_jax.criteria.controls import synflow_as_written as synflow_as_written
from synflow_jax.criteria.saliency import fisher as fisher
from synflow_jax.criteria.saliency import gradient_norm as gradient_norm
from synflow_jax.criteria.saliency import grasp as grasp
from synflow_jax.criteria.saliency import ntk_sap as ntk_sap
from synflow_jax.criteria.saliency import snip as snip
from synflow_jax.criteria.synaptic_flow import synflow as synflow
from synflow_jax.criteria.synaptic_flow import synflow_l2 as synflow_l2
