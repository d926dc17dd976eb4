"""U-Nets of images and of volumes, written with JAX alone: for any commit of ours."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SPACES = {2: "HW", 3: "DHW"}


def conv(x, kernel):
    space = SPACES[x.ndim - 2]
    layout = f"N{space}C", f"{space}IO", f"N{space}C"
    return lax.conv_general_dilated(
        x, kernel, (1,) * len(space), "SAME", dimension_numbers=layout
    )


def upsampled(x, kernel):
    space = SPACES[x.ndim - 2]
    layout = f"N{space}C", f"{space}IO", f"N{space}C"
    return lax.conv_transpose(
        x, kernel, (2,) * len(space), "SAME", dimension_numbers=layout
    )


def resized(x, kernel):
    shape = (x.shape[0], *(2 * n for n in x.shape[1:-1]), x.shape[-1])
    return conv(jax.image.resize(x, shape, "linear"), kernel)


# The ways of a U-Net back to more pixels, by the name of their kernels.
UPS = {"up": upsampled, "resized": resized}


def unet(levels, space, width=16, way="up"):
    """``(apply_fn, params)`` of a U-Net: two 3x3 convolutions a level, max pooling,
    transposed 2x2 convolutions (or convolutions after a linear resizing), ``width``
    channels in the first level."""
    keys = iter(jax.random.split(jax.random.key(0), 99))

    def kernel(size, into, out):
        shape = (*(size,) * space, into, out)
        return jax.random.normal(next(keys), shape) * (2 / np.prod(shape[:-1])) ** 0.5

    def pair(into, out):
        return [kernel(3, into, out), kernel(3, out, out)]

    widths = [width * 2**i for i in range(levels + 1)]
    params = {
        "down": [pair(into, out) for into, out in zip([3, *widths], widths)],
        way: [kernel(2, 2 * w, w) for w in widths[:-1]],
        "join": [pair(2 * w, w) for w in widths[:-1]],
        "head": kernel(1, width, 2),
    }

    def both(x, kernels):
        for each in kernels:
            x = jax.nn.relu(conv(x, each))
        return x

    def apply_fn(params, x):
        skips = []
        window = (1, *(2,) * space, 1)
        for kernels in params["down"][:-1]:
            skips.append(both(x, kernels))
            x = lax.reduce_window(skips[-1], -jnp.inf, lax.max, window, window, "VALID")
        x = both(x, params["down"][-1])
        for up, kernels, skip in [*zip(params[way], params["join"], skips)][::-1]:
            x = both(jnp.concatenate([UPS[way](x, up), skip], -1), kernels)
        return conv(x, params["head"])

    return apply_fn, params
