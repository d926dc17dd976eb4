"""Sweeps, the command line that all experiments share, and the methods they compare."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from experiments import methods
from experiments.datasets.load import load
from experiments.harness import command, runs, sweeps
from tests.experiments.small import Normed

pytestmark = pytest.mark.usefixtures("standard_promotion")


@dataclasses.dataclass(frozen=True)
class Counting:
    """A run that counts to ``upto``."""

    name: str
    upto: int = 2
    sizes: tuple[int, ...] = (1, 2)


class Counter:
    """Executes such runs, remembers which, and stops where it is told to."""

    def __init__(self, stop=None, error=RuntimeError):
        self.done, self.stop, self.error = [], stop, error

    def __call__(self, run, context):
        self.done.append(run.name)
        for number in range(run.upto):
            if (run.name, number) == self.stop:
                raise self.error("stopped")
            context.advance((number + 1) / run.upto)
            yield {"kind": "count", "epoch": number, "half": number / 2, "whole": number}


TODO = [Counting("one"), Counting("two", 3), Counting("three", 1)]


def perform(folder, todo=TODO, execute=None, known=(), **more):
    execute = execute or Counter()
    rows = list(
        sweeps.perform(
            todo, execute, folder, experiment="count", command="do it", known=known, **more
        )
    )
    return execute.done, rows


def counts(rows):
    return [[row["whole"] for row in own if row["kind"] == "count"] for own in rows]


# --- sweeps -------------------------------------------------------------------------------


def test_a_run_is_a_folder_and_its_rows_say_what_it_was(tmp_path):
    seen = []
    done, rows = perform(tmp_path, on_row=lambda run, row: seen.append(run.name))
    assert done == ["one", "two", "three"]
    assert counts(rows) == [[0, 1], [0, 1, 2], [0]]
    assert seen == ["one"] * 2 + ["two"] * 3 + ["three"]
    for run, own in zip(TODO, rows):
        head = own[0]
        assert (head["kind"], head["command"]) == ("run", "do it")
        assert head["config"] == {"name": run.name, "upto": run.upto, "sizes": [1, 2]}
        assert {"seconds", "ended", "device", "devices", "jax", "commit"} <= set(head)
        assert all(row["run"] == run.name for row in own)
        record, logged = runs.read(tmp_path / run.name)
        assert record["config"] == head["config"] and record["experiment"] == "count"
        assert [logged[-1], *logged[:-1]] == own


def test_finished_runs_are_not_repeated(tmp_path):
    _, rows = perform(tmp_path)
    done, again = perform(tmp_path)
    assert done == [] and again == rows


def test_runs_that_are_known_are_not_repeated_without_their_folders(tmp_path):
    _, rows = perform(tmp_path / "before")
    known = (row for own in rows[1:] for row in own)  # any iterable
    done, again = perform(tmp_path / "after", known=known)
    assert done == ["one"] and again[1:] == rows[1:]
    assert not (tmp_path / "after" / "two").exists()


def test_a_known_run_with_other_settings_is_done_again(tmp_path):
    _, rows = perform(tmp_path / "before", [Counting("one", 5)])
    done, again = perform(tmp_path / "after", TODO[:1], known=rows[0])
    assert done == ["one"] and counts(again) == [[0, 1]]


def test_an_interrupted_run_is_begun_again_and_nothing_is_doubled(tmp_path):
    with pytest.raises(RuntimeError):
        perform(tmp_path, execute=Counter(("two", 2)))
    _, logged = runs.read(tmp_path / "two")
    assert [row["whole"] for row in logged] == [0, 1]
    done, rows = perform(tmp_path)
    assert done == ["two", "three"] and counts(rows) == [[0, 1], [0, 1, 2], [0]]
    _, logged = runs.read(tmp_path / "two")
    assert [row.get("whole") for row in logged] == [0, 1, 2, None]


@pytest.mark.parametrize("left", [None, '{"run": "one", "kind": "count", "who'])
def test_a_run_that_ended_before_or_within_a_row_is_begun_again(tmp_path, left):
    _, rows = perform(tmp_path, TODO[:1])
    metrics = tmp_path / "one" / runs.METRICS
    if left is None:
        metrics.unlink()
    else:
        metrics.write_text(left)
    done, again = perform(tmp_path, TODO[:1])
    assert done == ["one"] and counts(again) == counts(rows)


def test_a_folder_of_a_run_with_other_settings_is_named(tmp_path):
    perform(tmp_path, TODO[:1])
    with pytest.raises(FileExistsError, match="one' holds a run with other settings"):
        perform(tmp_path, [Counting("zero"), Counting("one", 7)])
    assert not (tmp_path / "zero").exists()  # said before anything is done
    assert runs.read(tmp_path / "one")[0]["config"]["upto"] == 2


def test_two_runs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several runs are called b, c"):
        perform(tmp_path, [Counting(name) for name in "cabcb"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "costs, done, more, seconds, text",
    [
        (4.0, 0.0, 0.0, 10, ""),  # nothing to judge by
        (4.0, 4.0, 0.0, 10, ""),  # nothing left
        (4.0, 1.0, 0.0, 10, ", about 30 s left"),
        (4.0, 1.0, 1.0, 10, ", about 10 s left"),
        (4.0, 1.0, 0.0, 40, ", about 2.0 min left"),
        (4.0, 1.0, 0.0, 600, ", about 30 min left"),
        (4.0, 1.0, 0.0, 3000, ", about 2.5 h left"),
        (4.0, 0.0, 1.0, 36000, ", about 30 h left"),
    ],
)
def test_the_time_that_is_left_is_said_in_words(
    monkeypatch, costs, done, more, seconds, text
):
    monkeypatch.setattr(sweeps.time, "perf_counter", lambda: 100.0 + seconds)
    assert sweeps._TimeLeft(costs, done, began=100.0).after(more) == text


def test_of_several_processes_only_the_first_writes(tmp_path, monkeypatch):
    perform(tmp_path / "0", TODO[:1])
    told = []

    def first_process(flags):
        told.append(flags.tolist())
        return np.array([True, False])

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sweeps.multihost_utils, "broadcast_one_to_all", first_process)
    # It does not look at its own disk, but does what the first process does.
    done, rows = perform(tmp_path / "0", TODO[:2], on_row=pytest.fail)
    assert told == [[False, False]] and done == ["two"]
    assert rows[0] == [] and counts(rows[1:]) == [[0, 1, 2]]
    assert list((tmp_path / "0" / "two").iterdir()) == []


_PROCESS = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
number = int(sys.argv[1])
jax.distributed.initialize(sys.argv[2], 2, number)
import pathlib
from tests.experiments import test_sweeps
folder = pathlib.Path(sys.argv[3])
done, rows = test_sweeps.perform(folder / str(number))
print(number, done, test_sweeps.counts(rows))
"""


def test_two_processes_do_every_run_together(tmp_path):
    perform(tmp_path / "0", TODO[1:2])  # what process 0 has done, process 1 need not see
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(number), address, str(tmp_path)],
            cwd=pathlib.Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    outs = [process.communicate(timeout=120) for process in both]
    said = [out.splitlines()[-1] if out else err for out, err in outs]
    assert said == [
        "0 ['one', 'three'] [[0, 1], [0, 1, 2], [0]]",
        "1 ['one', 'three'] [[0, 1], [], [0]]",
    ]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json*")}
    assert written == {
        f"0/{run.name}/{name}" for run in TODO for name in (runs.CONFIG, runs.METRICS)
    }


# --- the command line ---------------------------------------------------------------------


def experiment(execute, todo=TODO, drawn=None):
    def draw(rows, path):
        if drawn is not None:
            drawn.append(list(dict.fromkeys(row["run"] for row in rows)))
        path.write_bytes(b"figure")

    return command.Experiment(
        "count",
        "Counts.",
        lambda scale: todo,
        execute,
        {"figure.png": draw},
        lambda rows: [f"{len(rows)} rows [as they are]."],
        lambda rows: "Counts.",
        cost=lambda run: run.upto,
    )


@pytest.fixture
def places(tmp_path):
    return ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]


def names(out):
    return list(dict.fromkeys(row["run"] for row in command.results(out)))


def test_a_sweep_from_the_command_line(tmp_path, places, capsys):
    counter, drawn = Counter(), []
    out = command.main(experiment(counter, drawn=drawn), places)
    assert out == tmp_path / "out"
    assert names(out) == ["one", "two", "three"] and drawn == [names(out)]
    assert (out / "figure.png").exists()
    about = json.loads((out / "config.json").read_text())
    assert about == {"experiment": "count", "scale": "smoke", "runs": 3, "done": 3}
    assert set(command.configs(command.results(out))) == {"one", "two", "three"}
    said = capsys.readouterr().out
    assert "[3/3] three: 0 s\n" in said and "9 rows [as they are]." in said
    assert f"results: {out}" in said
    head = command.results(out)[0]
    assert head["command"].startswith("python -m experiments.count --out")

    # Neither from the results nor from the folders of the runs is anything repeated.
    before = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").unlink()
    command.main(experiment(counter), places)
    assert (out / "metrics.jsonl").read_text() == before
    command.main(experiment(counter), [*places[:3], str(tmp_path / "elsewhere")])
    assert (out / "metrics.jsonl").read_text() == before
    assert counter.done == ["one", "two", "three"]


def test_results_go_to_the_folder_of_the_experiment_and_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = command.main(experiment(Counter(), TODO[:1]), ["--scale", "cpu"])
    assert str(out) == "results/count/cpu" and names(out) == ["one"]
    assert (tmp_path / "runs/count/cpu/one/config.json").exists()


def test_rows_are_in_the_order_of_the_sweep(tmp_path, places):
    counter = Counter()
    out = command.main(experiment(counter), [*places, "--only", "^t"])
    assert names(out) == counter.done == ["two", "three"]
    command.main(experiment(counter), [*places, "--only", "one"])
    assert counter.done == ["two", "three", "one"]
    assert names(out) == ["one", "two", "three"]
    # What is no longer in the sweep is no longer in its results.
    command.main(experiment(counter, TODO[::-1][:2]), places)
    assert names(out) == ["three", "two"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_finished_survives_an_interruption(tmp_path, places, error, capsys):
    kind = SystemExit if error is KeyboardInterrupt else error
    with pytest.raises(kind) as end:
        command.main(experiment(Counter(("two", 1), error)), places)
    if error is KeyboardInterrupt:
        assert "goes on from here" in str(end.value)
    out = tmp_path / "out"
    assert names(out) == ["one"] and (out / "figure.png").exists()
    assert "1 of 3 runs done" in capsys.readouterr().out
    counter = Counter()
    command.main(experiment(counter), places)
    assert counter.done == ["two", "three"] and names(out) == ["one", "two", "three"]
    assert [r["whole"] for r in command.results(out) if r["run"] == "two" if "whole" in r]
    assert len(command.results(out)) == 3 + 6


def test_drawing_does_no_run_but_gathers_what_is_finished(tmp_path, places):
    with pytest.raises(RuntimeError):
        command.main(experiment(Counter(("two", 1))), places)
    out, counter, drawn = tmp_path / "out", Counter(), []
    (out / "metrics.jsonl").unlink()  # as if the process had been ended by force
    command.main(experiment(counter, drawn=drawn), [*places, "--draw"])
    assert counter.done == [] and drawn == [["one"]] and names(out) == ["one"]


def test_nothing_finished_draws_nothing(tmp_path, places):
    command.main(experiment(Counter()), [*places, "--draw"])
    assert not (tmp_path / "out").exists()


def test_results_with_other_settings_are_named(tmp_path, places, capsys):
    command.main(experiment(Counter()), places)
    (tmp_path / "runs").rename(tmp_path / "gone")
    changed = [TODO[0], Counting("two", 1), TODO[2]]
    command.main(experiment(Counter(), changed), [*places, "--draw"])
    assert "made with other settings, and not yet again: two" in capsys.readouterr().out
    counter = Counter()
    out = command.main(experiment(counter, changed), places)
    assert counter.done == ["two"] and len(command.results(out)) == 3 + 4


def test_errors_that_a_user_can_mend_are_one_line(tmp_path, places):
    command.main(experiment(Counter(), TODO[:1]), places)
    (tmp_path / "out" / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match="^error: .*one' holds a run with other"):
        command.main(experiment(Counter(), [Counting("one", 9)]), places)


def test_tensorboard_is_asked_for_by_its_name(monkeypatch, places):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    counter = Counter()
    with pytest.raises(SystemExit, match="pip install tensorboardX"):
        command.main(experiment(counter), [*places, "--tensorboard"])
    assert counter.done == []


def test_tensorboard_gets_the_numbers_of_each_epoch(tmp_path, monkeypatch, places):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = pathlib.Path(folder).relative_to(tmp_path)

        def add_scalar(self, name, value, step):
            written.append((str(self.folder), name, value, step))

        def flush(self):
            pass

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    command.main(experiment(Counter(), TODO[1:]), [*places, "--tensorboard"])
    # Whole numbers say which row it is; what was measured is a float.
    assert written == [
        *[("runs/count/smoke/two", "half", n / 2, n) for n in range(3)],
        ("runs/count/smoke/three", "half", 0.0, 0),
    ]


# --- methods ------------------------------------------------------------------------------

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
    assert set(methods.LABELS) == {*methods.PAPER, *methods.CONTROLS}


@pytest.mark.parametrize("method", methods.LABELS)
def test_every_method_keeps_exactly_the_number(method, problem, masks):
    leaves = zip(jax.tree.leaves(problem.params), jax.tree.leaves(masks[method]))
    of_kernels = [(p.size, int(m.sum())) for p, m in leaves if p.ndim > 1]
    sizes, counts = zip(*of_kernels)
    assert sum(counts) == sj.num_kept(sum(sizes), DENSITY)


@pytest.mark.parametrize("method", ["shuffled_synflow", "synflow_densities"])
def test_controls_of_synflow_keep_its_counts_but_other_weights(method, masks):
    assert kept(masks[method]) == kept(masks["synflow"])
    assert differ(masks[method], masks["synflow"])
    assert kept(masks["random"]) != kept(masks["synflow"])


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
    with pytest.raises(ValueError, match="`key` is one jax.random.key"):
        sj.shuffled(masks["synflow"], jax.random.key(0))
