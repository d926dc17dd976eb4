"""Every code block of the README runs."""

import importlib.metadata
import pathlib
import re
import subprocess

import jax
import pytest

import synflow_jax as sj
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
    assert all(line.split()[0] in ("make", "pip", "synflow") for line in SHELL)


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


def test_extras_that_pip_is_asked_for_exist():
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
