"""What a model of another library is made into, and helpers to make it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import synflow_jax as sj
from synflow_jax.trees import Prunable, is_floating

DENSITIES = (0.1, 0.01)
ROUNDS = 10
SECONDS = 600  # of CPU time, that a model may take
BYTES = 8_000_000_000  # of memory


class Case(NamedTuple):
    """A model as functions of this library take it.

    Attributes:
      apply_fn: ``apply_fn(params, x) -> y``, in evaluation mode.
      params: the parameters as the model's library initialises them.
      input_shape: as in `synflow_jax.synflow`.
      prunable: as in `synflow_jax.prune`.
      high: integers of the input are below it.
    """

    apply_fn: Callable[..., Any]
    params: Any
    input_shape: Any
    prunable: Prunable = sj.is_kernel
    high: int = 2

    def example(self) -> Any:
        """Random inputs, one batch; constants as they are."""
        rng = np.random.default_rng(0)
        shape = self.input_shape
        if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
            shape = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

        def value(x):
            if not isinstance(x, jax.ShapeDtypeStruct):
                return x
            if is_floating(x):
                return jnp.asarray(rng.normal(size=x.shape), x.dtype)
            return jnp.asarray(rng.integers(self.high, size=x.shape), x.dtype)

        return jax.tree.map(value, shape)


def matrices(name: str, leaf: Any) -> bool:
    """Selects floating leaves of two or more dimensions, but not biases."""
    return len(leaf.shape) >= 2 and is_floating(leaf) and not name.endswith("bias")


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    """Integers of an input, such as tokens."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
