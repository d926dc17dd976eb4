"""The README and the guide: every block of code runs, every link leads somewhere."""

import functools
import importlib.metadata
import pathlib
import re
import shlex
import subprocess

import jax
import pytest

import synflow_jax as sj
from experiments import report
from experiments.__main__ import main as experiment
from synflow_jax import cli
from synflow_jax.models import NETWORKS, CifarResNet

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/guide.md")}
BLOCKS = {
    name: re.findall(r"^```(\w+)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    for name, page in PAGES.items()
}
SHELL = [
    line.split("#")[0].strip()
    for blocks in BLOCKS.values()
    for language, text in blocks
    if language == "sh"
    for line in text.splitlines()
]
WITH_LINKS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("name", PAGES)
def test_there_are_only_blocks_that_a_test_runs(name):
    assert {language for language, _ in BLOCKS[name]} == {"python", "sh"}
    assert PAGES[name].count("```") == 2 * len(BLOCKS[name])
    assert all(line.split()[0] in ("make", "pip", "synflow", "python") for line in SHELL)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 140


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_run_in_order(name, capsys):
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for language, text in BLOCKS[name]:
            if language == "python":
                exec(compile(text, name, "exec"), namespace)
    printed = capsys.readouterr().out
    assert "params/layers_3/kernel" in printed and "of 10240" in printed
    assert ("reach from input to output" in printed) == (name == "docs/guide.md")


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("make")])
def test_make_targets_exist(line):
    subprocess.run([*line.split(), "--dry-run"], check=True, cwd=ROOT, capture_output=True)


def test_synflow_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Under its name one of fewer layers, which is pruned in a third of the time.
    small = NETWORKS["resnet20"]._replace(make=functools.partial(CifarResNet, depth=8))
    monkeypatch.setitem(NETWORKS, "resnet20", small)
    lines = {
        line: None for line in SHELL if line.startswith("synflow")
    }  # both pages', once
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0
    assert (
        int(sj.count(sj.load_masks("masks.safetensors"))) > 774
    )  # 1 % of the kernels, and all else


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("python")])
def test_experiments_take_their_options(line, capsys):
    name, *options = line.removeprefix("python -m experiments ").split("#")[0].split()
    assert name in {*report.NAMES, "report"}
    with pytest.raises(SystemExit, match="0"):
        experiment([name, *options, "--help"])
    assert "--smoke" in (shown := capsys.readouterr().out) or "smoke,cpu,paper" in shown


def test_the_experiments_that_the_guide_names_are_all_of_them():
    section = PAGES["docs/guide.md"].split("## The paper's experiments")[1].split("## ")[0]
    assert all(name in section for name in report.NAMES)


def test_extras_that_pip_is_asked_for_exist():
    own = importlib.metadata.metadata("synflow_jax").get_all("Provides-Extra")
    for line in SHELL:
        for extra in re.findall(r'"\.\[(\w+)\]"', line):
            assert extra in own, line
    extras = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    for line in SHELL:
        for extra in re.findall(r"jax\[(\w+)\]", line):
            assert extra in extras, line


@pytest.mark.parametrize("name", WITH_LINKS)
def test_linked_files_exist(name):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
        where = (ROOT / name).parent / target
        assert target.startswith("http") or where.is_file(), target


def test_the_verdicts_are_those_of_the_evidence():
    def rows(page):
        return [line for line in page.splitlines() if line.startswith("|")]

    verdicts = rows((ROOT / "docs/evidence/README.md").read_text())
    assert len(verdicts) > 10
    shown = rows(PAGES["README.md"].split("## What of the paper came out")[1])
    assert shown[: len(verdicts)] == verdicts
