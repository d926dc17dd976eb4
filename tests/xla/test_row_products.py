"""Products of few rows with a matrix against the plain product, and what they store."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import synflow_jax as sj
from synflow_jax.pruning.criterion import score_on
from synflow_jax.xla import row_products
from synflow_jax.xla.backends import Backend
from synflow_jax.xla.row_products import in_parts, matrix_product, row_product
from tests import nets

CPU = Backend(True, True)
AS_WRITTEN = (((1,), (0,)), ((), ()))
in_parts_only = pytest.mark.skipif(
    not row_products._TRANSPOSES, reason="this JAX cannot transpose the loop over parts"
)


@pytest.fixture
def small(monkeypatch):
    """Lets a matrix of 24 rows of 8 entries have three parts of eight rows."""
    monkeypatch.setattr(row_products, "_LARGE", 24 * 8)
    monkeypatch.setattr(row_products, "_PART", 11 * 8)


def _case(rows=24, columns=8):
    keys = jax.random.split(jax.random.key(0), 4)
    row = jax.random.uniform(keys[0], (1, rows))
    weight = jax.random.normal(keys[1], (rows, columns)).at[3].set(0)
    mask = jax.random.bernoulli(keys[2], 0.5, (rows, columns))
    return row, weight, mask, jax.random.normal(keys[3], (1, columns))


def _whole(row, weight, mask):
    return row @ jnp.abs(weight if mask is None else jnp.where(mask, weight, 0))


@in_parts_only
@pytest.mark.parametrize("masked", [True, False])
def test_value_and_derivatives_are_those_of_the_whole_product(small, masked):
    row, weight, mask, change = _case()
    mask = mask if masked else None

    def results(product):
        def of(row, weight):
            return product(row, weight, mask)

        out, back = jax.vjp(of, row, weight)
        moves = jnp.cos(row), jnp.sin(weight)
        return out, back(change), jax.jvp(of, (row, weight), moves)

    got, want = jax.jit(lambda: results(row_product))(), results(_whole)
    nets.assert_close(got, want, rtol=1e-5)
    several = jax.vmap(row_product, (0, 0, None))
    rows, weights = jnp.stack([row, 2 * row]), jnp.stack([weight, -weight])
    nets.assert_close(several(rows, weights, mask)[1], 2 * got[0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 16), (17,)])
def test_a_product_of_few_rows_has_the_derivatives_of_any(shape):
    keys = jax.random.split(jax.random.key(1), 3)
    rows = jax.random.uniform(keys[0], (*shape, 24))
    matrix = jax.random.uniform(keys[1], (24, 8))
    change = jax.random.uniform(keys[2], (*shape, 8))

    def results(product):
        out, back = jax.vjp(product, rows, matrix)
        _, in_matrix = jax.vjp(lambda matrix: product(rows, matrix), matrix)
        _, in_rows = jax.vjp(lambda rows: product(rows, matrix), rows)
        moves = jnp.cos(rows), jnp.exp(matrix)
        moved = jax.jvp(product, (rows, matrix), moves)
        return out, back(change), in_matrix(change), in_rows(change), moved

    got, want = jax.jit(lambda: results(matrix_product))(), results(jnp.matmul)
    nets.assert_close(got, want, rtol=1e-5)
    several = jax.vmap(matrix_product)(jnp.stack([rows, -rows]), jnp.stack([matrix] * 2))
    nets.assert_close(several[1], -got[0], rtol=1e-5)


@pytest.mark.parametrize("pixels", [2, 4])
def test_gradients_of_kernels_of_small_images_are_no_products_of_their_own(pixels):
    params = jax.random.normal(jax.random.key(0), (3, 3, 64, 32))

    def network(params, x):
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return lax.conv_general_dilated(x, params, (1, 1), "SAME", **numbers)

    score = sj.synflow(network, (pixels, pixels, 64))
    compiled = jax.jit(score_on(score, CPU)).lower(params, params > 0).compile().as_text()
    results = re.findall(r"= f32\[([0-9,]*)\]\S* dot\(", compiled)
    assert f"{pixels**2},32" in results and "576,32" not in results


def test_infinities_behind_a_mask_stay_there(small):
    row, weight, mask, _ = _case()
    broken = jnp.where(mask, weight, jnp.nan)
    nets.assert_close(row_product(row, broken, mask), _whole(row, weight, mask), rtol=1e-5)


@in_parts_only
def test_parts_are_for_one_row_and_a_large_matrix_on_a_cpu(small):
    row, weight, *_ = _case()
    assert in_parts(CPU, row, weight, AS_WRITTEN)
    assert in_parts(CPU, row[0], weight, (((0,), (0,)), ((), ())))
    assert not in_parts(Backend(False, True), row, weight, AS_WRITTEN)
    assert not in_parts(CPU, jnp.ones((2, 24)), weight, AS_WRITTEN)
    assert not in_parts(CPU, row, weight[:, :7], AS_WRITTEN)
    assert not in_parts(CPU, row, weight.T, (((1,), (1,)), ((), ())))
    # 23 rows have no equal parts but single rows.
    assert not in_parts(CPU, row[:, :23], jnp.ones((23, 9)), AS_WRITTEN)


def test_a_jax_that_cannot_transpose_the_loop_takes_the_whole_product(small, monkeypatch):
    monkeypatch.setattr(row_products, "_TRANSPOSES", False)
    row, weight, *_ = _case()
    assert not in_parts(CPU, row, weight, AS_WRITTEN)


def test_questions_about_paths_do_not_take_parts(small):
    """Their flow says how many weights a path has, and not how large they are."""
    params = {"a/kernel": jnp.ones((2, 24)), "b/kernel": 1e-9 * jnp.ones((24, 8))}

    def network(params, x):
        return x @ params["a/kernel"] @ params["b/kernel"]

    assert sj.fewest_weights(network, params, (2,)) == 2


@in_parts_only
def test_scores_of_a_large_layer_need_no_copy_of_it():
    params = {
        "first": jax.random.normal(jax.random.key(0), (2, 4096)),
        "large": jax.random.normal(jax.random.key(1), (4096, 2048)),
    }
    score = sj.synflow(lambda p, x: jax.nn.relu(x @ p["first"]) @ p["large"], (2,))
    masks = jax.tree.map(lambda w: w > 0, params)
    compiled = jax.jit(score_on(score, CPU)).lower(params, masks).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < params["large"].nbytes / 4
    first, large = (np.where(masks[k], np.abs(w), 0) for k, w in params.items())
    paths = first.sum(0)[:, None] * large
    scores = compiled(params, masks)
    nets.assert_close(scores["large"], paths / paths.sum(), rtol=1e-5)
    nets.assert_close(scores["first"], first * large.sum(1) / paths.sum(), rtol=1e-5)
