"""Caches compiled programs on disk."""

import os

import jax


def keep_programs() -> None:
    """Caches compiled programs on disk, so that later processes need not compile them.

    The cache is in ``~/.cache/synflow_jax``, unless JAX_COMPILATION_CACHE_DIR names another
    directory. JAX_ENABLE_COMPILATION_CACHE=0 turns it off. Programs that compile in less
    than a second are kept too, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says how
    long one must take.
    """
    directory = os.path.expanduser("~/.cache/synflow_jax")
    has_home = not directory.startswith("~")  # expanduser leaves "~" if there is no home
    if has_home and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", directory)
    least = "jax_persistent_cache_min_compile_time_secs"
    if least.upper() not in os.environ:
        jax.config.update(least, 0.0)
