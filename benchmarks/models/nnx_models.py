"""NNX models: graph networks of jraphx, Mamba-2 and Mamba-3, Kolmogorov-Arnold networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import synflow_jax as sj
from benchmarks.models.cases import Case, ids, matrices

REQUIREMENTS = ("jraphx", "mamba2-jax", "mamba3-jax", "jaxkan")

NODES, EDGES = 30, 90


def _graph(name, **given):
    """A network of jraphx on nodes of 16 features; the edges are constants."""
    from jraphx.nn import models

    make = getattr(models, name)
    network = make(16, 32, num_layers=3, out_features=8, rngs=nnx.Rngs(0), **given)
    of_nodes, params = sj.from_nnx(network)
    edges = jnp.asarray(np.random.default_rng(0).integers(NODES, size=(2, EDGES)))

    def apply_fn(params, x):
        return of_nodes(params, x, edges)

    return Case(apply_fn, params, jax.ShapeDtypeStruct((NODES, 16), jnp.float32))


def graph_sage():
    """Neighbours pooled by their maximum."""
    return _graph("GraphSAGE", aggr="max")


def graph_isomorphism():
    """With batch norm, shortcuts and the maximum over all layers."""
    return _graph("GIN", norm="batch_norm", jk="max", residual=True)


def graph_attention():
    """GATv2, four heads."""
    return _graph("GAT", heads=4, v2=True)


def _language(model):
    of_tokens, params = sj.from_nnx(model)

    def apply_fn(params, tokens):
        return of_tokens(params, tokens)["logits"]

    def prunable(name, leaf):
        return leaf.ndim >= 2 and name.endswith(("kernel", "weight"))

    return Case(apply_fn, params, ids(1, 64), prunable, high=1000)


def mamba2():
    """State-space duality in two chunks."""
    from mamba2_jax import Mamba2Config, Mamba2ForCausalLM

    return _language(Mamba2ForCausalLM(Mamba2Config.tiny(), rngs=nnx.Rngs(0)))


def mamba3():
    """Rotated states, trapezoidal steps, several inputs and outputs."""
    from mamba3_jax import Mamba3Config, Mamba3ForCausalLM

    return _language(Mamba3ForCausalLM(Mamba3Config.tiny_mimo(), rngs=nnx.Rngs(0)))


def _kan(kind, **given):
    from jaxkan.models.KAN import KAN

    apply_fn, params = sj.from_nnx(KAN([8, 16, 16, 4], kind, given, seed=0))
    return Case(apply_fn, params, (8,), matrices)


def spline_kan():
    """Splines on a grid, beside a residual of SiLU."""
    return _kan("spline", k=3, G=5)


def chebyshev_kan():
    """Chebyshev polynomials of tanh."""
    return _kan("chebyshev", D=5)


MODELS = {
    "GraphSAGE": graph_sage,
    "GIN": graph_isomorphism,
    "GATv2": graph_attention,
    "Mamba-2": mamba2,
    "Mamba-3": mamba3,
    "KAN, splines": spline_kan,
    "KAN, Chebyshev": chebyshev_kan,
}
