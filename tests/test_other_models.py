"""Models of other libraries: the page shows the rows, the rows hold, a run goes on."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

import synflow_jax as sj
from benchmarks.models import __main__ as command
from benchmarks.models import listed, one, page
from benchmarks.models.cases import DENSITIES, Case

ROOT = pathlib.Path(__file__).parent.parent
ROWS = json.loads((ROOT / "results/models.json").read_text())
WORKS = [row for row in ROWS if row["status"] == "works"]


def name(row):
    return f"{row['environment']}-{row['model']}"


def test_every_model_of_the_list_has_its_row():
    assert [(row["environment"], row["model"]) for row in ROWS] == listed.pairs()


def test_at_least_36_of_at_least_40_work_and_no_other_is_a_surprise():
    assert len(ROWS) >= 40 and len(WORKS) >= 36
    others = [row for row in ROWS if row["status"] != "works"]
    assert all(row["status"] == "refused" and row["primitive"] for row in others)


@pytest.mark.parametrize("row", WORKS, ids=name)
def test_what_works_is_finite_exact_and_stays_zero(row):
    assert row["finite"] and row["zeros"] and row["compile_s"] > 0
    assert row["kept"] == {
        str(density): [sj.num_kept(row["prunable"], density)] * 2 for density in DENSITIES
    }


@pytest.mark.parametrize("row", WORKS, ids=name)
def test_what_works_obeys_the_conservation_law(row):
    """Scores of float32: sums of up to a million of them."""
    assert max(row["cut_gap"], row["unit_gap"]) < 1e-4


def test_the_page_is_made_of_the_rows():
    assert (ROOT / "docs/models.md").read_text() == page.of(ROWS)


def starts_at_zero(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"]) @ params["head"]["kernel"]


@pytest.mark.usefixtures("standard_promotion")
def test_a_head_that_starts_at_zero_is_filled_and_pruned(monkeypatch):
    a, head = jax.random.normal(jax.random.key(0), (6, 20)), jnp.zeros((20, 4))
    case = Case(starts_at_zero, {"a": {"kernel": a}, "head": {"kernel": head}}, (6,))
    row = one.measured(case)
    assert row["status"] == "works" and row["filled"] == ["head/kernel"]
    assert row["kept"] == {"0.1": [20, 20], "0.01": [2, 2]}
    assert row["parameters"] == row["prunable"] == 200
    assert (row["units"], row["cuts"]) == (20, 2)


def test_what_has_no_flow_is_refused_with_its_primitive():
    case = Case(
        lambda params, x: jnp.linalg.cholesky(x * params["kernel"][None]), {}, (3, 3)
    )
    case = case._replace(params={"kernel": jnp.ones((3, 3))})
    with pytest.raises(sj.FlowError) as error:
        one.measured(case)
    row = one.refused(error.value)
    assert row["status"] == "refused" and row["primitive"] == "cholesky"
    assert "factorises" in row["reason"]


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    ran = []

    def run(environment, name):
        ran.append((environment, name))
        if len(ran) == 3:
            raise KeyboardInterrupt
        row = {"environment": environment, "model": name, "status": "refused"}
        return row | {"primitive": "sort", "reason": "a | b", "seconds": 1.0}

    monkeypatch.setattr(command, "RESULTS", tmp_path / "models.json")
    monkeypatch.setattr(command, "PAGE", tmp_path / "models.md")
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "pairs", lambda: listed.pairs()[:4])
    with pytest.raises(KeyboardInterrupt):
        command.main([])
    assert len(command.read()) == 2
    command.main([])
    assert ran == [*listed.pairs()[:3], *listed.pairs()[2:4]]
    assert len(command.read()) == 4 and "a \\| b" in (tmp_path / "models.md").read_text()
    command.main([listed.pairs()[1][1]])
    assert ran[-1] == listed.pairs()[1] and len(command.read()) == 4
    with pytest.raises(SystemExit):
        command.main(["no such model"])
    assert "no model is called no such model" in capsys.readouterr().err
