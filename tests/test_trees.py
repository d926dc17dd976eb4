"""Trees: names, which leaves are prunable, and errors that name the leaf."""

import jax
import jax.numpy as jnp
import pytest

import synflow_jax as sj
from synflow_jax.precision import widened
from synflow_jax.trees import check_like, check_masks, prunable_leaves

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def test_names_join_keys_indices_and_attributes():
    tree = {"a": [jnp.ones(1), (jnp.ones(2),)], "b": jnp.ones(3)}
    assert sj.leaf_names(tree) == ["a/0", "a/1/0", "b"]


@pytest.mark.parametrize(
    ("name", "leaf", "expected"),
    [
        ("Dense_0/kernel", jnp.ones((2, 3)), True),
        ("layers/0/weight", jnp.ones((2, 3), jnp.bfloat16), True),
        ("kernel", jnp.ones((3, 3, 1, 1)), True),
        ("Dense_0/kernel/value", jnp.ones((2, 3)), True),
        ("Dense_0/bias", jnp.ones(3), False),
        ("norm/weight", jnp.ones(3), False),
        ("kernel", jnp.ones((2, 3), jnp.int32), False),
        ("kernel/scale", jnp.ones((2, 3)), False),
    ],
)
def test_kernels_are_floating_matrices_named_kernel_or_weight(name, leaf, expected):
    assert sj.is_kernel(name, leaf) is expected


def test_a_leaf_of_another_shape_is_named(no_typecheck):
    masks = {"dense": {"kernel": jnp.ones((3, 2), bool), "bias": jnp.ones(3, bool)}}
    with pytest.raises(ValueError) as error:
        check_like(masks, PARAMS, name="masks")
    assert str(error.value) == (
        "`masks['dense']['kernel']` has shape (3, 2), but its parameter has shape (2, 3)."
    )


def test_another_structure_is_shown_beside_the_wanted_one(no_typecheck):
    with pytest.raises(ValueError, match="(?s)`scores` must have.*parameters:.*scores:"):
        check_like([jnp.ones(3)], PARAMS, name="scores")


def test_masks_must_be_boolean(no_typecheck):
    with pytest.raises(ValueError, match=r"masks\['dense'\]\['bias'\].*float32.*boolean"):
        check_masks(PARAMS, PARAMS)


def test_the_check_works_while_tracing(no_typecheck):
    @jax.jit
    def traced(masks):
        check_masks(masks, PARAMS)
        return 0

    with pytest.raises(ValueError, match="structure of the parameters"):
        traced([jnp.ones(3, bool)])


def test_nothing_prunable_is_an_error_that_lists_the_leaves():
    with pytest.raises(ValueError, match="chose no leaf.*dense/bias, dense/kernel"):
        prunable_leaves(PARAMS, lambda path, leaf: False)


RESIDUAL = {
    "stem": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)},
    "block": {
        "kernel": jnp.ones((4, 4)),
        "shortcut": {"kernel": jnp.ones((4, 4))},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    },
    "linear": {"kernel": jnp.ones((4, 2))},
}


@pytest.mark.parametrize(
    ("prunable", "want"),
    [
        (sj.matching(), "block/kernel block/shortcut/kernel linear/kernel stem/kernel"),
        (sj.matching(without="linear/*"), "block/kernel block/shortcut/kernel stem/kernel"),
        (sj.matching(without=["linear/*", "*shortcut*"]), "block/kernel stem/kernel"),
        (sj.matching("*/bias"), "block/norm/bias stem/bias"),
        (sj.matching("*/scale", "stem/*"), "block/norm/scale stem/bias stem/kernel"),
        (
            sj.matching("*", without="*/kernel"),
            "block/norm/bias block/norm/scale stem/bias",
        ),
    ],
)
def test_leaves_are_chosen_by_patterns_of_their_names(prunable, want):
    chosen = prunable_leaves(RESIDUAL, prunable)
    names = [name for name, yes in zip(sj.leaf_names(RESIDUAL), chosen) if yes]
    assert names == want.split()
    masks, info = sj.prune(sj.magnitude(), RESIDUAL, 0.5, rounds=1, prunable=prunable)
    whole = [bool(mask.all()) for mask in jax.tree.leaves(masks)]
    assert all(kept for kept, yes in zip(whole, chosen) if not yes)


@pytest.mark.parametrize(
    "prunable", [sj.matching("*/kernels"), sj.matching(without=["linear/*", "conv/*"])]
)
def test_a_pattern_that_matches_nothing_is_an_error(prunable):
    with pytest.raises(
        ValueError, match="'(./kernels|conv/.)' of `prunable` matches no leaf.*stem/kernel"
    ):
        sj.prune(sj.magnitude(), RESIDUAL, 0.5, rounds=1, prunable=prunable)


def test_patterns_are_strings(no_typecheck):
    with pytest.raises(ValueError, match="a pattern is a string.*got 3"):
        sj.matching(3)


def test_whole_numbers_cannot_be_pruned():
    with pytest.raises(ValueError, match="`steps`, which has dtype int32"):
        prunable_leaves({"steps": jnp.arange(3)}, lambda path, leaf: True)


def test_widening_reaches_float32_and_leaves_whole_numbers_alone():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.arange(2), "c": jnp.ones(2)}
    assert [x.dtype for x in jax.tree.leaves(widened(tree))] == [
        jnp.float32,
        jnp.int32,
        jnp.float32,
    ]
