"""Flax Linen models: diffusion transformers, a mixture of experts, policies."""

import jax
import jax.numpy as jnp
from flax import linen as nn

import synflow_jax as sj
from benchmarks.models.cases import Case, floats, ids

REQUIREMENTS = ("flaxdiff", "nano-moe-jax", "rejax")

TIME = jnp.array([0.5])


def _case(module, inputs, **given):
    """``inputs``: as `synflow` takes them."""
    example = [
        jnp.ones(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
        for x in inputs
    ]
    variables = jax.jit(module.init)(jax.random.key(0), *example)
    of_inputs, params = sj.from_linen(module, variables)

    def apply_fn(params, x):
        return of_inputs(params, *x)

    return Case(apply_fn, params, tuple(inputs), **given)


SIZES = {"patch_size": 4, "emb_features": 96, "num_layers": 2, "num_heads": 4}


def dit():
    """DiT: blocks behind gates that start at zero."""
    from flaxdiff.models.simple_dit import SimpleDiT

    return _case(SimpleDiT(**SIZES), (floats(1, 32, 32, 3), TIME))


def mm_dit():
    """Image and text in one stream."""
    from flaxdiff.models.simple_mmdit import SimpleMMDiT

    text = jnp.ones((1, 8, 32))
    return _case(SimpleMMDiT(**SIZES), (floats(1, 32, 32, 3), TIME, text))


def ssm_dit():
    """Blocks of S5, a complex state space by an associative scan, between attention."""
    from flaxdiff.models.ssm_dit import HybridSSMAttentionDiT

    module = HybridSSMAttentionDiT(**SIZES, ssm_state_dim=16, block_pattern=("ssm", "attn"))
    return _case(module, (floats(1, 32, 32, 3), TIME))


def mixture_of_experts():
    """NanoMoE: two of four experts for every token."""
    from nano_moe.config import NanoMoEConfig
    from nano_moe.model import NanoMoE

    case = _case(NanoMoE(NanoMoEConfig(n_layers=2)), (ids(1, 32),), high=256)
    return case._replace(apply_fn=lambda params, x: case.apply_fn(params, x)[0])


def discrete_policy():
    """A policy that samples: actions, their probabilities, the entropy."""
    from rejax.networks import DiscretePolicy

    policy = DiscretePolicy(6, (64, 64), nn.tanh)
    return _case(policy, (floats(1, 12), jax.random.key(1)))


def gaussian_policy():
    """The squashed policy of SAC, whose deviation depends on the state."""
    from rejax.networks import SquashedGaussianPolicy

    policy = SquashedGaussianPolicy(4, (-1.0, 1.0), (64, 64), nn.relu, (-5.0, 2.0))
    return _case(policy, (floats(1, 12), jax.random.key(1)))


def quantile_network():
    """An implicit quantile network: cosines of random quantiles gate the features."""
    from rejax.networks import ImplicitQuantileNetwork

    network = ImplicitQuantileNetwork((64, 64), nn.relu, 6)
    return _case(network, (floats(1, 12), jax.random.key(1)))


MODELS = {
    "DiT": dit,
    "MM-DiT": mm_dit,
    "S5 and attention DiT": ssm_dit,
    "NanoMoE": mixture_of_experts,
    "Policy, discrete": discrete_policy,
    "Policy, squashed Gaussian": gaussian_policy,
    "Quantile network": quantile_network,
}
