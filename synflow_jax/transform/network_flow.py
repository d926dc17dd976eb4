"""The flow of a function: a program transformation, like `jax.grad` or `jax.vmap`.

The flow of a network is the network with every weight replaced by its absolute value, every
nonlinearity by the identity and every shift dropped. It is positive and homogeneous of
degree one, which is all that conservation needs. Its total on an all-ones input is the
paper's R: the sum, over all paths from input to output, of the product of |w| along the
path.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from synflow_jax.precision import cast_floating, scoring_dtype, widened
from synflow_jax.transform import scaled
from synflow_jax.transform.class_rules import total_of
from synflow_jax.transform.interpreter import Settings, interpret
from synflow_jax.transform.rules import flow_rules
from synflow_jax.transform.scaled import Scaled
from synflow_jax.transform.values import (
    Classed,
    Fixed,
    Rule,
    Rules,
    Uniform,
    as_flows,
    checked_rules,
)
from synflow_jax.trees import Masks, Params
from synflow_jax.xla.backends import ANYWHERE, Backend, has_convolutions, on_backend
from synflow_jax.xla.programs import program


def flow(
    apply_fn: Callable[..., PyTree], *, biases: bool = False, rules: Rules = flow_rules
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Transforms a network into its flow.

    The network is traced and interpreted equation by equation. Values computed from the
    parameters alone are computed as written, and their absolute value is taken where they
    meet the flow; so batch normalisation in evaluation mode is one positive factor, and
    weights may be transformed before they are used. The table `flow_rules` says what each
    primitive does to the flow; docs/flow.md explains it.

    Args:
      apply_fn: ``apply_fn(params, *args) -> y``, traceable by JAX. Floating inputs carry
        flow. For integer inputs the flow starts where they look up rows of a table (every
        row counts) or become one-hot vectors. Where they become floats it starts only if it
        starts nowhere else (8-bit images, boards); otherwise they count as the constant 1.
        Boolean inputs are masks. What an input is not, such as a mask of floats or a
        timestep, ``apply_fn`` closes over.
      biases: adds the absolute values of biases instead of dropping the biases, subtracts
        those of running means, and keeps ReLUs, as the authors' code does. The flow is then
        affine and the conservation laws do not hold.
      rules: the rule of each primitive; ``{**flow_rules, "name": rule}`` adds one or
        replaces it (`synflow_jax.transform.Rule`).

    Returns:
      ``f(params, *args) -> (mantissa, exponent)``, two trees like ``y``, the flow being
      ``mantissa * 2**exponent``: mantissas in float32 (float64 if a parameter is) whose
      largest entry lies near 1, and one int32 exponent for each array, so nothing
      overflows. Within one array, an entry more than 2**100 times smaller than the largest
      counts as zero. ``f`` can be differentiated; its exponents are constants then.

    Raises:
      ValueError: if ``rules`` is not a table of rules.
      FlowError: while tracing, a ValueError, if the network uses a primitive that has no
        rule, or uses one in a way that no rule covers: it names the primitive and the line.

    Example:
      >>> f = flow(lambda params, x: jax.nn.relu(x @ params["w"] - params["b"]))
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]]), "b": jnp.ones(2)}
      >>> mantissa, exponent = f(params, jnp.ones(2))
      >>> mantissa * 2.0**exponent
      Array([4., 6.], dtype=float32)

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), the objective of Algorithm 1, there for ReLU
      networks, by overwriting the weights.
    """

    body = functools.partial(_flow, apply_fn, biases, checked_rules(rules))

    def transformed(params: Params, *args: PyTree) -> tuple[PyTree, PyTree]:
        return on_backend(body, params, *args, differs=has_convolutions)

    return transformed


def _flow(
    apply_fn: Callable[..., PyTree],
    biases: bool,
    rules: Mapping[str, Rule],
    backend: Backend,
    params: Params,
    *args: PyTree,
) -> tuple[PyTree, PyTree]:
    outs = _flows(apply_fn, biases, rules, backend, params, *args)
    leaves, tree = jax.tree.flatten(outs, is_leaf=lambda x: isinstance(x, Scaled))
    return (
        jax.tree.unflatten(tree, [out.mantissa for out in leaves]),
        jax.tree.unflatten(tree, [out.exponent for out in leaves]),
    )


def _flows(
    apply_fn: Callable[..., PyTree],
    biases: bool,
    rules: Mapping[str, Rule],
    backend: Backend,
    params: Params,
    *args: PyTree,
    once: bool | None = None,
    masks: Masks | None = None,
) -> PyTree:
    """The flow of each output, a `Scaled`, or a `Classed` one if an input is `Uniform`."""
    params, args = jax.tree.map(jnp.asarray, (widened(params), args))
    dtype = scoring_dtype(*jax.tree.leaves(params))
    settings = Settings(jnp.dtype(dtype), biases, rules, backend=backend, once=once)
    outs = interpret(apply_fn, params, cast_floating(args, dtype), settings, masks)
    leaves, tree = jax.tree.flatten(outs, is_leaf=lambda x: isinstance(x, Scaled | Classed))
    # An output that does not depend on the input carries none of its flow.
    flows = [x if isinstance(x, Classed) else as_flows([x], dtype)[0] for x in leaves]
    return jax.tree.unflatten(tree, flows)


def total_flow(
    apply_fn: Callable[..., PyTree],
    params: Params,
    inputs: PyTree,
    *,
    biases: bool = False,
    rules: Rules = flow_rules,
    backend: Backend = ANYWHERE,
    once: bool | None = None,
    masks: Masks | None = None,
) -> Scaled:
    """R, the sum of the flow over all outputs.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      inputs: what ``apply_fn`` takes as ``x``; ``uniform(ones(input_shape))`` is the
        paper's input. (Of an input that is not marked as `uniform` all positions are
        computed, with the same result.)
      biases, rules: as in `flow`.
      backend: where it runs.
      once: whether equal positions of `uniform` inputs are computed once; None if that is
        faster.
      masks: which weights are kept; None for all.

    Returns:
      A scalar `Scaled`. Differentiable.
    """
    rules = checked_rules(rules)
    further = {"once": once, "masks": masks}
    flows = _flows(apply_fn, biases, rules, backend, params, inputs, **further)
    flows = jax.tree.map(total_of, flows, is_leaf=lambda x: isinstance(x, Scaled | Classed))
    check_outputs(flows)
    outputs = jax.tree.leaves(flows, is_leaf=lambda x: isinstance(x, Scaled))
    if not outputs:
        raise ValueError("`apply_fn` returned no arrays, so nothing carries the flow.")
    terms, exponent = scaled.aligned(outputs)
    return scaled.normalised(sum(terms[1:], terms[0]), exponent)


def check_outputs(outputs: PyTree) -> None:
    """Raises if a network returned its state beside its output, which would count in R.

    Raises:
      ValueError: if the outputs are a pair whose second part is a dict of arrays.
    """
    is_pair = isinstance(outputs, tuple) and len(outputs) == 2
    if is_pair and isinstance(outputs[1], Mapping) and jax.tree.leaves(outputs[1]):
        raise ValueError(
            "`apply_fn` returned a pair whose second part is a dict with "
            f"{', '.join(map(repr, outputs[1]))}, as Flax's `apply` does with `mutable`; a "
            "state is no output, and would count in the total flow. Run the network in "
            "evaluation mode, or drop the state: lambda params, x: apply_fn(params, x)[0]. "
            "If they are outputs, return them as a list."
        )


def log_flow(
    apply_fn: Callable[..., PyTree],
    params: Params,
    input_shape: PyTree,
    *,
    rules: Rules = flow_rules,
) -> Float[Array, ""]:
    """Natural logarithm of R, the network's total flow.

    Finite at any depth, in any precision. As a score of whole architectures it is the
    ``synflow`` proxy of zero-cost architecture search, without its overflows.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      params: the parameters.
      input_shape: as in `synflow_jax.synflow`.
      rules: as in `flow`.

    Returns:
      A scalar; minus infinity where no path is left from input to output.

    Raises:
      ValueError: as `flow` does.

    Example:
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
      >>> float(jnp.exp(log_flow(lambda p, x: x @ p["w"], params, (2,)))).__round__(3)
      10.0

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), R_SF; Abdelfattah et al., "Zero-Cost Proxies
      for Lightweight NAS", ICLR 2021, for its use in ranking.
    """
    run = program(_log_flow, apply_fn, checked_rules(rules))
    return run(params, uniform(ones(input_shape)))


def _log_flow(
    apply_fn: Callable[..., PyTree],
    rules: Rules,
    backend: Backend,
    params: Params,
    inputs: PyTree,
) -> Float[Array, ""]:
    total = total_flow(apply_fn, params, inputs, rules=rules, backend=backend)
    return scaled.log(total)


def ones(input_shape: PyTree) -> PyTree:
    """The all-ones input of SynFlow.

    Args:
      input_shape: the shape of one example, without the batch axis; or a pytree that
        describes the whole input, batch axis included: each leaf that is a
        `jax.ShapeDtypeStruct` is an input, and each that is an array is a constant of the
        network (an attention mask, lengths, positions, a timestep).

    Returns:
      An array of shape ``(1, *input_shape)``, or a tree like ``input_shape`` in which
      constants are marked as `Fixed`.

    Raises:
      ValueError: if ``input_shape`` is neither.

    Example:
      >>> ones((2,))
      Array([[1., 1.]], dtype=float32)
    """
    is_shape = isinstance(input_shape, (tuple, list)) and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) for n in input_shape
    )
    if is_shape:
        if any(n < 0 for n in input_shape):
            raise ValueError(f"`input_shape` has a negative entry: {input_shape}.")
        return _ones((1, *input_shape), float)

    def is_array(x):
        return isinstance(x, jax.Array | np.ndarray | np.generic)

    leaves = jax.tree.leaves(input_shape)
    shapes = [isinstance(x, jax.ShapeDtypeStruct) for x in leaves]
    if not all(yes or is_array(x) for yes, x in zip(shapes, leaves)) or not any(shapes):
        raise ValueError(
            "`input_shape` is the shape of one example without the batch axis, such as "
            "(32, 32, 3), or a pytree for the whole input, in which each "
            "jax.ShapeDtypeStruct is an input (there must be one) and each array a "
            f"constant; got {input_shape!r}."
        )

    def value(x):
        return Fixed(jnp.asarray(x)) if is_array(x) else _ones(x.shape, x.dtype)

    return jax.tree.map(value, input_shape)


def uniform(inputs: PyTree) -> PyTree:
    """Marks each input whose entries are all equal, as those of `ones` are, so that equal
    positions are computed once."""

    def marked(x):
        is_input = not isinstance(x, Fixed) and jnp.issubdtype(x.dtype, jnp.inexact)
        return Uniform(x) if is_input else x

    return jax.tree.map(marked, inputs, is_leaf=lambda x: isinstance(x, Fixed))


_ones = jax.jit(jnp.ones, static_argnums=(0, 1))
