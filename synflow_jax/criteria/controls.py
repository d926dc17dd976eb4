"""Controls: what an ablation changes about a criterion, its input, or its masks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from synflow_jax.criteria.saliency import snip
from synflow_jax.masks import apply_masks
from synflow_jax.precision import split_floating, widened
from synflow_jax.transform.network_flow import ones
from synflow_jax.trees import Masks, Params, ScoreFn, Scores, check_key, check_masks


def shuffled(key: Key[Array, ""], masks: Masks) -> Masks:
    """The masks with the entries of every leaf in random order.

    Every layer keeps as many weights as before, but others. If training goes as well as
    before, what the criterion found were the densities of the layers and not the weights.

    Args:
      key: a `jax.random.key`.
      masks: boolean leaves.

    Returns:
      Boolean leaves shaped like ``masks``.

    Raises:
      ValueError: if ``key`` is not a single typed key, or a leaf is not boolean.

    Example:
      >>> masks = {"w": jnp.array([True, True, False, False, False])}
      >>> int(shuffled(jax.random.key(0), masks)["w"].sum())
      2

    References:
      Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the
      Mark?", ICLR 2021. In the authors' code of SynFlow this control changes nothing.
    """
    check_key(key)
    check_masks(masks, masks)
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, max(len(leaves), 1))
    mixed = [
        jax.random.permutation(k, jnp.reshape(leaf, -1)).reshape(leaf.shape)
        for k, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(treedef, mixed)


def reinitialised(
    init_fn: Callable[[Key[Array, ""]], Params], key: Key[Array, ""], masks: Masks
) -> Params:
    """New initial weights under old masks.

    If training goes as well as with the weights that the masks were made for, it was not
    those weights that mattered.

    Args:
      init_fn: ``init_fn(key) -> params``, such as ``lambda key: net.init(key, x)``.
      key: a `jax.random.key`, another than the one that made the first weights.
      masks: boolean leaves shaped like the parameters.

    Returns:
      The parameters, 0 where pruned.

    Raises:
      ValueError: if ``masks`` does not mirror what ``init_fn`` returns.

    Example:
      >>> masks = {"w": jnp.array([True, False])}
      >>> draw = lambda key: {"w": jax.random.normal(key, (2,))}
      >>> bool(reinitialised(draw, jax.random.key(0), masks)["w"][1] == 0)
      True

    References:
      Frankle et al. 2021, as above.
    """
    return apply_masks(init_fn(key), masks)


def inverted(score_fn: ScoreFn) -> ScoreFn:
    """The criterion the other way round: what it would keep goes first.

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
      instead, which is NaN for the weights already pruned.
    """

    def score(params: Params, masks: Masks) -> Scores:
        return jax.tree.map(jnp.negative, score_fn(params, masks))

    return score


def on_input(apply_fn: Callable[..., PyTree], inputs: PyTree) -> Callable[..., PyTree]:
    """The network with given inputs in the place of SynFlow's ones.

    The input is multiplied by ``inputs``, so on ones it is them; in the flow they count in
    their sizes. ``synflow(on_input(apply_fn, x), x.shape)`` asks whether all inputs should
    weigh the same: with random ``x``, with an image, with a data set's mean.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      inputs: floating arrays shaped like one example, without the batch axis, or like
        ``x``.

    Returns:
      ``apply_fn(params, x) -> y`` of the product, which raises ValueError if ``inputs`` do
      not fit ``x``.

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
                    f"`inputs` has shape {given.shape}; the network is given {x.shape}, so "
                    f"that or {x.shape[1:]} is wanted."
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
    """SynFlow by absolute values in the parameters alone, the network as it is written.

    The paper's construction in the authors' code: on an all-ones input and with ``|w|``
    for every parameter, ``|w * dR/dw|`` of the sum of the outputs. It is `synflow` times
    ``R`` where the network is one of ReLUs, pooling and batch norm in evaluation mode
    without shifts. Batch norm in training mode centres and rescales by the statistics of
    the one image, and what is left is no flow: nothing is conserved. That is the control.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``; for the control in training mode, as
        ``lambda params, x: net.apply({"params": params, **rest}, x, train=True,
        mutable=["batch_stats"])[0]``.
      input_shape: as in `synflow_jax.synflow`.

    Returns:
      ``score(params, masks) -> scores``: not normalised, so deep networks overflow.

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
        return sum(jnp.sum(y) for y in jax.tree.leaves(apply_fn(params, inputs)))

    saliency = snip(total, jax.tree.map(lambda x: x[None], ones(input_shape)))

    def score(params: Params, masks: Masks) -> Scores:
        weights, merged = split_floating(widened(params))
        positive = merged([jnp.abs(w) for w in weights])
        return apply_masks(saliency(positive, masks), masks)

    return score
