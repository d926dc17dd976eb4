"""The page on the flow: its examples run and its table is complete."""

import pathlib
import re

import jax
import pytest

import synflow_jax as sj

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "flow.md").read_text()
TABLE = PAGE.split("## What each rule does")[1].split("\n## ")[0]


@pytest.fixture
def rules():
    """The table of rules, put back afterwards."""
    before = dict(sj.flow_rules)
    yield sj.flow_rules
    sj.flow_rules.clear()
    sj.flow_rules.update(before)


def test_the_examples_run(rules, capsys):
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for text in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
            exec(compile(text, "docs/flow.md", "exec"), namespace)
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
