"""Which models there are, by environment. Importing this imports none of their packages."""

from benchmarks.models import (
    equimo_models,
    equinox_models,
    haiku_models,
    hugging_face,
    jaxonmodels_models,
    keras_models,
    linen_models,
    nnx_models,
)

# Each has REQUIREMENTS, what its environment installs beside this project, and MODELS,
# from names to functions that make a `Case`.
ENVIRONMENTS = {
    "transformers": hugging_face,
    "keras": keras_models,
    "haiku": haiku_models,
    "equimo": equimo_models,
    "jaxonmodels": jaxonmodels_models,
    "equinox": equinox_models,
    "linen": linen_models,
    "nnx": nnx_models,
}


def pairs() -> list[tuple[str, str]]:
    """Every model: its environment and its name."""
    return [(e, name) for e, module in ENVIRONMENTS.items() for name in module.MODELS]
