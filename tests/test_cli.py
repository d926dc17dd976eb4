"""The command line, as typed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax import cli

MODULE = """
import jax.numpy as jnp

def small():
    params = {"a": {"kernel": jnp.ones((4, 5))}, "b": {"kernel": jnp.ones((5, 2))}}
    return lambda p, x: x @ p["a"]["kernel"] @ p["b"]["kernel"], params, (4,)

def unused():
    apply_fn, params, shape = small()
    return apply_fn, {**params, "other": {"kernel": jnp.ones((3, 3))}}, shape

def broken():
    raise RuntimeError("no weights\\nhere")

def wrong():
    return 3

def lookup():
    _, params, shape = small()
    return lambda p, x: x @ p["nope"], params, shape

def leaves():
    raise SystemExit(3)

def unknown():
    apply_fn, params, shape = small()
    return lambda p, x: jnp.sort(apply_fn(p, x)), params, shape

def nan():
    apply_fn, params, shape = small()
    params["a"]["kernel"] = params["a"]["kernel"] * jnp.nan
    return apply_fn, params, shape
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder, text):
    module = next(folder.glob("user_*.py")).stem
    return cli.main(text.replace("user:", f"{module}:").split())


def test_prune_writes_masks_and_prints_a_row_for_each_layer(folder, capsys):
    assert run(folder, "prune user:small --density 0.2 --out m --rounds 5") == 0
    out = capsys.readouterr().out
    assert "a/kernel" in out and "b/kernel" in out and "masks written to m" in out
    masks = sj.load_masks(folder / "m")
    assert int(sj.count(masks)) == 6
    assert run(folder, "inspect m") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[:7] == out.splitlines()[:7]


@pytest.mark.parametrize("criterion", ["synflow", "magnitude", "random"])
def test_prune_agrees_with_the_library(folder, criterion, capsys):
    command = "prune mlp --density 0.01 --rounds 3 --schedule linear --out m --criterion "
    assert run(folder, command + criterion) == 0
    masks = sj.load_masks(folder / "m")
    kept = sum(int(np.sum(layer["kernel"])) for layer in masks.values())
    assert kept == sj.num_kept(119_400, 0.01)


def test_criteria_other_than_synflow_need_no_flow(folder, capsys):
    assert (
        run(folder, "prune user:unknown --density 0.2 --out m --criterion magnitude") == 0
    )
    assert "unknown before, unknown after" in capsys.readouterr().out


@pytest.mark.parametrize("criterion", ["synflow", "magnitude"])
def test_weights_that_the_output_does_not_depend_on_are_named(folder, criterion, capsys):
    command = "prune user:{} --density 0.5 --rounds 2 --out m --criterion " + criterion
    assert run(folder, command.format("unused")) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("synflow: warning: ") and "through other/kernel:" in warning
    assert run(folder, command.format("small")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune nothing --density 0.1 --out m", "no network 'nothing'"),
        ("prune user:none --density 0.1 --out m", "AttributeError"),
        ("prune nowhere:none --density 0.1 --out m", "No module named 'nowhere'"),
        ("prune user:broken --density 0.1 --out m", "RuntimeError: no weights here"),
        ("prune user:wrong --density 0.1 --out m", "must return (apply_fn, params"),
        ("prune user:unknown --density 0.1 --out m", "primitive `sort`"),
        ("prune user:nan --density 0.1 --out m", "a/kernel"),
        ("prune user:small --density 0 --out m", "--density"),
        ("prune user:small --density 1.01 --out m", "--density"),
        ("prune user:small --density nan --out m", "--density"),
        ("prune user:small --density 0.1 --rounds 0 --out m", "--rounds"),
        ("prune user:small --density 0.1 --out none/m", "--out"),
        ("prune user:small --density 0.1 --out .", "--out: . is a folder"),
        ("prune user:lookup --density 0.1 --out m", "KeyError: 'nope'"),
        ("prune user:leaves --density 0.1 --out m", "SystemExit: 3"),
        ("inspect none", "no masks file"),
        ("inspect truncated", "not a masks file"),
        ("inspect foreign", "not a masks file"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(folder, capsys, text, message):
    sj.save_masks(folder / "whole", {"w": jnp.ones((30, 30), bool)})
    (folder / "truncated").write_bytes((folder / "whole").read_bytes()[:-3])
    (folder / "foreign").write_text("hello")
    assert run(folder, text) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("synflow: ") and err.count("\n") == 1
    assert message in err
    assert not (folder / "m").exists()


@pytest.mark.parametrize("text", ["", "prune", "prune mlp --density x --out m", "other"])
def test_a_wrong_command_line_exits_with_code_2(text):
    with pytest.raises(SystemExit) as exit_:
        cli.main(text.split())
    assert exit_.value.code == 2


@pytest.mark.parametrize("chosen", [None, "/elsewhere"])
def test_compiled_programs_are_kept_where_the_user_says(chosen, monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("HOME", "/home/somebody")
    try:
        jax.config.update("jax_compilation_cache_dir", chosen)
        assert cli.main(["inspect", "nowhere"]) == 2
        expected = chosen or "/home/somebody/.cache/synflow_jax"
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_version_prints_the_package_and_its_version(capsys, monkeypatch):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"synflow_jax {sj.__version__}\n", "")
    monkeypatch.setattr(sys, "argv", ["synflow", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr() == (f"synflow_jax {sj.__version__}\n", "")


def test_help_names_the_subcommands_and_the_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("prune", "inspect", "--version"))


def test_the_installed_command_prints_its_help():
    run = subprocess.run(
        [sys.executable, "-m", "synflow_jax.cli", "prune", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--density" in run.stdout and run.stderr == ""
