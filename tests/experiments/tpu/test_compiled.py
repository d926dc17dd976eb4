"""What is read from compiled programs, and the decoders that are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments.tpu import compiled, decoders, programs
from synflow_jax import models
from tests import nets

HLO = """
  %a = f32[16,4]{1,0:T(8,128)} all-gather(%x), op_name="jit(all_rounds)/while/dot_general"
  %b = (u32[4]{0}, s8[2,3]{1,0}) all-reduce-start(%y, %z), op_name="jit(_selected)/sum"
  %c = f32[8]{0} add(%all-reduce.1, %a), op_name="all-gather("
"""


def test_exchanges_are_read_with_their_bytes():
    assert [*compiled.exchanges(HLO)] == [
        ("all-gather", 256, False),
        ("all-reduce", 22, True),
    ]


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_products_below_the_highest_precision_are_seen(precision):
    product = lambda x: jnp.dot(x, x, precision=precision)  # noqa: E731
    text = jax.jit(product).lower(jnp.ones((2, 2))).as_text()
    assert compiled.products(text) == (1, precision == "highest")


def test_outputs_of_convolutions_are_counted():
    apply_fn, params, shape = models.build("conv", jax.random.key(0))
    text = jax.jit(apply_fn).lower(params, jnp.ones((1, *shape))).as_text()
    assert programs.outputs(text) == 2 * 32 * 32 * 32


SMALL = {
    name: decoders.Decoder(2, width=8, hidden=16, heads=2, tokens=11, gated=gated)
    for name, gated in (("plain", False), ("gated", True))
}


@pytest.mark.parametrize("name", SMALL)
def test_decoders_are_scored_and_each_layer_conserves_the_flow(name):
    decoder = SMALL[name]
    params = decoders.initialised(decoders.shapes(decoder))
    tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    scores = jax.jit(sj.synflow(decoder, tokens))(params, sj.all_kept(params))
    head = scores["head"]["kernel"].sum()
    np.testing.assert_allclose(head, 1, rtol=1e-4)
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(scores))


def test_a_decoder_sees_no_later_tokens():
    decoder = SMALL["gated"]
    params = decoders.initialised(decoders.shapes(decoder))
    one, other = jnp.array([[1, 2, 3, 4]]), jnp.array([[1, 2, 3, 9]])
    run = jax.jit(lambda params, x: decoder(params, x))
    got, want = run(params, one), run(params, other)
    nets.assert_close(got[:, :3], want[:, :3])
    assert not np.allclose(got[:, 3], want[:, 3])


@pytest.mark.parametrize(
    ("name", "size"), [("100M", 0.13e9), ("1.3B", 1.34e9), ("7B", 6.7e9)]
)
def test_decoders_have_the_sizes_that_their_names_say(name, size):
    leaves = jax.tree.leaves(decoders.shapes(decoders.DECODERS[name]))
    assert sum(leaf.size for leaf in leaves) == pytest.approx(size, rel=0.05)


@pytest.mark.long
def test_a_decoder_of_real_size_is_pruned_in_little_memory():
    decoder = decoders.DECODERS["100M"]
    params, tokens = decoders.shapes(decoder), jax.ShapeDtypeStruct((1, 128), jnp.int32)
    masks = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, bool), params)
    weights, score = compiled.on_each(params), sj.synflow(decoder, tokens)

    def copies(lowered):
        return lowered.compile().memory_analysis().temp_size_in_bytes / weights

    gradient = jax.grad(lambda params, x: decoder(params, x).sum())
    plain = copies(jax.jit(gradient).lower(params, tokens))
    assert copies(jax.jit(score).lower(params, masks)) <= plain + 0.5
    assert copies(sj.lower_prune(score, params, 0.1, platform="cpu")) <= 2
