"""Facts about masks."""

import jax.numpy as jnp
import pytest

import synflow_jax as sj

PARAMS = {
    "a": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)},
    "b": {"kernel": jnp.ones((4, 1))},
    "none": jnp.ones((0, 3)),
}
MASKS = {
    "a": {"kernel": jnp.zeros((2, 4), bool).at[0, 1].set(True), "bias": jnp.ones(4, bool)},
    "b": {"kernel": jnp.zeros((4, 1), bool)},
    "none": jnp.ones((0, 3), bool),
}


def test_a_row_for_every_leaf():
    rows = [tuple(row) for row in sj.summarize(PARAMS, MASKS)]
    assert rows == [
        ("a/bias", (4,), 4, 4, 1.0),
        ("a/kernel", (2, 4), 8, 1, 0.125),
        ("b/kernel", (4, 1), 4, 0, 0.0),
        ("none", (0, 3), 0, 0, 1.0),
    ]


def test_collapsed_names_prunable_leaves_with_nothing_left():
    assert sj.collapsed(PARAMS, MASKS) == ["b/kernel"]
    assert sj.collapsed(PARAMS, sj.all_kept(PARAMS)) == []
    empty = {"kernel": jnp.ones((0, 3))}
    assert sj.collapsed(empty, sj.all_kept(empty)) == []
    only_a = lambda path, leaf: path == "a/kernel"  # noqa: E731
    assert sj.collapsed(PARAMS, MASKS, prunable=only_a) == []


def test_masks_that_do_not_fit_are_refused(no_typecheck):
    for function in (sj.summarize, sj.collapsed):
        with pytest.raises(ValueError, match="`masks` must have the structure"):
            function(PARAMS, {"a": MASKS["a"]})
