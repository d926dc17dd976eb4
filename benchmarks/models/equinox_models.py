"""Equinox models of flowjax, Megalodon and pdequinox."""

import jax

import synflow_jax as sj
from benchmarks.models.cases import Case, ids, matrices

REQUIREMENTS = ("flowjax", "megalodon-jax", "pdequinox")

KEY = 0


def _flow(make, pattern="*weight", **given):
    """A normalising flow: the latent value and the logarithm of the volume."""
    import equinox as eqx
    from flowjax.distributions import StandardNormal
    from paramax import NonTrainable, unwrap

    flow = make(jax.random.key(KEY), base_dist=StandardNormal((8,)), **given)
    params, rest = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda x: isinstance(x, NonTrainable)
    )

    def apply_fn(params, x):
        bijection = unwrap(eqx.combine(params, rest)).bijection
        return list(jax.vmap(bijection.inverse_and_log_det)(x))

    # Layers are stacked for a scan: their biases have two dimensions.
    return Case(apply_fn, params, (8,), sj.matching(pattern))


def coupling_flow():
    from flowjax.flows import coupling_flow

    return _flow(coupling_flow)


def spline_flow():
    """Rational quadratic splines: each value searches its interval."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.flows import masked_autoregressive_flow

    spline = RationalQuadraticSpline(knots=8, interval=4)
    return _flow(masked_autoregressive_flow, transformer=spline)


def block_autoregressive_flow():
    from flowjax.flows import block_neural_autoregressive_flow

    return _flow(block_neural_autoregressive_flow, "*weight/*")


def megalodon():
    """Complex moving averages by Fourier transforms, attention in chunks."""
    import equinox as eqx
    from megalodon_jax import MegalodonConfig, MegalodonForCausalLM

    config = MegalodonConfig(
        vocab_size=500,
        model_dim=128,
        num_layers=2,
        num_heads=2,
        z_dim=64,
        value_dim=256,
        ffn_hidden_dim=256,
        cema_ndim=8,
        chunk_size=16,
        norm_num_groups=8,
    )
    model = MegalodonForCausalLM(config, key=jax.random.key(KEY))
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def apply_fn(params, tokens):
        return eqx.combine(params, rest)(tokens)[0]

    return Case(apply_fn, params, ids(1, 32), high=500)


def _pde(model, size):
    apply_fn, params = sj.from_equinox(model)
    return Case(apply_fn, params, (1, *size), matrices)


def classic_unet():
    from pdequinox.arch import ClassicUNet

    return _pde(ClassicUNet(2, 1, 1, num_levels=3, key=jax.random.key(KEY)), (32, 32))


def modern_unet():
    from pdequinox.arch import ModernUNet

    return _pde(ModernUNet(2, 1, 1, num_levels=2, key=jax.random.key(KEY)), (32, 32))


def fourier_operator():
    """A Fourier neural operator, its spectral weights stored as two real arrays."""
    from pdequinox.arch import ClassicFNO

    return _pde(ClassicFNO(2, 1, 1, num_modes=8, key=jax.random.key(KEY)), (32, 32))


MODELS = {
    "flowjax coupling": coupling_flow,
    "flowjax splines": spline_flow,
    "flowjax BNAF": block_autoregressive_flow,
    "Megalodon": megalodon,
    "U-Net": classic_unet,
    "U-Net, modern": modern_unet,
    "FNO": fourier_operator,
}
