"""Compiled programs on disk, for the next process."""

import os

import jax


def keep_programs() -> None:
    """Keeps compiled programs on disk, so that the next process need not compile them.

    In ``~/.cache/synflow_jax``, unless JAX was told a place (JAX_COMPILATION_CACHE_DIR) or
    not to (JAX_ENABLE_COMPILATION_CACHE=0).
    """
    place = os.path.expanduser("~/.cache/synflow_jax")
    found = not place.startswith("~")  # a home for whoever runs this
    if found and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", place)
