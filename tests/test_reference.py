"""Against the authors' PyTorch code on known weights, within a tolerance.

Scores, totals, and masks of a single round. Masks that are compared bit for bit, and
gradients of batches, are in tests/test_parity.py, which is compiled as users' programs are.
"""

import functools

import jax
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax.transform.network_flow import ones, total_flow
from tests import reference

CASES = ["fc_mnist", "conv_cifar10", "resnet20_c10", *reference.SHIFTED]
ORACLE = reference.DATA.parents[2] / "shared" / "oracle"

# Algorithm 1 of the paper to the letter.
prune = functools.partial(sj.prune, keep_connected=False)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize(
    "case",
    [  # tests/x64 holds it to more digits
        pytest.param(case, marks=[pytest.mark.long] * (case == "resnet20_c10_bn"))
        for case in CASES
    ],
)
def test_one_shot_scores_times_r_are_the_references(case):
    score, params = reference.score(case)
    scores = reference.kernels_of(jax.jit(score)(params, sj.all_kept(params)))
    total, stored = reference.read(case)["R"]["f64"], reference.arrays()
    for i, got in enumerate(scores):
        want = stored[f"{case}/scores/{i}"] / total
        np.testing.assert_allclose(reference.sampled(got, want), want, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_one_shot_score_is_the_references(case):
    """All of them, where the reference's full outputs are at hand."""
    path = ORACLE / f"{case}.npz"
    if not path.is_file():
        pytest.skip("the full outputs of the reference are not here")
    score, params = reference.score(case)
    scores = reference.kernels_of(jax.jit(score)(params, sj.all_kept(params)))
    total = reference.read(case)["R"]["f64"]
    with np.load(path) as stored:
        for i, got in enumerate(scores):
            want = stored[f"synflow_f64/{i}"].reshape(got.shape) / total
            np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_total_flow_is_the_references(case):
    apply_fn, params, shape = reference.network(case)
    biases = case in reference.SHIFTED
    r = jax.jit(lambda p: total_flow(apply_fn, p, ones(shape), biases=biases))(params)
    got = np.log(float(r.mantissa)) + float(r.exponent) * np.log(2)
    np.testing.assert_allclose(got, np.log(reference.read(case)["R"]["f64"]), rtol=1e-6)


@pytest.mark.parametrize("compression", [1, 2, 3])
def test_one_round_of_resnet20_from_equal_masks_is_the_references(compression):
    score, params = reference.score("resnet20_c10")
    name = f"synflow_1it_c{compression}/f32"
    theirs = reference.stored_masks("resnet20_c10", name, params)
    ours, info = prune(score, params, 10.0**-compression, rounds=1)
    want = reference.read("resnet20_c10")["masks"][name]
    # Where scores tie at the threshold the reference keeps none of them.
    assert 0 <= int(info.kept[0]) - want["total_kept"] <= 5
    scores = jax.jit(score)(params, sj.all_kept(params))
    reference.assert_differ_only_in_the_band(scores, ours, theirs)


@pytest.fixture(scope="module")
def vgg():
    with jax.numpy_dtype_promotion("standard"):
        return reference.score("vgg16bn_c10")


def test_one_round_of_vgg16_keeps_the_references_counts(vgg):
    score, params = vgg
    for compression in (1, 2, 3):
        masks, _ = prune(score, params, 10.0**-compression, rounds=1)
        counts = np.array([m.sum() for m in reference.kernels_of(masks)])
        stored = reference.read("vgg16bn_c10")["masks"]
        want = np.array(stored[f"synflow_1it_c{compression}/f64"]["kept"])
        assert abs(counts - want).max() <= 2


@pytest.mark.long  # beside its one round above
@pytest.mark.parametrize("compression", [1, 2, 3])
def test_layer_counts_of_vgg16_lie_within_the_references_own_spread(vgg, compression):
    """On an all-ones input its max-pooling positions tie as well, and rounding decides:
    the bound is twice the largest relative difference of its f32 and f64 runs."""
    score, params = vgg
    stored = reference.read("vgg16bn_c10")["masks"]
    single, double = (
        np.array(stored[f"synflow_exp100_c{compression}/{precision}"]["kept"])
        for precision in ("f32", "f64")
    )
    masks, info = prune(score, params, 10.0**-compression)
    counts = np.array([m.sum() for m in reference.kernels_of(masks)])
    assert counts.sum() == info.kept[-1] == double.sum()
    spread = 2 * (abs(single - double) / double).max()
    assert (abs(counts - double) / double).max() <= spread
