"""The benchmark of a score: it runs, its rival gives the same scores, nothing is silent."""

import json

import jax
import numpy as np
import pytest

import synflow_jax as sj
from benchmarks import flow as benchmark
from synflow_jax import models


@pytest.mark.parametrize("loop", [[], ["--loop"]])
def test_a_run_writes_a_row_with_all_it_depends_on(loop, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    benchmark.main(["mlp", "--seconds", "0", "--out", str(out), *loop])
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["network"] == "mlp" and row["weights"] == 119910 and row["runs"] >= 5
    assert row["speedup"] == pytest.approx(row["abs_and_grad_ms"] / row["score_ms"], 0.1)
    assert row["in_loop"] == bool(loop)
    assert {"jax", "jaxlib", "cores", "device", "python"} <= set(row)
    assert "mlp" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mlp", "vgg11_cifar"])
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
