"""TARGET: a built-in network, or a function of the user's."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from synflow_jax.cli.errors import CommandError
from synflow_jax.models import NETWORKS, build

# (apply_fn, params, input_shape)
Network = tuple[Callable[..., PyTree], PyTree, PyTree]


def load(target: str, seed: int) -> Network:
    """Builds the network that TARGET names.

    Raises:
      CommandError: if there is none, or the user's function raises or returns something
        else.
    """
    if ":" not in target:
        if target not in NETWORKS:
            raise CommandError(
                f"there is no network {target!r}: give package.module:function or one of "
                f"{', '.join(sorted(NETWORKS))}."
            )
        return build(target, key_of(seed))
    module_name, _, function_name = target.partition(":")
    sys.path.insert(0, os.getcwd())  # finds the user's module, as `python -m` does
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise CommandError(f"{target}: {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple | list) or len(made) != 3 or not callable(made[0]):
        of = f" of {len(made)}" if isinstance(made, tuple | list) else ""
        raise CommandError(
            f"{target} must return (apply_fn, params, input_shape), a function, its "
            "parameters, and the shape of one example without the batch axis; it returned "
            f"{type(made).__name__}{of}."
        )
    return made[0], made[1], made[2]


def key_of(seed: int) -> Key[Array, ""]:
    """`jax.random.key`, which compiles two programs for it; here none, where it can be."""
    is_default = jax.config.values["jax_default_prng_impl"] == "threefry2x32"
    if not is_default or not 0 <= seed < 2**31:
        return jax.random.key(seed)
    data: Any = np.array([0, seed], np.uint32)
    return jax.random.wrap_key_data(data)
