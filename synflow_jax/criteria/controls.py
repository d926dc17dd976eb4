"""Controls for ablations, which change a criterion, its input, or its masks."""

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from synflow_jax.criteria.saliency import snip
from synflow_jax.masks import apply_masks, count_on
from synflow_jax.precision import scoring_dtype, split_floating, widened
from synflow_jax.transform.network_flow import check_outputs, ones
from synflow_jax.transform.values import split_fixed
from synflow_jax.trees import (
    Masks,
    Params,
    ScoreFn,
    Scores,
    check_key,
    check_masks,
    is_floating,
)
from synflow_jax.xla.backends import Backend, on_backend
from synflow_jax.xla.counts import as_float
from synflow_jax.xla.placement import lying_like, made_like


def shuffled(key: Key[Array, ""], masks: Masks) -> Masks:
    """Puts the entries of every leaf of the masks in random order.

    Every layer keeps as many weights as before, but at random places. If training then
    goes as well as before, the criterion's densities of layers were what mattered, and its
    choice of weights within the layers was not.

    Args:
      key: a `jax.random.key`.
      masks: boolean leaves.

    Returns:
      Boolean leaves shaped like ``masks``, divided over devices as they are.

    Raises:
      ValueError: if ``key`` is not a single typed key, or a leaf is not boolean.

    Example:
      >>> masks = {"w": jnp.array([True, True, False, False, False])}
      >>> int(shuffled(jax.random.key(0), masks)["w"].sum())
      2

    References:
      Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the
      Mark?", ICLR 2021. In the authors' code of SynFlow this control has no effect.
    """
    check_key(key)
    check_masks(masks, masks)
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, max(len(leaves), 1))
    mixed = [made_like(leaf, _mixed, k, leaf) for k, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(treedef, mixed)


def _mixed(key: Key[Array, ""], mask: Array) -> Array:
    return jax.random.permutation(key, jnp.reshape(mask, -1)).reshape(mask.shape)


def reinitialised(
    init_fn: Callable[[Key[Array, ""]], Params], key: Key[Array, ""], masks: Masks
) -> Params:
    """Initialises the parameters again and applies the same masks.

    If training goes as well as with the weights for which the masks were made, the values
    of those weights did not matter.

    Args:
      init_fn: ``init_fn(key) -> params``, such as ``lambda key: net.init(key, x)``.
      key: a `jax.random.key`, different from the one of the first initialisation.
      masks: boolean leaves shaped like the parameters.

    Returns:
      The new parameters, 0 where pruned, divided over devices as the masks are.

    Raises:
      ValueError: if ``masks`` does not mirror the parameters that ``init_fn`` returns.

    Example:
      >>> masks = {"w": jnp.array([True, False])}
      >>> init = lambda key: {"w": jax.random.normal(key, (2,))}
      >>> bool(reinitialised(init, jax.random.key(0), masks)["w"][1] == 0)
      True

    References:
      Frankle et al. 2021, as above.
    """
    params = init_fn(key)
    check_masks(masks, params)
    return apply_masks(jax.tree.map(lying_like, params, masks), masks)


def rescaled(params: Params, masks: Masks) -> Params:
    """Divides the kept weights of every leaf by the square root of its density.

    A unit whose inputs are pruned to a density ``d`` sums ``d`` times as many terms, so its
    variance is ``d`` times what the initialiser meant. This puts it back. Without it, a
    deep network that has no normalisation may not start to learn, whichever weights were
    kept: then the scale and not the choice of the masks decides a comparison.

    Args:
      params: a pytree of arrays, at initialisation.
      masks: boolean leaves shaped like ``params``; True = kept.

    Returns:
      Leaves with the shapes and dtypes of ``params``, 0 where pruned. A leaf that is kept
      whole, as biases are, is as it was.

    Raises:
      ValueError: while tracing, if ``masks`` does not mirror ``params``.

    Example:
      >>> masks = {"w": jnp.array([True, False, False, False])}
      >>> rescaled({"w": jnp.array([3.0, 1.0, 1.0, 1.0])}, masks)
      {'w': Array([6., 0., 0., 0.], dtype=float32)}

    References:
      The variance is that of He et al., "Delving Deep into Rectifiers", ICCV 2015,
      equation 10, with the inputs that are left; Evci et al., "Gradient Flow in Sparse
      Neural Networks and How Lottery Tickets Win", AAAI 2022, count them unit by unit.
    """
    check_masks(masks, params)
    return on_backend(_rescaled, params, masks)


@functools.partial(jax.jit, static_argnums=0)
def _rescaled(backend: Backend, params: Params, masks: Masks) -> Params:
    def scale(leaf: Array, mask: Array) -> Array:
        if not is_floating(leaf):
            return leaf
        kept = as_float(count_on(backend, [mask]))
        factor = jnp.sqrt(leaf.size / jnp.maximum(kept, 1))  # nothing kept: all zero anyway
        wide = scoring_dtype(leaf)
        return (leaf.astype(wide) * factor.astype(wide)).astype(leaf.dtype)

    return jax.tree.map(scale, apply_masks(params, masks), masks)


def inverted(score_fn: ScoreFn) -> ScoreFn:
    """Inverts a criterion: the weights that it ranks highest are pruned first.

    Args:
      score_fn: a criterion.

    Returns:
      ``score(params, masks) -> scores``: the criterion's scores with the opposite sign.

    Example:
      >>> from synflow_jax.criteria import magnitude
      >>> params, masks = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([True, True])}
      >>> inverted(magnitude())(params, masks)["w"]
      Array([-1., -2.], dtype=float32)

    References:
      Frankle et al. 2021, as above. The authors' code of SynFlow divides by the scores
      instead, which gives NaN for weights that are already pruned.
    """

    def score(params: Params, masks: Masks) -> Scores:
        return jax.tree.map(jnp.negative, score_fn(params, masks))

    return score


def on_input(apply_fn: Callable[..., PyTree], inputs: PyTree) -> Callable[..., PyTree]:
    """Replaces SynFlow's all-ones input by other inputs.

    The network that it returns multiplies its input by ``inputs``, so an all-ones input
    becomes ``inputs``. The flow takes their absolute values. With ``x`` random, an image,
    or the mean of a data set, ``synflow(on_input(apply_fn, x), x.shape)`` tests whether all
    entries of the input should have the same weight.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      inputs: floating arrays shaped like one example, without the batch axis, or like
        ``x``.

    Returns:
      ``network(params, x) -> y``, which applies ``apply_fn`` to the product. It raises
      ValueError if ``inputs`` does not have the structure and the shapes of ``x``.

    Example:
      >>> from synflow_jax.criteria import synflow
      >>> network = on_input(lambda params, x: x @ params["w"], jnp.array([3.0, -1.0]))
      >>> params, masks = {"w": jnp.ones((2, 1))}, {"w": jnp.ones((2, 1), bool)}
      >>> synflow(network, (2,))(params, masks)["w"].T
      Array([[0.75, 0.25]], dtype=float32)
    """

    def network(params: Params, x: PyTree, *rest: PyTree) -> PyTree:
        def times(x, given):
            given = jnp.asarray(given, x.dtype)
            if given.shape not in (x.shape, x.shape[1:]):
                raise ValueError(
                    f"`inputs` has shape {given.shape}, but the input of the network has "
                    f"shape {x.shape}; `inputs` must have that shape or {x.shape[1:]}."
                )
            return x * given.reshape((1,) * (x.ndim - given.ndim) + given.shape)

        if jax.tree.structure(x) != jax.tree.structure(inputs):
            raise ValueError(
                f"`inputs` must have the structure of the network's input, "
                f"{jax.tree.structure(x)}; got {jax.tree.structure(inputs)}."
            )
        return apply_fn(params, jax.tree.map(times, x, inputs), *rest)

    return network


def synflow_as_written(apply_fn: Callable[..., PyTree], input_shape: PyTree) -> ScoreFn:
    """SynFlow as the authors' code computes it: only the parameters are changed.

    Every parameter is replaced by its absolute value, the network is run as it is written
    on an all-ones input, and ``R`` is the sum of its outputs; the score of a weight is
    ``|w * dR/dw|``. For networks of linear layers, ReLU, pooling and batch norm in
    evaluation mode, without shifts, that is `synflow` times ``R``. In training mode, batch
    norm centres and rescales by the statistics of the single image, so the scores are no
    longer those of a flow and obey no conservation law. This is what the control tests.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``; for the control in training mode, as
        ``lambda params, x: net.apply({"params": params, **rest}, x, train=True,
        mutable=["batch_stats"])[0]``.
      input_shape: as in `synflow_jax.synflow`.

    Returns:
      ``score(params, masks) -> scores``: not normalised, so they overflow in deep networks.

    Example:
      >>> score = synflow_as_written(lambda params, x: x @ params["w"], input_shape=(2,))
      >>> params = {"w": jnp.array([[1.0, -2.0], [-3.0, 4.0]])}
      >>> score(params, {"w": jnp.ones((2, 2), bool)})["w"]
      Array([[1., 2.],
             [3., 4.]], dtype=float32)

    References:
      Tanaka et al. 2020 (arXiv 2006.05467), Algorithm 1, whose line 0 asks for evaluation
      mode.
    """

    def total(params: Params, inputs: PyTree) -> Array:
        _, inputs = split_fixed(inputs)
        outputs = apply_fn(params, inputs)
        check_outputs(outputs)
        sums = [jnp.sum(y) for y in jax.tree.leaves(outputs)]
        return cast(Array, sum(sums))  # 0 only without any output

    saliency = snip(total, jax.tree.map(lambda x: x[None], ones(input_shape)))

    def score(params: Params, masks: Masks) -> Scores:
        weights, merged = split_floating(widened(params))
        positive = merged([jnp.abs(w) for w in weights])
        return apply_masks(saliency(positive, masks), masks)

    return score
