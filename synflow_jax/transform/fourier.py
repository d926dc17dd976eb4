"""Rules of Fourier transforms and complex numbers: the flow is that of the modulus."""

import jax.numpy as jnp
import numpy as np

from synflow_jax.transform.scaled import Scaled, aligned, normalised
from synflow_jax.transform.values import Equation, Value, carries_flow


def fft(equation: Equation, flow: Scaled):
    """A product with a matrix whose entries have the absolute value 1 (1 / n in the
    inverses): each result is the sum, or the mean, over the transformed axes."""
    kind = equation.params["fft_type"].name
    lengths = equation.params["fft_lengths"]
    (shape,) = equation.out_shapes
    axes = tuple(range(len(shape) - len(lengths), len(shape)))
    mantissa = flow.mantissa
    if kind == "IRFFT":
        # A real result has a spectrum of which the rest mirrors what is given.
        given = mantissa.shape[-1]
        twice = np.ones(given)
        twice[1 : lengths[-1] - given + 1] = 2
        twice = equation.absolute(np.asarray(twice, equation.dtype))
        mantissa = mantissa * jnp.broadcast_to(twice, mantissa.shape)
    total = jnp.sum(mantissa, axis=axes, keepdims=True)
    if kind in ("IFFT", "IRFFT"):
        share = np.asarray(1 / max(1, np.prod(lengths)), equation.dtype)
        total = total * equation.absolute(share)
    return [normalised(jnp.broadcast_to(total, shape), flow.exponent)]


def join(equation: Equation, real: Value, imaginary: Value):
    """``a + b i``: the sum of the flows. A parameter value is dropped as a shift."""
    flows = [x for x in (real, imaginary) if carries_flow(x)]
    if len(flows) == 1:
        return flows
    (a, b), exponent = aligned(flows)
    return [normalised(a + b, exponent)]
