"""Mixtures of experts and vector quantisation: what the flow decides, and what it loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from tests import nets

EXPERTS, TOKENS, WIDTH = 3, 2, 4
SHAPES = dict(stem=(4, WIDTH), router=(WIDTH, EXPERTS), experts=(EXPERTS, WIDTH, WIDTH))
PARAMS = {n: {"kernel": w} for n, w in nets.draw(SHAPES | {"head": (WIDTH, 2)}, 1).items()}
INPUT = jax.ShapeDtypeStruct((TOKENS, 4), jnp.float32)


def looked_up(x, w, gates, chosen):
    """The weights of the chosen experts."""
    y = jnp.einsum("bi,bkio->bko", x, w[chosen])
    return (gates[..., None] * y).sum(1)


def one_hot(x, w, gates, chosen):
    """All experts, and a mask of those that are chosen."""
    y = jnp.einsum("bi,eio->beo", x, w)
    return jnp.einsum("beo,bke,bk->bo", y, jax.nn.one_hot(chosen, EXPERTS), gates)


def written(x, w, gates, chosen):
    """The gates of all experts, in which those of the chosen ones are written."""
    rows = jnp.arange(TOKENS)[:, None]
    gates = jnp.zeros((TOKENS, EXPERTS)).at[rows, chosen].set(gates)
    return jnp.einsum("beo,be->bo", jnp.einsum("bi,eio->beo", x, w), gates)


def dispatched(x, w, gates, chosen):
    """Each expert has a place for every token, as in a Switch transformer."""
    mask = jax.nn.one_hot(chosen, EXPERTS, dtype=jnp.int32)
    place = (jnp.cumsum(mask, axis=0) - 1) * mask
    mask = (mask * (place < TOKENS).astype(jnp.int32)).astype(jnp.float32)
    mask = mask[..., None] * jax.nn.one_hot(place, TOKENS)
    inputs = jnp.einsum("bkec,bi->keci", mask, x)
    outputs = jnp.einsum("keci,eio->keco", inputs, w)
    return jnp.einsum("bkec,keco,bk->bo", mask, outputs, gates)


def ragged(x, w, gates, chosen):
    """Tokens are sorted by their experts."""
    expert = chosen.reshape(-1)
    order = jnp.argsort(expert)
    rows = jnp.repeat(x, chosen.shape[1], axis=0)[order]
    y = lax.ragged_dot(rows, w, jnp.bincount(expert, length=EXPERTS))
    y = y[jnp.argsort(order)].reshape(*chosen.shape, -1)
    return (gates[..., None] * y).sum(1)


WRITINGS = [looked_up, one_hot, written, dispatched, ragged]


def mixture(writing, k):
    def network(params, x):
        x = x @ params["stem"]["kernel"]
        gates, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]["kernel"]), k)
        y = writing(x, params["experts"]["kernel"], gates, chosen)
        return y @ params["head"]["kernel"]

    return network


@pytest.fixture(scope="module")
def results():
    def of(params):
        masks = sj.all_kept(params)
        return {
            (writing.__name__, k): (
                sj.log_flow(mixture(writing, k), params, INPUT),
                sj.synflow(mixture(writing, k), INPUT)(params, masks),
            )
            for writing in WRITINGS
            for k in (1, 2, EXPERTS)
        }

    return jax.device_get(jax.jit(of)(PARAMS))


@pytest.mark.parametrize("k", [1, 2, EXPERTS])
def test_every_way_to_write_a_mixture_has_the_same_scores(k, results):
    flow, scores = results["looked_up", k]
    shares = {name: float(leaf["kernel"].sum()) for name, leaf in scores.items()}
    want = {"stem": 1, "router": 0.5, "experts": 0.5, "head": 1}
    assert shares == pytest.approx(want, rel=1e-5)
    for writing in WRITINGS:
        same, others = results[writing.__name__, k]
        assert same == pytest.approx(flow, rel=1e-5)
        for name in SHAPES:
            got, leaf = others[name]["kernel"], scores[name]["kernel"]
            np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-8, err_msg=name)


def test_experts_that_the_ones_do_not_choose_score_nothing(results):
    logits = jnp.ones((1, 4)) @ abs(PARAMS["stem"]["kernel"])
    order = np.argsort(-(logits @ abs(PARAMS["router"]["kernel"]))[0])
    for k in (1, 2, EXPERTS):
        scores = results["looked_up", k][1]["experts"]["kernel"].sum((1, 2))
        assert (scores[order[:k]] > 0.01).all() and (scores[order[k:]] == 0).all()


@pytest.mark.parametrize("writing", [looked_up, one_hot, dispatched])
def test_every_expert_may_lie_on_a_path(writing):
    masks = sj.all_kept(PARAMS)
    network = mixture(writing, 1)
    reached = sj.effective_masks(network, PARAMS, masks, INPUT)
    assert sj.count(reached) == sj.count(masks)
    assert sj.fewest_weights(network, PARAMS, INPUT) == 3
    without = masks | {"experts": {"kernel": masks["experts"]["kernel"].at[1].set(False)}}
    assert sj.connectivity(network, PARAMS, without, INPUT).connected
    none = masks | {"experts": {"kernel": jnp.zeros_like(masks["experts"]["kernel"])}}
    assert not sj.connectivity(network, PARAMS, none, INPUT).connected
    assert sj.unreached(network, PARAMS, INPUT) == []


@pytest.mark.parametrize("writing", [written, ragged])
def test_a_question_about_paths_that_has_no_answer_is_refused(writing):
    with pytest.raises(sj.FlowError, match=r"test_routers.py:\d+ .*decide here which"):
        sj.effective_masks(mixture(writing, 1), PARAMS, sj.all_kept(PARAMS), INPUT)


@pytest.mark.parametrize("writing", WRITINGS)
def test_a_mixture_obeys_the_conservation_law(writing, results):
    scores = jax.tree.map(jnp.asarray, results[writing.__name__, 2][1])
    found = sj.conservation(
        mixture(writing, 2), PARAMS, sj.all_kept(PARAMS), INPUT, scores=scores
    )
    assert len(found.cuts) >= 2 and found.gap < 1e-5


def test_a_router_has_no_certificate():
    why = sj.synflow(mixture(one_hot, 1), INPUT).why_not_certifiable(PARAMS, [True] * 4)
    assert "`top_k`" in why and "keeps no paths" in why


def test_all_experts_are_kept_when_all_are_scored():
    """What one would rather do: score with k experts, all of them."""
    chosen, everyone = (
        sj.prune(sj.synflow(mixture(one_hot, k), INPUT), PARAMS, 0.4, rounds=5)[0]
        for k in (1, EXPERTS)
    )
    counts = [np.asarray(m["experts"]["kernel"].sum((1, 2))) for m in (chosen, everyone)]
    assert (counts[0] == 0).sum() == EXPERTS - 1 and (counts[1] > 0).all()


# --- vector quantisation ------------------------------------------------------------------


def quantised(straight_through):
    def network(params, x):
        z = x @ params["stem"]["kernel"]
        codes = params["codes"]
        distance = (z**2).sum(1, keepdims=True) - 2 * z @ codes.T + (codes**2).sum(1)[None]
        q = codes[jnp.argmin(distance, axis=1)]
        q = z + lax.stop_gradient(q - z) if straight_through else q
        return q @ params["head"]["kernel"]

    return network


def test_a_straight_through_quantisation_has_the_flow_of_what_it_quantises():
    params = {n: PARAMS[n] for n in ("stem", "head")} | {
        "codes": nets.draw({"c": (5, 4)})["c"]
    }

    def plain(params, x):
        return x @ params["stem"]["kernel"] @ params["head"]["kernel"]

    got = sj.log_flow(quantised(True), params, (4,))
    assert got == pytest.approx(float(sj.log_flow(plain, params, (4,))), rel=1e-6)
    scores = sj.synflow(quantised(True), (4,))(params, sj.all_kept(params))
    assert not scores["codes"].any()
    assert sj.log_flow(quantised(False), params, (4,)) == -jnp.inf
    assert sj.unreached(quantised(False), params, (4,)) == ["head/kernel", "stem/kernel"]
    with pytest.raises(ValueError, match="no flow reaches a prunable leaf"):
        sj.prune(sj.synflow(quantised(False), (4,)), params, 0.5)


def test_the_number_of_a_bin_is_no_place_to_read_at():
    def spline(params, x):
        y = x @ params["stem"]["kernel"]
        return params["codes"][jnp.searchsorted(jnp.arange(3.0), y[0])]

    with pytest.raises(
        sj.FlowError, match=r"`gather`, called at .*test_routers.py:.*`argmax` alone\)"
    ):
        sj.log_flow(spline, PARAMS | {"codes": jnp.ones((5, 4))}, (4,))
