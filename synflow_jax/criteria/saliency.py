"""Criteria that need a loss and data, or the network's derivative: snip, grasp and others.

Each is a function of a weight and of a derivative at the pruned network (Tanaka et al.
2020, section 4: synaptic saliency). A pruned weight has a score too, of the value that it
had and the derivative at zero: `prune` uses it only if weights may return
(``regrow=True``).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from synflow_jax.criteria.batches import as_batches
from synflow_jax.masks import apply_masks
from synflow_jax.precision import no_score, split_floating, widened
from synflow_jax.pruning.criterion import DataCriterion, Formula
from synflow_jax.trees import (
    Masks,
    Params,
    Prunable,
    ScoreFn,
    Scores,
    check_key,
    check_masks,
    is_floating,
    is_kernel,
    prunable_leaves,
)
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.loops import fit_for_loops

# ``loss_fn(params, batch) -> scalar``.
LossFn = Callable[[Params, PyTree], Float[Array, ""]]


def snip(loss_fn: LossFn, batches: PyTree) -> ScoreFn:
    """How much the loss changes, to first order, if a weight is removed.

    ``|w * g|`` with ``g`` the gradient of the loss in the masked weights, summed over the
    batches; it is the absolute value of the loss's derivative in the mask.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, such as a batch's mean cross-entropy,
        of the network in evaluation mode (or in training mode, where batch norm should see
        the batch).
      batches: a pytree of arrays with a leading axis of batches, or a list of batches of
        equal shapes, each a tuple or dict, as ``list(loader)`` gives it. They are evaluated
        one by one, so memory does not grow with their number. Another criterion with other
        batches of equal shapes compiles nothing new.

    Returns:
      ``score(params, masks) -> scores``: leaves shaped like ``params``, float32 (float64
      for float64 parameters), non-negative.

    Raises:
      ValueError: if a leaf of ``batches`` has no leading axis or another length than the
        rest, or they look like one batch without a leading axis. While tracing, if
        ``masks`` does not mirror ``params``, or the loss is no scalar.

    Example:
      >>> def loss(params, batch):
      ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
      >>> batches = {"x": jnp.ones((1, 4, 2)), "y": jnp.zeros((1, 4))}
      >>> params = {"w": jnp.array([1.0, -3.0])}
      >>> snip(loss, batches)(params, {"w": jnp.array([True, True])})["w"]
      Array([ 4., 12.], dtype=float32)

    References:
      Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
      2019, equation 5 before its normalisation, which changes no ranking; as a baseline in
      Tanaka et al. 2020.
    """

    return DataCriterion(
        Formula(_of_gradients, loss_fn, (_identity, _snip)), as_batches(batches)
    )


def _identity(g: Array) -> Array:
    return g


def _snip(w: Array, g: Array) -> Array:
    return jnp.abs(w * g)


def grasp(loss_fn: LossFn, batches: PyTree, *, prunable: Prunable = is_kernel) -> ScoreFn:
    """How much of the gradient's norm is lost, to first order, if a weight is removed.

    ``w * (H g)``, signed: ``g`` is the gradient of the loss in the prunable weights, summed
    over the batches, ``H`` the loss's Hessian, also summed. Weights whose removal would
    increase the norm of the gradient have the lowest, negative scores and go first.

    Args:
      loss_fn: as in `snip`. The authors divide the network's outputs by a temperature of
        200 before the cross-entropy; do so in ``loss_fn``.
      batches: as in `snip`. Products of the Hessian and the gradient are taken batch by
        batch; the Hessian is never formed.
      prunable: the weights whose gradient counts, as `prune` has it.

    Returns:
      ``score(params, masks) -> scores``: leaves shaped like ``params``, signed.

    Raises:
      ValueError: as `snip` does, or if no leaf is prunable.

    Example:
      >>> def loss(params, batch):
      ...     return jnp.mean((batch["x"] @ params["kernel"] - batch["y"]) ** 2)
      >>> batches = {"x": jnp.eye(2)[None], "y": jnp.zeros((1, 2, 1))}
      >>> params = {"kernel": jnp.array([[1.0], [-3.0]])}
      >>> score = grasp(loss, batches)(params, {"kernel": jnp.ones((2, 1), bool)})
      >>> score["kernel"].ravel()
      Array([1., 9.], dtype=float32)

    References:
      Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow",
      ICLR 2020, equation 8 with its sign turned so that higher means keep; as a baseline in
      Tanaka et al. 2020.
    """

    return DataCriterion(Formula(_grasp, loss_fn, (prunable,)), as_batches(batches))


def _grasp(
    loss_fn: LossFn,
    prunable: Prunable,
    backend: Backend,
    batches: PyTree,
    params: Params,
    masks: Masks,
) -> Scores:
    weights, gradient = _at(backend, loss_fn, params, masks)
    total = _sum_over(batches, weights, gradient)
    direction = _direction(total, params, masks, prunable)

    def product(weights, batch):
        along = (weights,), (direction,)
        return jax.jvp(lambda weights: gradient(weights, batch), *along)[1]

    return _scores(jnp.multiply, params, _sum_over(batches, weights, product))


def fisher(loss_fn: LossFn, batches: PyTree) -> ScoreFn:
    """The squared saliency of each batch, summed: the diagonal of the empirical Fisher
    information times the squared weight.

    With batches of one example each it is the empirical Fisher information; with one batch
    of all it is the square of `snip`, and ranks like it.

    Args:
      loss_fn: as in `snip`.
      batches: as in `snip`.

    Returns:
      ``score(params, masks) -> scores``: leaves shaped like ``params``, non-negative.

    Raises:
      ValueError: as `snip` does.

    Example:
      >>> def loss(params, batch):
      ...     return jnp.sum(batch * params["w"])
      >>> params = {"w": jnp.array([1.0, -3.0])}
      >>> score = fisher(loss, jnp.array([[1.0, 1.0], [-1.0, 1.0]]))
      >>> score(params, {"w": jnp.ones(2, bool)})["w"]
      Array([ 2., 18.], dtype=float32)

    References:
      Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018;
      Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019
      (Taylor-FO).
    """

    formula = Formula(_of_gradients, loss_fn, (jnp.square, _fisher))
    return DataCriterion(formula, as_batches(batches))


def _fisher(w: Array, squared_gradient: Array) -> Array:
    return w * w * squared_gradient


def gradient_norm(loss_fn: LossFn, batches: PyTree) -> ScoreFn:
    """The absolute value of the loss's gradient in each weight, whatever the weight.

    Args:
      loss_fn: as in `snip`.
      batches: as in `snip`.

    Returns:
      ``score(params, masks) -> scores``: ``|g|``, leaves shaped like ``params``.

    Raises:
      ValueError: as `snip` does.

    Example:
      >>> def loss(params, batch):
      ...     return jnp.sum(batch * params["w"])
      >>> params = {"w": jnp.array([1.0, -3.0])}
      >>> score = gradient_norm(loss, jnp.array([[1.0, 1.0], [-1.0, 1.0]]))
      >>> score(params, {"w": jnp.ones(2, bool)})["w"]
      Array([0., 2.], dtype=float32)

    References:
      A baseline of Evci et al., "Rigging the Lottery", ICML 2020, for growing weights.
    """

    formula = Formula(_of_gradients, loss_fn, (_identity, _gradient_norm))
    return DataCriterion(formula, as_batches(batches))


def _gradient_norm(w: Array, g: Array) -> Array:
    return jnp.abs(g)


def ntk_sap(
    apply_fn: Callable[[Params, PyTree], PyTree], inputs: PyTree, key: Key[Array, ""]
) -> ScoreFn:
    """How much the spectrum of the neural tangent kernel changes if a weight is removed.

    ``|d/dm |J (m * v)|**2|`` at the masks ``m``, with ``J`` the derivative of the outputs
    in the masked weights and ``v`` normal: on average over ``v``, ``|J v|**2`` is the trace
    of the kernel ``J J^T``, its nuclear norm. Each batch has a random direction of its own.

    No labels, and inputs that may be noise. Cost: for each batch a derivative along ``v``,
    and a gradient with its own derivative along ``v``.

    Args:
      apply_fn: ``apply_fn(params, x) -> y``.
      inputs: a pytree of arrays with a leading axis of batches; normal noise in the paper.
      key: a `jax.random.key` for the directions.

    Returns:
      ``score(params, masks) -> scores``: float32 or better, non-negative. A pruned weight
      scores the derivative at its mask of 0. Leaves without floating numbers score 0.

    Raises:
      ValueError: while tracing, if the masks do not mirror the parameters or ``inputs``
        have no leading axis of batches in common; if ``key`` is not a single typed key.

    Example:
      >>> params, masks = {"w": jnp.array([2.0, 3.0])}, {"w": jnp.array([True, True])}
      >>> score = ntk_sap(lambda params, x: x * params["w"][None], jnp.ones((1, 1, 2)),
      ...                 jax.random.key(0))
      >>> score(params, masks)["w"].shape  # 2 v**2, whatever the weights
      (2,)

    References:
      Wang, Li and Sun, "NTK-SAP: Improving Neural Network Pruning by Aligning Training
      Dynamics", ICLR 2023, equation 6, in the limit of a small perturbation. The paper
      also initialises new weights for each batch; here they are the given weights.
    """
    check_key(key)

    return DataCriterion(Formula(_ntk_sap, apply_fn), (as_batches(inputs, "inputs"), key))


def _ntk_sap(
    apply_fn: Callable[[Params, PyTree], PyTree],
    backend: Backend,
    data: tuple[PyTree, Key[Array, ""]],
    params: Params,
    masks: Masks,
) -> Scores:
    inputs, key = data
    check_masks(masks, params)
    weights, merged = split_floating(widened(params))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(masks))
    kept = [mask for leaf, mask in pairs if is_floating(leaf)]
    strengths = [mask.astype(w.dtype) for w, mask in zip(weights, kept)]

    def derivative(strengths: _Floating, batch: tuple[PyTree, Array]) -> _Floating:
        x, number = batch
        keys = jax.random.split(jax.random.fold_in(key, number), len(weights))
        normal = [jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, weights)]
        outputs = fit_for_loops(backend, lambda weights: apply_fn(merged(weights), x))

        def masked(weights, strengths):
            return outputs([m * w for m, w in zip(strengths, weights)])

        # u = J (m * v); then d/dm <u, u> = 2 d/dt d/dm <u, f(m * (w + t v))>.
        _, changes = jax.jvp(lambda ws: masked(ws, strengths), (weights,), (normal,))

        def gradient(weights):
            _, back = jax.vjp(lambda ms: masked(weights, ms), strengths)
            return back(changes)[0]

        _, halves = jax.jvp(gradient, (weights,), (normal,))
        return [2 * half for half in halves]

    numbered = (inputs, jnp.arange(len(jax.tree.leaves(inputs)[0])))
    total = _sum_over(numbered, strengths, derivative)
    return merged([jnp.abs(t) for t in total], no_score)


# The floating leaves of a tree of parameters, in order: what is differentiated.
_Floating = list[Array]


def _of_gradients(
    loss_fn: LossFn,
    of_batch: Callable[[Array], Array],
    of_weight: Callable[[Array, Array], Array],
    backend: Backend,
    batches: PyTree,
    params: Params,
    masks: Masks,
) -> Scores:
    """``of_weight(w, sum of of_batch(g))`` with ``g`` the gradient of each batch's loss."""
    weights, gradient = _at(backend, loss_fn, params, masks)

    def summed(weights, batch):
        return [of_batch(g) for g in gradient(weights, batch)]

    return _scores(of_weight, params, _sum_over(batches, weights, summed))


def _at(
    backend: Backend, loss_fn: LossFn, params: Params, masks: Masks
) -> tuple[_Floating, Callable]:
    """The masked weights, and ``gradient(weights, batch)`` of the loss in them."""
    weights, masked = split_floating(apply_masks(widened(params), masks))

    def loss(weights: _Floating, batch: PyTree) -> Array:
        value = loss_fn(masked(weights), batch)
        if isinstance(value, tuple | list | dict):
            raise ValueError(
                f"`loss_fn` returned a {type(value).__name__} of {len(value)} values; a "
                "loss is one scalar. Without what it returns beside it: "
                "lambda params, batch: loss_fn(params, batch)[0]."
            )
        if jnp.shape(value) != ():
            raise ValueError(
                f"`loss_fn` returned an array of shape {jnp.shape(value)}; a loss is a "
                "scalar, such as the mean over the batch."
            )
        return value

    return weights, jax.grad(fit_for_loops(backend, loss))


def _sum_over(
    batches: PyTree, weights: _Floating, derivative: Callable[..., _Floating]
) -> _Floating:
    """The sum of ``derivative(weights, batch)``, one batch at a time."""

    def add(total, batch):
        return jax.tree.map(jnp.add, total, derivative(weights, batch)), None

    zeros = [jnp.zeros_like(weight) for weight in weights]
    return lax.scan(add, zeros, batches)[0]


def _direction(
    gradient: _Floating, params: Params, masks: Masks, prunable: Prunable
) -> _Floating:
    """The gradient in the prunable weights that are kept; zero elsewhere."""
    is_prunable = prunable_leaves(params, prunable)
    trees = zip(jax.tree.leaves(params), jax.tree.leaves(masks), is_prunable)
    counted = [mask & yes for leaf, mask, yes in trees if is_floating(leaf)]
    return [jnp.where(c, g, jnp.zeros_like(g)) for g, c in zip(gradient, counted)]


def _scores(
    combine: Callable[[Array, Array], Array], params: Params, derivatives: _Floating
) -> Scores:
    """Each weight combined with its derivative; 0 for leaves without floating numbers."""
    weights, merged = split_floating(widened(params))
    return merged([combine(w, d) for w, d in zip(weights, derivatives)], no_score)
