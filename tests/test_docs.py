"""The pages of docs: their examples run, and what they tabulate is complete."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import synflow_jax as sj
from synflow_jax.transform import Rule, Scaled
from tests import nets

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "flow.md").read_text()
TABLE = PAGE.split("## What each rule does")[1].split("\n## ")[0]


def run_examples(name):
    namespace, page = {}, (DOCS / name).read_text()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for text in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
            exec(compile(text, f"docs/{name}", "exec"), namespace)
    return namespace


def test_the_examples_of_the_flow_run(capsys):
    run_examples("flow.md")
    printed = capsys.readouterr().out
    assert "no rule for the primitive `pure_callback`" in printed
    assert re.search(r"^-inf\n7\.5", printed, re.MULTILINE)  # a class token, all tokens
    tens = re.findall(r"^(?:10\.0|9\.99999\d*|10\.00000\d)$", printed, re.MULTILINE)
    assert len(tens) == 4  # R, with the rule of another, with a function, of a jitted one
    assert re.findall(r"certified: (\w+)", printed) == ["False", "True"]


def test_every_rule_has_its_line():
    rows = [row.split("|")[1] for row in TABLE.splitlines() if row.startswith("|")]
    named = set(re.findall(r"`([\w:-]+)`", " ".join(rows).replace(r"\|", "")))
    assert set(sj.flow_rules) <= named
    others = named - set(sj.flow_rules)
    assert not others, f"named in the table without a rule: {others}"


def sorting(w, x):
    return jnp.sort(x @ w)


def test_a_rule_of_ones_own_is_used():
    w, seen = jnp.ones((2, 2)), []

    def rule(equation, flow):
        seen.append((equation.name, equation.out_shapes))
        return [flow]

    rules = {**sj.flow_rules, "sort": rule}
    assert jnp.isclose(sj.log_flow(sorting, w, (2,), rules=rules), jnp.log(4.0))
    assert seen == [("sort", [(1, 2)])]


def test_a_criterion_copies_the_table():
    w, rules = jnp.ones((2, 2)), {**sj.flow_rules, "sort": sj.flow_rules["tanh"]}
    score = sj.synflow(sorting, (2,), rules=rules)
    del rules["sort"]
    assert jnp.allclose(score(w, jnp.ones((2, 2), bool)), 0.25)


def test_the_table_of_rules_is_read_only():
    before = dict(sj.flow_rules)
    with pytest.raises(TypeError, match=r"\{\*\*synflow_jax\.flow_rules, 'sort': rule\}"):
        sj.flow_rules["sort"] = sj.flow_rules["tanh"]
    with pytest.raises((TypeError, AttributeError)):
        del sj.flow_rules["tanh"]
    for method in ("clear", "pop", "popitem", "setdefault", "update"):
        assert not hasattr(sj.flow_rules, method)
    assert dict(sj.flow_rules) == before


# What a wrong rule returns, given the flow, and what the error says of it.
WRONG = {
    "no list": (lambda flow: flow.mantissa, "must return a list .*; it returned an array"),
    "nothing": (lambda flow: None, "must return a list .*; it returned NoneType"),
    "too many": (lambda flow: [flow, flow], r"returned \[\(1, 2\), \(1, 2\)\]"),
    "too few": (lambda flow: [], r"of the shapes \[\(1, 2\)\]; it returned \[\]"),
    "another shape": (
        lambda flow: [Scaled(flow.mantissa[0], flow.exponent)],
        r"of the shapes \[\(1, 2\)\]; it returned \[\(2,\)\]",
    ),
    "an array of another shape": (lambda flow: [flow.mantissa.T], r"returned \[\(2, 1\)\]"),
    "no array": (lambda flow: [None], r"must return flows \(Scaled\).*\['NoneType'\]"),
    "a pair": (lambda flow: [tuple(flow)], r"must return flows \(Scaled\).*\['tuple'\]"),
}


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_of_a_rule_are_an_error_with_its_name_and_the_line(name, record):
    wrong, message = WRONG[name]

    def own_rule(equation, flow):
        return wrong(flow)

    rule = Rule(own_rule, keeps_paths=True) if record else own_rule
    with pytest.raises(sj.FlowError, match=message) as error:
        sj.log_flow(sorting, jnp.ones((2, 2)), (2,), rules={**sj.flow_rules, "sort": rule})
    assert re.search(
        r"`sort`, called at .*test_docs\.py:\d+ \(sorting\): its rule `.*own_rule`",
        str(error.value),
    )


def test_every_function_that_the_page_names_takes_rules():
    text = PAGE.split("These functions take it:")[1].split(".")[0]
    named = set(re.findall(r"`(\w+)`", text))
    takes = {
        name
        for name in sj.__all__
        if inspect.isfunction(getattr(sj, name))
        and "rules" in inspect.signature(getattr(sj, name)).parameters
    }
    assert named == takes


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


def test_the_examples_of_sparse_training_run():
    names = run_examples("sparse_training.md")
    counts = [sj.count(nets.element(sj.masks_of(names["states"]), i)) for i in range(3)]
    assert len(set(map(int, counts))) == 1  # none has been pruned yet


def test_the_examples_for_who_comes_from_jaxpruner_run():
    assert run_examples("from_jaxpruner.md")["tx"]


def test_the_examples_of_the_theory_run(capsys):
    run_examples("theory.md")
    printed = capsys.readouterr().out
    assert "shortest path: 2 weights" in printed
    assert "certified: True connected: 13 weights kept" in printed


def test_the_examples_beyond_one_device_run():
    names = run_examples("scaling.md")
    assert names["masks"]["kernel"].shape == (2 * jax.device_count(), 64, 8)


def test_the_examples_of_speed_run():
    names = run_examples("speed.md")
    assert int(names["info"].kept[-1]) == sj.num_kept(32, 0.1)


def test_the_pages_link_to_what_exists():
    """Every relative link leads to a file, and its anchor to a heading of that page."""
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            path = page.parent / path if path else page
            assert path.exists(), (page.name, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
                anchors = {
                    re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                    for title in titles
                }
                assert anchor in anchors, (page.name, target)


def test_every_criterion_has_its_line():
    page = (DOCS / "criteria.md").read_text()
    for module in ("synaptic_flow", "baselines", "saliency"):
        place = f"synflow_jax.criteria.{module}"
        for name in sj.__all__:
            if getattr(getattr(sj, name), "__module__", "") == place:
                assert f"| `{name}(" in page, name


def test_every_promise_of_files_has_a_test_that_exists():
    page = (DOCS / "reliability.md").read_text().split("\n## ")[0]
    rows = [line for line in page.splitlines() if re.match(r"\| [a-z]", line)]
    sources = "".join(path.read_text() for path in DOCS.parent.glob("tests/**/test_*.py"))
    for row in rows[1:]:  # the first is the title
        names = re.findall(r"`(test_\w+)`", row)
        assert names, row
        for name in names:
            assert f"def {name}(" in sources, name
