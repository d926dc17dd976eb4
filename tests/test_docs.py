"""The pages of docs: their examples run, and what they tabulate is complete."""

import pathlib
import re

import jax
import pytest

import synflow_jax as sj

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "flow.md").read_text()
TABLE = PAGE.split("## What each rule does")[1].split("\n## ")[0]


@pytest.fixture
def rules():
    """The table of rules, put back afterwards."""
    before = dict(sj.flow_rules)
    yield sj.flow_rules
    sj.flow_rules.clear()
    sj.flow_rules.update(before)


def run_examples(name):
    namespace, page = {}, (DOCS / name).read_text()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for text in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
            exec(compile(text, f"docs/{name}", "exec"), namespace)
    return namespace


def test_the_examples_of_the_flow_run(rules, capsys):
    run_examples("flow.md")
    printed = capsys.readouterr().out
    assert "no rule for the primitive `sort`" in printed
    assert re.findall(r"^(?:10\.0|9\.99999\d*|10\.00000\d)$", printed, re.MULTILINE)


def test_every_rule_has_its_line():
    rows = [row.split("|")[1] for row in TABLE.splitlines() if row.startswith("|")]
    named = set(re.findall(r"`([\w:-]+)`", " ".join(rows).replace(r"\|", "")))
    assert set(sj.flow_rules) <= named
    others = named - set(sj.flow_rules)
    assert not others, f"named in the table without a rule: {others}"


def test_a_rule_of_ones_own_is_used(rules):
    def network(w, x):
        return jax.numpy.sort(x @ w)

    w = jax.numpy.ones((2, 2))
    with pytest.raises(sj.FlowError, match=r"flow_rules\['sort'\]"):
        sj.log_flow(network, w, (2,))
    seen = []

    def rule(equation, flow):
        seen.append((equation.name, equation.out_shapes))
        return [flow]

    rules["sort"] = rule
    assert jax.numpy.isclose(sj.log_flow(network, w, (2,)), jax.numpy.log(4.0))
    assert seen == [("sort", [(1, 2)])]


def test_the_examples_of_the_criteria_run(capsys):
    run_examples("criteria.md")
    printed = capsys.readouterr().out
    assert "rounds, True" in printed
    assert "connected: 16 weights kept, 16 of them on a path; starved: shortcut" in printed
    assert len(re.findall(r"^\[.*\] 126$", printed, re.MULTILINE)) == 4


def test_the_examples_of_training_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_examples("training.md")
    kernel, mask = (names[n]["params"]["kernel"] for n in ("ticket", "masks"))
    assert int((kernel != 0).sum()) == 8 == int(mask.sum())
    assert names["info"].kept.tolist() == [8]


def test_every_criterion_has_its_line():
    page = (DOCS / "criteria.md").read_text()
    for module in ("synaptic_flow", "baselines", "saliency"):
        place = f"synflow_jax.criteria.{module}"
        for name in sj.__all__:
            if getattr(getattr(sj, name), "__module__", "") == place:
                assert f"| `{name}(" in page, name
