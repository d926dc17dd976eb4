"""Models of other libraries as they come, where those are installed: not by `make test`.

pip install "transformers<5" dm-haiku && pytest tests/interop/test_third_party.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

IDS = jax.ShapeDtypeStruct((1, 16), jnp.int32)


@pytest.fixture(scope="module")
def big_bird():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "FlaxBigBirdModel"):
        pytest.skip("its Flax models are in transformers<5")
    config = transformers.BigBirdConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        attention_type="original_full",
    )
    model = transformers.FlaxBigBirdModel(config, input_shape=(1, 16), seed=0)

    def network(params, x):
        ids, mask = x
        return model(ids, attention_mask=mask, params=params).last_hidden_state

    return network, model.params


def totals(network, params, mask):
    with jax.numpy_rank_promotion("allow"):
        scores = sj.synflow(network, (IDS, mask))(params, sj.all_kept(params))
    named = zip(sj.leaf_names(scores), jax.tree.leaves(scores))
    return {name: float(leaf.sum()) for name, leaf in named if name.endswith("kernel")}


def test_the_integer_mask_of_big_bird_lets_queries_and_keys_have_their_flow(big_bird):
    """The mask becomes (1 - mask) * -1e9 on the logits, before the softmax."""
    as_input = totals(*big_bird, IDS)
    as_array = totals(*big_bird, jnp.ones(IDS.shape, jnp.int32))
    assert as_input == pytest.approx(as_array, rel=1e-5)
    for layer in range(2):
        at = f"encoder/layer/{layer}/attention/self"
        query, key, value = (
            as_input[f"{at}/{x}/kernel"] for x in ("query", "key", "value")
        )
        # The product of two flows has half of its paths through each factor, and that of
        # queries and keys is one factor of the product with the values.
        assert query == pytest.approx(key, rel=1e-4)
        assert value == pytest.approx(query + key, rel=1e-4)
        assert query > 0.2


def test_haikus_resnet_is_refused_with_its_zero_head_and_pruned_when_it_is_filled():
    hk = pytest.importorskip("haiku")

    def forward(x, training):
        resnet = hk.nets.ResNet(
            blocks_per_group=(1, 1, 1, 1),
            num_classes=5,
            channels_per_group=(8, 8, 8, 8),
            bottleneck=False,
        )
        return resnet(x, is_training=training)

    net = hk.transform_with_state(forward)
    with jax.numpy_rank_promotion("allow"):
        params, state = net.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), True)

        def network(params, x):
            return net.apply(params, state, None, x, False)[0]

        score = sj.synflow(network, (32, 32, 3))
        prune = {"rounds": 3, "prunable": lambda name, leaf: name.endswith("/w")}
        with pytest.raises(ValueError, match=r"filled\(params, \{'res_net/~/logits/w': 1"):
            sj.prune(score, params, 0.1, **prune)
        filled = sj.filled(params, {"*logits/w": 1.0})
        masks, info = sj.prune(score, filled, 0.1, **prune)
        whole = sum(
            leaf.size
            for name, leaf in zip(sj.leaf_names(params), jax.tree.leaves(params))
            if name.endswith("/w")
        )
        assert int(info.kept[-1]) == sj.num_kept(whole, 0.1)
        assert np.isfinite(sj.log_flow(network, sj.apply_masks(filled, masks), (32, 32, 3)))
