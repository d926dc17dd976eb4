"""The benchmarks: they run, rivals compute the same, the README shows what was measured."""

import json
import pathlib
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from benchmarks import __main__ as everything
from benchmarks import (
    against,
    certified,
    figure,
    kernels,
    loop,
    measuring,
    pages,
    resolution,
    selection,
    sparse_training,
    whole,
)
from benchmarks import flow as benchmark
from synflow_jax import models
from tests.experiments.small import narrow

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("loop", [[], ["--loop"]])
def test_a_run_writes_a_row_with_all_it_depends_on(loop, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    benchmark.main(["mlp", "--seconds", "0", "--out", str(out), *loop])
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["network"] == "mlp" and row["weights"] == 119910 and row["runs"] >= 5
    assert row["speedup"] == pytest.approx(row["abs_and_grad_ms"] / row["score_ms"], 0.1)
    assert row["in_loop"] == bool(loop)
    assert {"jax", "jaxlib", "cores", "device", "python", "commit"} <= set(row)
    assert "mlp" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["mlp", "conv", pytest.param("vgg11_cifar", marks=pytest.mark.long)]
)
@pytest.mark.usefixtures("standard_promotion")
def test_abs_and_grad_gives_the_same_scores_times_r(name):
    apply_fn, params, shape = models.build(name, jax.random.key(0))
    # Without shifts, which the flow drops and abs-and-grad keeps.
    params = jax.tree.map(lambda p: p if p.ndim > 1 else abs(p) * 0 + (p == 1), params)
    masks = sj.all_kept(params)
    ours = jax.jit(sj.synflow(apply_fn, shape))(params, masks)
    theirs = jax.jit(benchmark.abs_and_grad(apply_fn, shape))(params, masks)
    kernels = [(a, b) for a, b in zip(*map(jax.tree.leaves, (ours, theirs))) if a.ndim > 1]
    for a, b in kernels:
        np.testing.assert_allclose(a, b / b.sum(), rtol=1e-2, atol=1e-3 * float(a.max()))


@pytest.mark.parametrize(
    "arguments", [["resnet21"], ["--quick", "mlp"], ["--all", "--quick"]]
)
def test_what_it_cannot_run_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert "error" in capsys.readouterr().err


def test_the_giants_are_left_out_by_name(monkeypatch, capsys):
    monkeypatch.setattr(models, "NETWORKS", {"mlp": None, "resnet1202": None})
    monkeypatch.setattr(benchmark, "measured", lambda name, *rest: pytest.skip("reached"))
    with pytest.raises(pytest.skip.Exception):
        benchmark.main([])
    assert "left out, see --all: resnet1202" in capsys.readouterr().out


@pytest.mark.usefixtures("standard_promotion")
def test_the_rivals_of_keep_top_keep_the_same():
    scores = jnp.asarray(np.random.default_rng(0).permutation(500), jnp.float32)
    want = sj.keep_top(scores, 5)
    np.testing.assert_array_equal(selection.by_sort(scores, jnp.uint32(5)), want)
    np.testing.assert_array_equal(selection.by_top_k(5)(scores), want)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["mlp", "resnet20", "vgg16_cifar"])
def test_pytorch_prunes_the_same_network(name):
    pytest.importorskip("torch")
    from benchmarks import pytorch_baseline

    apply_fn, params, shape = models.build(name, jax.random.key(0))
    masks, info = sj.prune(sj.synflow(apply_fn, shape), params, 0.5, rounds=2)
    theirs = pytorch_baseline.prune(name, params, info.kept.tolist())()
    ours = dict(zip(sj.leaf_names(masks), jax.tree.leaves(masks)))
    kept = sum(int(mask.sum()) for mask in theirs.values())
    assert kept == pytest.approx(int(info.kept[-1]), abs=3)  # it drops ties
    for layer, mask in theirs.items():
        want = pytorch_baseline.in_torch_layout(ours[f"{layer}/kernel"])
        assert (mask.numpy() == want).mean() > 0.999


@pytest.mark.long
def test_all_of_them_run_and_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    standard, allowed = (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    )
    with narrow(), standard, allowed:
        everything.main(["--quick"])
    printed = capsys.readouterr().out
    for part in (
        "keeping 1%",
        "one score",
        "in a loop",
        "times floor",
        "how the loop scales",
    ):
        assert part in printed
    assert not list(tmp_path.iterdir())


ROW = {"network": "mlp", "turns": 1} | {
    f"{key}_{part}": value
    for key in ("cold", "again", "pytorch")
    for part, value in {"s": 1.25, "peak_mb": 300, "programs": 6}.items()
}


def test_the_table_of_whole_processes_has_what_was_measured(capsys):
    measuring.console().print(whole.table([ROW]))
    shown = capsys.readouterr().out
    assert "1.2 (6, 300)" in shown and "-" in shown


@pytest.mark.long
def test_whole_processes_are_timed(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    whole.main(["mlp", "--turns", "1", "--no-pytorch", "--out", str(out)])
    (row,) = map(json.loads, out.read_text().splitlines())
    assert 0 < row["again_s"] < row["cold_s"]
    assert 3 <= row["cold_programs"] == row["again_programs"] <= 6
    assert row["cold_peak_mb"] > 100


@pytest.mark.long
def test_two_commits_are_compared(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(whole, "tree_of", lambda commit, folder: whole.ROOT)
    out = tmp_path / "rows.jsonl"
    (row,) = against.run("HEAD", ["mlp"], measuring.console(), out, turns=1)
    assert all(0.2 < row[f"{part}_ratio"] < 5 for part in against.PARTS)
    assert row.items() <= json.loads(out.read_text()).items()
    assert "relative to before" in capsys.readouterr().out


def test_the_floor_is_bytes_over_bandwidth_and_products_over_their_rate():
    rates = {"bytes_per_s": 1e9, "multiply_adds_per_s": 1e9}
    assert loop.floor_ms(0, 1e6, rates) == pytest.approx(3.0)
    assert loop.floor_ms(1e6, 0, rates) == pytest.approx(loop.BYTES)


def test_multiply_adds_of_a_product():
    apply_fn, params = lambda params, x: x @ params, jnp.ones((30, 7))
    assert loop.multiply_adds(apply_fn, params, (30,)) == pytest.approx(210, rel=0.1)


def test_the_peak_is_what_a_function_adds():
    peak = measuring.peak_above(lambda: np.ones(2**25, np.float32).sum())
    assert peak is None or 2**26 < peak < 2**28


TABLES = [(page, table) for page, tables in pages.PAGES.items() for table in tables]


@pytest.mark.parametrize(("page", "table"), TABLES, ids=lambda x: getattr(x, "__name__", x))
def test_the_pages_show_what_was_measured(page, table):
    text, results = (ROOT / page).read_text(), pages.read(ROOT / "results")
    assert pages.replaced(text, table(results)) == text


def test_a_table_takes_the_place_of_the_one_that_begins_alike():
    head, rule = "| network | ms |", "|---|---:|"
    page = f"Before.\n\n{head}\n{rule}\n| old | 1 |\n| older | 2 |\n\nAfter.\n"
    table = f"{head}\n{rule}\n| new | 3 |"
    assert pages.replaced(page, table) == f"Before.\n\n{table}\n\nAfter.\n"
    for number, text in {0: "No table.", 2: page + page}.items():
        message = re.escape(f"{number} tables begin with '| network | ms |'; wanted one.")
        with pytest.raises(ValueError, match=message):
            pages.replaced(text, table)


def test_the_parts_of_a_process_are_read_from_what_jax_logs():
    log = """Finished tracing score for jit in 0.5 sec
    Finished tracing rounds for jit in 1.5 sec
    Finished jaxpr to MLIR module conversion jit(rounds) in 0.25 sec
    Finished XLA compilation of jit(rounds) in 2.0 sec
    Finished tracing ones for jit in 0.25 sec
    Finished jaxpr to MLIR module conversion jit(ones) in 0.5 sec
    Finished XLA compilation of jit(ones) in 1.0 sec"""
    want = {"tracing": 1.75, "lowering": 0.75, "compiling": 3.0}
    assert whole.parts_of(log) == want


def test_a_column_is_empty_where_no_commit_was_compared():
    results = pages.read(ROOT / "results")
    for row in results["whole"]:
        for key in [key for key in row if key.startswith("before")]:
            del row[key]
    assert pages.processes(results).count("| — | — |") == len(results["whole"])


def test_the_figure_is_drawn(tmp_path):
    figure.draw(pages.read(ROOT / "results"), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 20_000


def test_a_kernel_is_of_the_part_that_its_operation_names():
    text = """
    %fused (x: f32[2]) -> f32[2] {
      %product.1 = f32[2]{0} dot(%x, %x), metadata={op_name="jit(f)/jit(_masked)/mul"}
    }
    %both (x: f32[2]) -> f32[2] {
      %score.1 = f32[2]{0} multiply(%x, %x), metadata={op_name="jvp()/mul"}
      %key.1 = f32[2]{0} negate(%score.1), metadata={op_name="jit(_selected)/neg"}
    }
    %body (p: f32[2]) -> f32[2] {
      %copy.1 = f32[2]{0} copy(%p)
      %sum.1 = f32[] reduce(%copy.1), metadata={op_name="jit(_selected)/while/body/add"}
      %sort.1 = f32[2]{0} sort(%p), metadata={op_name="jit(_selected)/sort"}
      %keys.1 = f32[2]{0} fusion(%p), calls=%other, metadata={op_name="jit(_masked)/mul"}
      %abs.1 = f32[2]{0} abs(%p), metadata={op_name="transpose(jvp())/abs"}
      %key.2 = f32[2]{0} fusion(%p), calls=%both, metadata={op_name="jit(_selected)/neg"}
      ROOT %product.2 = f32[2]{0} fusion(%p), kind=kLoop, calls=%fused
      %copy.2 = f32[2]{0} copy(%p)
    }"""
    want = {
        "product.1": "products",
        "copy.1": "counting",  # of what reads it
        "sum.1": "counting",
        "sort.1": "rest_of_selection",
        "keys.1": "keys",
        "abs.1": "rest_of_score",
        "product.2": "products",
        "score.1": "rest_of_score",
        "key.1": "rest_of_selection",
        "key.2": "keys",
        "copy.2": "others",
    }
    assert kernels.parts_of(textwrap.dedent(text)) == want


def test_the_time_of_an_event_is_without_those_within_it():
    def event(name, start, duration, thread=1):
        return {"ph": "X", "name": name, "ts": start, "dur": duration, "tid": thread}

    main = {"ph": "M", "name": "thread_name", "tid": 2, "args": {"name": "python"}}
    events = [
        event("inner", 2, 3),
        event("loop", 0, 10),
        event("innermost", 3, 1),
        event("inner", 6, 4),
        event("next", 10, 5),
        event("called", 0, 100, thread=2),
        main,
    ]
    own, starts = kernels.own_times(events)
    assert own == {"loop": 3, "inner": 6, "innermost": 1, "next": 5}
    assert starts == {"loop": 1, "inner": 2, "innermost": 1, "next": 1}


def test_the_kernels_of_a_round_are_found(tmp_path):
    out = tmp_path / "rows.jsonl"
    kernels.main(["mlp", "--rounds", "3", "--out", str(out)])
    (row,) = map(json.loads, out.read_text().splitlines())
    assert sum(row[part] for part in kernels.SHARES) == pytest.approx(1, abs=0.01)
    assert all(row[part] > 0 for part in kernels.SHARES) and row["kernels_a_round"] > 50


@pytest.mark.long
def test_certified_rounds_are_set_beside_exponential_ones(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    certified.main(["mlp_cifar", "--compressions", "2", "--turns", "1", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["schedule"] == "exponential" and rows[0]["rounds"] == 100
    assert len(rows) == 1 + len(certified.RATIOS)
    for row, ratio in zip(rows[1:], certified.RATIOS):
        assert row["certificate"] and row["largest_ratio"] <= ratio + 1e-4
        assert row["kept"] == rows[0]["kept"] == sj.num_kept(348_200, 0.01)
    capsys.readouterr()
    certified.main(["--markdown", str(out)])
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "mlp_cifar" in x)
    assert line.count(" s |") == len(rows)
    assert f"| {rows[1]['ln_flow']:.2f}, {rows[1]['rounds']}, " in line


@pytest.mark.usefixtures("standard_promotion")
def test_the_cost_of_masks_that_change_is_measured_beside_static_ones():
    def problem():
        loss = lambda params, x: jnp.mean((x @ params["kernel"]) ** 2)  # noqa: E731
        return loss, {"kernel": jnp.ones((20, 30))}, jnp.ones((4, 20))

    row = sparse_training.measured("mlp", turns=1, problem=problem, seeds=2)
    assert row["weights"] == 600 and row["seeds"] == 2 and row["static_ms"] > 0
    for kind in ("gradual", "rigl"):
        assert row[f"{kind}_more_bytes"] < 100  # steps and counts; the masks both have
        cost = (row[f"{kind}_due_ms"] - row[f"{kind}_plain_ms"]) / row["static_ms"]
        assert row[f"{kind}_per_cent"] == pytest.approx(cost, rel=0.3, abs=1)
    assert sparse_training.table([row]).row_count == 1


@pytest.mark.long
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["mlp", "transformer-2"])
def test_networks_of_its_list_are_measured(name):
    row = sparse_training.measured(name, turns=1)
    assert row["seeds"] == 8 and row["gradual_due_ms"] > 0


def test_scores_at_several_resolutions_are_measured_and_drawn(tmp_path, monkeypatch):
    small = (lambda: resolution.unet(1, 2, width=2), 2, (8, 16), 8)
    monkeypatch.setattr(resolution, "NETWORKS", {"small": small})
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "rows.png"
    resolution.main(["--seconds", "0", "--out", str(rows), "--figure", str(picture)])
    first, second = map(json.loads, rows.read_text().splitlines())
    assert first["pixels"] == 8 and first["once_ms"] > 0 and first["whole_ms"] > 0
    assert "once_temp_bytes" in second and "whole_ms" not in second
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("space", [2, 3])
def test_pytorch_scores_the_same_unet(space):
    pytest.importorskip("torch")
    apply_fn, params = resolution.unet(1, space, width=2)
    shape = (*(8,) * space, 3)
    ours = resolution.score(apply_fn, shape, None)(params)
    theirs = resolution.pytorch("unet", params, shape)()
    flow = theirs["head"].sum()
    for name, score in zip(sj.leaf_names(ours), jax.tree.leaves(ours)):
        got = np.moveaxis((theirs[name] / flow).numpy(), (0, 1), (-1, -2))
        np.testing.assert_allclose(got, score, rtol=1e-4, atol=1e-6)
