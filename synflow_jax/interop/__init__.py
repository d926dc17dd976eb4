"""Converts modules of JAX libraries to the plain pair (apply_fn, params), and back.

Everything else in this package is written for functions of a pytree of arrays, so a library
whose models are such functions needs no adapter. Haiku is one of them:

Example:
  >>> import jax, jax.numpy as jnp
  >>> import synflow_jax as sj
  >>> def apply(params, rng, x):  # what hk.transform(forward).apply looks like
  ...     return x @ params["linear"]["w"]
  >>> params = {"linear": {"w": jnp.ones((4, 3))}}
  >>> score = sj.synflow(lambda params, x: apply(params, None, x), input_shape=(4,))
  >>> is_w = lambda path, leaf: path.endswith("/w")  # Haiku's name for a kernel
  >>> masks, info = sj.prune(score, params, 0.5, prunable=is_w)
  >>> int(masks["linear"]["w"].sum())
  6
"""

from synflow_jax.interop.equinox import from_equinox as from_equinox
from synflow_jax.interop.equinox import to_equinox as to_equinox
from synflow_jax.interop.linen import from_linen as from_linen
from synflow_jax.interop.linen import to_linen as to_linen
from synflow_jax.interop.nnx import from_nnx as from_nnx
from synflow_jax.interop.nnx import to_nnx as to_nnx
