"""Against the authors' code in double precision, where masks are well defined.

Runs in a process of its own: ``JAX_ENABLE_X64=1 python -m pytest tests/x64``.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from tests import reference

CASES = ["fc_mnist", "conv_cifar10", "resnet20_c10", *reference.SHIFTED]
# The network of resnet20_c10 without statistics and shifts is that of resnet20_c10_bn.
ONCE = [
    pytest.param(case, marks=[pytest.mark.long] * (case == "resnet20_c10"))
    for case in CASES
]
SCHEDULES = {"exp100": sj.exponential, "lin100": sj.linear}


# Algorithm 1 of the paper to the letter.
prune = functools.partial(sj.prune, keep_connected=False)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("case", ONCE)
def test_one_shot_scores_agree_to_the_last_digits(case):
    score, params = reference.score(case, jnp.float64)
    scores = reference.kernels_of(jax.jit(score)(params, sj.all_kept(params)))
    total, stored = reference.read(case)["R"]["f64"], reference.arrays()
    for i, got in enumerate(scores):
        assert got.dtype == jnp.float64
        want = stored[f"{case}/scores/{i}"] / total
        np.testing.assert_allclose(reference.sampled(got, want), want, rtol=1e-11)


@pytest.mark.parametrize(
    "name, case",
    [
        pytest.param(
            name,
            case,
            # GraSP of a ResNet takes as long to compile as all others together.
            marks=[pytest.mark.long] * ((name, case) == ("grasp", "resnet20_c10_bn")),
        )
        for name in reference.SALIENCIES
        for case in ("fc_mnist_bias", "conv_cifar10", "resnet20_c10_bn")
    ],
)
def test_saliencies_agree_to_the_last_digits(name, case):
    score, params = reference.saliency(name, case, jnp.float64)
    scores = reference.kernels_of(jax.jit(score)(params, sj.all_kept(params)))
    reference.assert_saliencies_agree(name, case, scores, 1e-8)


# `check-long` holds all; of ResNet-20 tests/test_reference.py compares a single round.
SHORT = {("conv_cifar10", "exp100", 2)}


@pytest.mark.parametrize(
    "case, schedule, compression",
    [
        pytest.param(
            *run, marks=[pytest.mark.long] * (run not in SHORT and run[0][:2] != "fc")
        )
        for run in itertools.product(CASES, SCHEDULES, (1, 2, 3))
    ],
)
def test_masks_after_100_rounds_are_the_references_bit_for_bit(case, schedule, compression):
    score, params = reference.score(case, jnp.float64)
    want = reference.read(case)["masks"][f"synflow_{schedule}_c{compression}/f64"]
    masks, _ = prune(score, params, 10.0**-compression, schedule=SCHEDULES[schedule])
    assert [int(m.sum()) for m in reference.kernels_of(masks)] == want["kept"]
    assert reference.digest(masks) == want["sha_total"]


@pytest.mark.long  # tests/test_reference.py has one round in single precision
@pytest.mark.parametrize("compression", [1, 2])
def test_a_round_in_single_precision_differs_only_at_the_threshold(compression):
    """From the reference's own masks, ResNet-20, one more round."""
    score, params = reference.score("resnet20_c10", jnp.float64)
    name = f"synflow_exp100_c{compression}/f64"
    masks = reference.stored_masks("resnet20_c10", name, params)
    single = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    pruner = sj.iterative(score)
    k = reference.read("resnet20_c10")["masks"][name]["total_kept"] // 2
    step = jax.jit(pruner.step)
    state = pruner.init(params)._replace(masks=masks)
    in_double = step(state, params, jnp.uint32(k))[0].masks
    in_single = step(state, single, jnp.uint32(k))[0].masks
    reference.assert_differ_only_in_the_band(
        jax.jit(score)(params, masks), in_double, in_single
    )
