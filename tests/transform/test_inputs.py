"""What of a network's arguments is an input, where flow starts, and what is a constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import nets

W = jnp.array([[1.0, -2.0], [-3.0, 4.0]])
PARAMS = {"table": jnp.ones((5, 2)), "q": W, "k": W, "v": W}
IDS = jax.ShapeDtypeStruct((3,), jnp.int32)
FLOATS = jax.ShapeDtypeStruct((1, 2), jnp.float32)


def R(network, params, shape):
    return float(jnp.exp(jax.jit(lambda p: sj.log_flow(network, p, shape))(params)))


def pooled_attention(params, inputs):
    """Attention with an additive padding mask, and the mean of what is not padding."""
    x = params["table"][inputs["ids"]]
    mask = inputs["mask"].astype(jnp.float32)
    logits = (x @ params["q"]) @ (x @ params["k"]).T + (1 - mask)[None] * -1e9
    hidden = jax.nn.softmax(logits) @ (x @ params["v"])
    return (hidden * mask[:, None]).sum(0) / mask[:, None].sum(0)


MASKS = {
    "integers": jax.ShapeDtypeStruct((3,), jnp.int32),
    "booleans": jax.ShapeDtypeStruct((3,), jnp.bool_),
    "an array": jnp.ones(3),
    "numpy's": np.ones(3, bool),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_padding_mask_is_no_source_of_flow(mask):
    shape = {"ids": IDS, "mask": MASKS[mask]}

    @jax.jit
    def scores(params):
        return sj.synflow(pooled_attention, shape)(params, sj.all_kept(params))

    got = {name: float(s.sum()) for name, s in scores(PARAMS).items()}
    want = {"table": 1, "v": 0.5, "q": 0.25, "k": 0.25}
    assert got == pytest.approx(want, rel=1e-5)

    def without(params, ids):
        return pooled_attention(params, {"ids": ids, "mask": jnp.ones(3)})

    assert R(pooled_attention, PARAMS, shape) == pytest.approx(R(without, PARAMS, IDS))


def test_a_constant_has_its_own_values():
    padded = {"ids": IDS, "mask": jnp.array([1, 1, 0])}
    whole = {"ids": IDS, "mask": jnp.array([1, 1, 1])}
    # Two of three entries attend to two of three: the mean over two is 2/3 as large.
    ratio = R(pooled_attention, PARAMS, padded) / R(pooled_attention, PARAMS, whole)
    assert ratio == pytest.approx(2 / 3, rel=1e-5)


def test_a_constant_may_be_traced_and_mapped_over():
    def network(params, inputs):
        return inputs["scale"] * (inputs["x"] @ params)

    def log_r(scale):
        return sj.log_flow(network, W, {"x": FLOATS, "scale": scale})

    got = jax.jit(jax.vmap(log_r))(jnp.array([1.0, -3.0]))
    np.testing.assert_allclose(jnp.exp(got), [10, 30], rtol=1e-5)


def test_numbers_are_a_source_only_where_there_is_no_other():
    def images(params, x):
        return (x.astype(jnp.float32) / 255) @ params

    as_bytes = jax.ShapeDtypeStruct((1, 2), jnp.uint8)
    assert R(images, W, as_bytes) == pytest.approx(10 / 255, rel=1e-5)

    def with_time(params, inputs):
        time = inputs["t"].astype(jnp.float32)
        return inputs["x"] @ params + time @ params

    assert R(with_time, W, {"x": FLOATS, "t": as_bytes}) == pytest.approx(10, rel=1e-5)

    def with_lengths(params, inputs):
        lengths = inputs["lengths"].astype(jnp.float32)[:, None]
        return (params["table"][inputs["ids"]] @ params["v"]) / lengths

    shape = {"ids": IDS, "lengths": jax.ShapeDtypeStruct((3,), jnp.int32)}
    assert R(with_lengths, PARAMS, shape) == pytest.approx(150, rel=1e-5)

    def one_hot(params, inputs):
        rows = jax.nn.one_hot(inputs["ids"], 5) @ params["table"]
        return rows * inputs["lengths"].astype(jnp.float32)[:, None]

    assert R(one_hot, PARAMS, shape) == pytest.approx(30, rel=1e-5)

    def chosen(params, ids):
        hot = jnp.where(ids[:, None] == jnp.arange(5)[None], 1.0, 0.0)
        return hot @ params["table"]

    assert R(chosen, PARAMS, IDS) == pytest.approx(30, rel=1e-5)


def test_every_function_that_reads_a_network_takes_constants():
    params = {"kernel": W, "other": {"kernel": W}}

    def network(p, inputs):
        hidden = jax.nn.relu(inputs["x"] @ p["kernel"] + inputs["bias"][None])
        return hidden @ p["other"]["kernel"] * inputs["zero"][None]

    shape = {"x": FLOATS, "bias": jnp.ones(2), "zero": np.array([1.0, 0.0], np.float32)}
    masks = sj.all_kept(params)
    score = sj.synflow(network, shape)
    kept, info = sj.prune(score, params, 0.5, rounds=3)
    assert bool(info.certificate) and sj.count(kept) == 4
    assert float(score(params, masks)["other"]["kernel"][:, 1].sum()) == 0
    live = sj.effective_masks(network, params, masks, shape)
    np.testing.assert_array_equal(live["other"]["kernel"], [[True, False]] * 2)
    assert sj.conservation(network, params, masks, shape).gap < 1e-5
    assert sj.connectivity(network, params, masks, shape).connected
    assert sj.unreached(network, params, shape) == []
    assert sj.fewest_weights(network, params, shape) == 2


@pytest.mark.parametrize(
    "shape",
    [
        {"x": jnp.ones(2)},
        (jnp.ones(2), 3),
        (True, 3),
        [jnp.int32(3)],
        {"x": FLOATS, "n": 3},
    ],
)
def test_inputs_that_are_neither_shapes_nor_arrays_are_shown(shape):
    with pytest.raises(ValueError, match="`input_shape` is the shape of one example"):
        sj.log_flow(lambda w, x: x @ w, W, shape)


def test_numpy_integers_are_a_shape():
    assert R(lambda w, x: x @ w, W, (np.int64(2),)) == pytest.approx(10)


# --- calls, loops and side effects --------------------------------------------------------


def test_printing_has_no_flow(capfd):
    def network(params, x):
        jax.debug.print("{}", x.sum())
        jax.debug.callback(lambda _: None, x)
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": W, "b": W}
    silent = R(lambda p, x: x @ p["a"] @ p["b"], params, (2,))
    assert R(network, params, (2,)) == pytest.approx(silent)
    masks = sj.all_kept(params)
    found = sj.conservation(network, params, masks, (2,))
    assert [cut.layers for cut in found.cuts] == [("a",), ("b",)]
    jax.effects_barrier()


def test_a_scan_of_no_steps_passes_its_carry():
    def network(params, x):
        rows = jnp.zeros((0, 1, 2))
        carry, ys = jax.lax.scan(lambda c, r: (c @ params + r @ params, c), x, rows)
        return carry @ params + ys.sum(0) @ params

    assert R(network, W, (2,)) == pytest.approx(10, rel=1e-5)


def test_the_flow_of_a_rematerialised_network_is_rematerialised():
    """Its backward pass keeps the inputs of the blocks, and not what is inside of them."""

    def block(x, w):
        for _ in range(8):
            x = jnp.tanh(x @ w) @ w.T
        return x, ()

    def network(block):
        return lambda ws, x: jax.lax.scan(block, x, ws)[0]

    def bytes_needed(block):
        shape = jax.ShapeDtypeStruct((256, 16), jnp.float32)
        score = sj.synflow(network(block), shape)
        params = jnp.ones((4, 16, 16))
        compiled = jax.jit(lambda p: score(p, sj.all_kept(p))).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept = jax.checkpoint(block, prevent_cse=False)
    saveable = jax.checkpoint_policies.everything_saveable
    all_kept = jax.checkpoint(block, prevent_cse=False, policy=saveable)
    assert bytes_needed(kept) < 0.6 * bytes_needed(block)
    assert bytes_needed(all_kept) > 0.9 * bytes_needed(block)


def test_a_loop_over_layers_masks_each_layer_by_itself():
    """If it is rematerialised: all masked weights at once would be a copy of them."""
    block = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), ()), prevent_cse=False)
    score = sj.synflow(lambda ws, x: jax.lax.scan(block, x, ws)[0], (32,))
    params = jnp.zeros((64, 32, 32))
    masks = jnp.ones(params.shape, bool)

    def bytes_needed(function):
        compiled = jax.jit(function).lower(params, masks).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def before(params, masks):
        return score(jnp.where(masks, params, 0), sj.all_kept(params))

    assert bytes_needed(score) < 0.2 * params.nbytes
    assert bytes_needed(before) > params.nbytes


def test_sums_of_weights_are_followed_into_rematerialised_parts_and_loops():
    """The paths through a sum of weights are those through the weights."""

    def times_sums(x, w):
        return x @ w.sum(axis=1, keepdims=True) * jnp.ones((1, 2))

    def repeated(params, x):
        return jax.lax.scan(lambda x, w: (times_sums(x, w), None), x, params)[0]

    def unrolled(params, x):
        return times_sums(jax.checkpoint(times_sums)(x, params[0]), params[1])

    params = jnp.array([[[1.0, -2.0], [3.0, -4.0]], [[5.0, -6.0], [-7.0, 8.0]]])
    want = jnp.abs(params) / jnp.array([10.0, 26.0])[:, None, None]
    for network in (repeated, unrolled):
        masks = jnp.ones(params.shape, bool)
        nets.assert_close(sj.synflow(network, (2,))(params, masks), want)
