"""Every code block of the README runs."""

import importlib
import importlib.metadata
import pathlib
import re
import subprocess

import jax
import pytest

import synflow_jax as sj
from experiments import report
from synflow_jax import cli

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
SHELL = [
    line.split("#")[0].strip()
    for language, text in BLOCKS
    if language == "sh"
    for line in text.splitlines()
]


def test_there_are_only_blocks_that_a_test_runs():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert README.count("```") == 2 * len(BLOCKS)
    assert all(line.split()[0] in ("make", "pip", "synflow", "python") for line in SHELL)


def test_python_blocks_run_in_order(capsys):
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for language, text in BLOCKS:
            if language == "python":
                exec(compile(text, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "params/layers_3/kernel" in printed and "of 10240" in printed


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("make")])
def test_make_targets_exist(line):
    subprocess.run([*line.split(), "--dry-run"], check=True, cwd=ROOT, capture_output=True)


def test_synflow_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in SHELL:
        if line.startswith("synflow"):
            assert cli.main(line.split()[1:]) == 0
    assert int(sj.count(sj.load_masks("masks.safetensors"))) > 2709


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("python")])
def test_experiments_take_their_options(line, capsys):
    name, *options = line.removeprefix("python -m experiments.").split()
    assert name in {*report.NAMES, "report"}
    main = importlib.import_module(f"experiments.{name}").main
    with pytest.raises(SystemExit, match="0"):
        main([*options, "--help"])
    assert "--smoke" in (shown := capsys.readouterr().out) or "smoke,cpu,paper" in shown


def test_the_experiments_that_the_readme_names_are_all_of_them():
    section = README.split("## The paper's experiments")[1].split("## ")[0]
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


def test_the_table_names_only_what_is_public():
    section = README.split("## What is in it")[1].split("## ")[0]
    first_column = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    names = re.findall(r"`([\w.]+)`", " ".join(first_column))
    assert len(names) > 15
    for name in names:
        assert name == "synflow_jax.models" or hasattr(sj, name), name


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target
