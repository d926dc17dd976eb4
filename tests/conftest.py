"""Settings of every test: strict types, annotations checked, reproducible examples."""

import ctypes
import gc
import os
import pathlib

import hypothesis
import jax
import jaxtyping
import pytest

# Processes that tests start keep nothing on disk.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Shapes and dtypes in annotations are checked at call time, in tests only. This must come
# before the package is imported.
jaxtyping.install_import_hook("synflow_jax", "beartype.beartype")

# The same examples on every machine by default; HYPOTHESIS_PROFILE=search for a hunt.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, max_examples=30, database=None
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # Their lowest versions use names that JAX 0.8 deprecates.
    libraries = r"ignore::DeprecationWarning:(flax|equinox)\."
    config.addinivalue_line("filterwarnings", libraries)
    # The lowest beartype minds how chex writes the types of optax.
    config.addinivalue_line("filterwarnings", "ignore:.* deprecated by PEP 585")
    _share_compiled_programs(config)


def _share_compiled_programs(config):
    """What one file compiled the others load, and the next run too: most of the time of the
    tests is compiling. It grows by what changes; `pytest --cache-clear` forgets it."""
    for option, value in {
        "jax_enable_compilation_cache": True,  # workers start where it is off
        "jax_compilation_cache_dir": str(config.cache.mkdir("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(option, value)
    # Of a program that another process is just writing, or one that was killed did not
    # write to its end; it is compiled instead.
    unfinished = r"ignore:Error (reading|writing) persistent compilation cache"
    config.addinivalue_line("filterwarnings", unfinished)


def pytest_ignore_collect(collection_path):
    """Tests in double precision run in a process of their own: JAX_ENABLE_X64=1."""
    return True if "x64" in collection_path.parts and not jax.config.x64_enabled else None


def pytest_collection_modifyitems(items):
    """Tests of one reference network run in one worker (``--dist loadgroup``), which traces
    the network once."""
    for item in items:
        if item.path.name == "test_parity.py":
            named = item.callspec.params if hasattr(item, "callspec") else {}
            case = named.get("case", item.originalname)
            item.add_marker(pytest.mark.xdist_group(str(case)))


# Bytes from which a process forgets its programs before its file of tests ends.
_MUCH = 1_200_000_000


def _forget_programs():
    """Frees compiled programs, and gives the memory back to the system at once."""
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _resident_bytes():
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def _programs_end_with_their_file():
    """A process that keeps the programs of all files needs gigabytes, and XLA crashes at
    last: each program takes some of the memory mappings that a process may have."""
    yield
    _forget_programs()


def pytest_runtest_teardown():
    if _resident_bytes() > _MUCH:
        _forget_programs()


@pytest.fixture
def standard_promotion():
    """For what mixes dtypes: Flax's average pooling and batch norm, Optax's updates."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def no_typecheck():
    """Lets a bad argument through to the package's own checks, as users see it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
