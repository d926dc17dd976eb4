"""The methods that the experiments compare, and the images that they see."""

import dataclasses
import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import synflow_jax as sj
from experiments import layer_collapse, methods
from experiments.datasets.load import load
from experiments.figures import style
from tests.experiments.small import Normed

pytestmark = pytest.mark.usefixtures("standard_promotion")

DENSITY = 0.2
SMALL = Normed(units=12)  # compiles fast, and has what the methods have to mind


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def problem(digits):
    with jax.numpy_dtype_promotion("standard"):
        batches = methods.batches(digits, 0, each=3, size=16)
        return methods.problem(SMALL, jax.random.key(0), (8, 8, 1), batches)


@pytest.fixture(scope="module")
def masks(problem):
    """The masks of every method, from one key."""
    with jax.numpy_dtype_promotion("standard"):
        return {
            name: methods.pruner(name, problem, jax.random.key(1), rounds=5)(DENSITY)
            for name in methods.LABELS
        }


def kept(masks):
    return [int(mask.sum()) for mask in jax.tree.leaves(masks)]


def differ(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two))
    return any((a != b).any() for a, b in pairs)


def test_the_methods_are_those_of_the_paper_and_the_controls():
    named = (*methods.PAPER, *methods.CONTROLS, *methods.DATA)
    assert tuple(sorted(methods.LABELS)) == tuple(sorted(named))
    assert set(style.MARKS) == set(methods.LABELS)
    colors, markers = zip(*style.MARKS.values())
    assert len(set(colors)) == len(set(markers)) == len(named)


EXACT = [method for method in methods.LABELS if method != "certified_synflow"]


@pytest.mark.parametrize("method", EXACT)
def test_every_method_keeps_exactly_the_number(method, problem, masks):
    leaves = zip(jax.tree.leaves(problem.params), jax.tree.leaves(masks[method]))
    of_kernels = [(p.size, int(m.sum())) for p, m in leaves if p.ndim > 1]
    sizes, counts = zip(*of_kernels)
    assert sum(counts) == sj.num_kept(sum(sizes), DENSITY)


@pytest.mark.parametrize(
    "method", ["shuffled_synflow", "synflow_densities", "inverted_synflow"]
)
def test_controls_of_synflow_keep_its_counts_but_other_weights(method, masks):
    assert kept(masks[method]) == kept(masks["synflow"])
    assert differ(masks[method], masks["synflow"])
    assert kept(masks["random"]) != kept(masks["synflow"])


def test_reinitialised_masks_are_those_of_synflow_on_other_weights(problem, masks):
    assert not differ(masks["reinitialised_synflow"], masks["synflow"])
    again = problem.initial(jax.random.key(7))
    chex.assert_trees_all_equal_shapes(again, problem.variables)
    assert differ(again["params"], problem.params)


def test_what_the_input_is_changes_the_flow(problem, masks):
    others = ("synflow_on_images", "synflow_on_noise", "synflow_in_training")
    assert all(differ(masks[name], masks["synflow"]) for name in others)


def test_random_labels_are_the_labels_in_another_order(problem, masks):
    for name in ("snip", "grasp"):
        assert differ(masks[f"{name}_random_labels"], masks[name])


def test_ntk_sap_draws_anew_in_every_round(problem):
    score = jax.jit(methods.score_fn("ntk_sap", problem, jax.random.key(1)))
    whole = sj.all_kept(problem.params)
    first = jax.tree.map(lambda mask: mask.at[(0,) * mask.ndim].set(False), whole)
    chex.assert_trees_all_equal(score(problem.params, whole), score(problem.params, whole))
    # One weight less, of thousands: other draws change every score.
    before, after = (jax.tree.leaves(score(problem.params, m)) for m in (whole, first))
    changed = [float(jnp.mean(a != b)) for a, b in zip(before, after) if a.ndim > 1]
    assert min(changed) > 0.9


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_iterating_finds_other_masks_than_one_round(method, masks):
    assert differ(masks[f"iterative_{method}"], masks[method])


@pytest.mark.parametrize("name", ["obd", "iterative_random", "iterative_synflow", ""])
def test_other_methods_are_refused(name, problem):
    with pytest.raises(ValueError, match="there are random, magnitude"):
        methods.pruner(name, problem, jax.random.key(0))


def test_the_batches_have_as_many_images_of_every_class(digits):
    batches = methods.batches(digits, 0, each=7, size=32)
    assert batches["images"].shape == (5, 14, 8, 8, 1)  # 70 do not go in 3 equal parts
    assert batches["labels"].shape == (5, 14)
    labels = np.asarray(batches["labels"]).reshape(-1)
    np.testing.assert_array_equal(np.bincount(labels), [7] * 10)
    # Each is a training image of its label, scaled, and none comes twice.
    scaled = methods.images.normalise(
        methods.images.recipe("digits"), jnp.asarray(digits.train_images)
    )
    places = {np.asarray(x).tobytes(): i for i, x in enumerate(scaled)}
    found = [places[np.asarray(x).tobytes()] for x in batches["images"].reshape(70, 8, 8)]
    np.testing.assert_array_equal(digits.train_labels[found], labels)
    assert len(set(found)) == 70


def test_the_seed_draws_the_batches(digits):
    one, same, other = (methods.batches(digits, s, each=2)["images"] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_the_loss_sees_the_batch_and_scoring_does_not(problem):
    batch = jax.tree.map(lambda leaf: leaf[0], problem.batches)
    moved = batch | {"images": 3.0 * batch["images"]}
    loss_fn = methods.cross_entropy(problem.logits_fn)
    # The first batch normalisation takes the factor out again, if it looks at the batch.
    np.testing.assert_allclose(
        loss_fn(problem.params, batch),
        loss_fn(problem.params, moved),
        rtol=1e-3,
    )
    logits = problem.apply_fn(problem.params, batch["images"])
    assert (logits != problem.apply_fn(problem.params, moved["images"])).any()


def test_grasp_alone_divides_the_outputs_by_its_temperature(problem):
    batch = jax.tree.map(lambda leaf: leaf[0], problem.batches)
    logits = problem.logits_fn(problem.params, batch["images"])
    chances = jax.nn.log_softmax(logits / 200)
    expected = -chances[jnp.arange(len(logits)), batch["labels"]].mean()
    loss_fn = methods.cross_entropy(problem.logits_fn, 200)
    np.testing.assert_allclose(loss_fn(problem.params, batch), expected, rtol=1e-6)

    def scores_of(method):
        score = methods.score_fn(method, problem, jax.random.key(0))
        return jax.jit(score)(problem.params, sj.all_kept(problem.params))

    for method, criterion, temperature in (
        ("snip", sj.snip, 1),
        ("grasp", sj.grasp, 200),
        ("iterative_grasp", sj.grasp, 200),
    ):
        loss_fn = methods.cross_entropy(problem.logits_fn, temperature)
        score = jax.jit(criterion(loss_fn, problem.batches))
        wanted = score(problem.params, sj.all_kept(problem.params))
        chex.assert_trees_all_close(scores_of(method), wanted, rtol=1e-5)


def test_swapped_arguments_of_shuffling_name_the_key(masks, no_typecheck):
    with pytest.raises(ValueError, match="`key` must be a single typed key"):
        sj.shuffled(masks["synflow"], jax.random.key(0))


def test_images_of_another_size_are_resized_and_classes_drawn():
    run = next(r for r in layer_collapse.the_runs("smoke") if r.method == "snip")
    as_they_are = methods.scored_images(run)
    assert as_they_are["images"].shape == (1, 20, 8, 8, 1)
    larger = dataclasses.replace(run, input_shape=(16, 16, 1), classes=3, batch=2)
    resized = methods.scored_images(larger)
    assert resized["images"].shape == (3, 2, 16, 16, 1)
    counts = np.unique(np.ravel(resized["labels"]), return_counts=True)[1]
    np.testing.assert_array_equal(counts, [2, 2, 2])
    none = dataclasses.replace(run, data=None)
    assert methods.scored_images(none) is None


def test_images_of_imagenet_are_streamed(monkeypatch):
    pytest.importorskip("grain")
    examples = []
    for label in range(9):
        file = io.BytesIO()
        PIL.Image.new("RGB", (40, 30), (124, 116, 104)).save(file, "PNG")
        examples.append({"image": file.getvalue(), "label": label})
    monkeypatch.setattr(methods, "source", lambda *args: examples)
    run = next(r for r in layer_collapse.the_runs("paper") if r.data == "imagenet2012")
    run = dataclasses.replace(run, input_shape=(8, 8, 3), each=2, classes=3, batch=2)
    drawn = methods.scored_images(run)
    assert drawn["images"].shape == (3, 2, 8, 8, 3)
    assert np.unique(drawn["labels"]).size == 6
    assert np.abs(drawn["images"]).max() < 0.02  # the mean colour
