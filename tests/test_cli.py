"""The command line, as typed."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import synflow_jax as sj
from synflow_jax import cli
from synflow_jax.cli import errors
from synflow_jax.models import NETWORKS

MODULE = """
import jax.numpy as jnp
import numpy as np

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
    return lambda p, x: jnp.linalg.svd(apply_fn(p, x), compute_uv=False), params, shape

def named_w():
    params = {"a": {"w": jnp.ones((4, 5)), "b": jnp.ones(5)}, "c": {"w": jnp.ones((5, 2))}}
    return lambda p, x: (x @ p["a"]["w"] + p["a"]["b"][None]) @ p["c"]["w"], params, (4,)

def two():
    return small()[:2]

def three():
    return list(small())

def stopped():
    raise KeyboardInterrupt

def odd():
    apply_fn, params, shape = small()
    params = {"a\\x1b[31m\\n": params["a"], "b": params["b"]}
    return lambda p, x: x @ p["a\\x1b[31m\\n"]["kernel"] @ p["b"]["kernel"], params, shape

def tokens():
    import jax
    inputs = {"ids": jax.ShapeDtypeStruct((2, 5), "int32")}
    return lambda p, x: p["e"]["kernel"][x["ids"]], {"e": small()[1]["a"]}, inputs

def described():
    import jax
    apply_fn, params, (size,) = small()
    inputs = {"x": jax.ShapeDtypeStruct((4, size), "float32"), "scale": np.ones((1, size))}
    return lambda p, x: apply_fn(p, x["x"] * x["scale"]), params, inputs

def surrogate():
    apply_fn, params, shape = small()
    return lambda p, x: x @ p["\\ud800"]["kernel"], {"\\ud800": params["a"]}, shape

def quantised():
    apply_fn, params, shape = small()
    return apply_fn, {**params, "q": {"kernel": jnp.ones((3, 3), jnp.int8)}}, shape

def nan():
    apply_fn, params, shape = small()
    params["a"]["kernel"] = params["a"]["kernel"] * jnp.nan
    return apply_fn, params, shape
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("\\\\", "\\"))
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


@pytest.mark.parametrize(
    "criterion", ["synflow", "synflow_l2", "ntk_sap", "magnitude", "random"]
)
def test_prune_agrees_with_the_library(folder, criterion, capsys):
    command = "prune mlp --density 0.01 --rounds 3 --schedule linear --out m --criterion "
    assert run(folder, command + criterion) == 0
    masks = sj.load_masks(folder / "m")
    kept = sum(int(np.sum(layer["kernel"])) for layer in masks.values())
    assert kept == sj.num_kept(119_400, 0.01)


def test_noise_for_ntk_sap_leaves_constants_of_the_network_as_they_are(folder):
    command = "prune user:described --density 0.2 --out m --rounds 2 --criterion ntk_sap"
    assert run(folder, command) == 0
    assert int(sj.count(sj.load_masks(folder / "m"))) == 6


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
        ("prune user:unknown --density 0.1 --out m", "primitive `svd`"),
        ("prune user:nan --density 0.1 --out m", "a/kernel"),
        ("prune user:small --density 0 --out m", "--density"),
        ("prune user:small --density 1.01 --out m", "--density"),
        ("prune user:small --density nan --out m", "--density"),
        ("prune user:small --density 0.1 --rounds 0 --out m", "--rounds"),
        ("prune user:small --density 0.1 --out none/m", "--out"),
        ("prune user:small --density 0.1 --out .", "--out: . is a folder"),
        ("prune user:lookup --density 0.1 --out m", "KeyError: 'nope'"),
        ("prune user:two --density 0.1 --out m", "it returned tuple of 2"),
        ("prune user:surrogate --density 0.1 --out m", "--out: "),
        ("prune user:named_w --density 0.1 --out m", "a/b, a/w, c/w"),
        ("prune user:named_w --density 0.1 --out m", "such as --prunable '*/w'"),
        ("prune user:small --density 0.1 --out m --prunable z*", "--prunable: the pattern"),
        ("prune user:small --density 0.1 --out m --without z*", "--without: the pattern"),
        ("prune user:small --density 0.1 --out m --without *", "no leaf of user"),
        ("prune user:small --density 0.1 --out m --allocation most", "got 'most'"),
        ("prune user:small --density 0.1 --out m --allocation a=2", "got 'a=2'"),
        ("prune user:small --density 0.1 --out m --allocation z*=0.2", "'z*' of `alloc"),
        (
            "prune user:small --density 0.1 --out m --scope layer --allocation erk",
            "--scope layer is an allocation",
        ),
        (
            "prune user:small --density 0.1 --out m --schedule certified --scope layer",
            "without --scope layer",
        ),
        (
            "prune user:small --density 0.1 --out m --schedule certified --max-ratio 1",
            "--max-ratio is between",
        ),
        (
            "prune user:small --density 0.1 --out m --schedule certified "
            "--criterion random",
            "is for synflow and synflow_l2",
        ),
        (
            "prune user:tokens --density 0.1 --out m --criterion ntk_sap",
            "the inputs must be floats; got int32",
        ),
        ("prune user:leaves --density 0.1 --out m", "SystemExit: 3"),
        ("inspect none", "no masks file"),
        ("inspect truncated", "not a masks file"),
        ("inspect foreign", "not a masks file"),
        ("compare whole none", "no masks file"),
        ("compare whole other", "not the same leaves: v, w"),
        ("compare whole reshaped", "`w` has shape (30, 30) in one"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(folder, capsys, text, message):
    sj.save_masks(folder / "whole", {"w": jnp.ones((30, 30), bool)})
    (folder / "truncated").write_bytes((folder / "whole").read_bytes()[:-3])
    (folder / "foreign").write_text("hello")
    sj.save_masks(folder / "other", {"v": jnp.ones((30, 30), bool)})
    sj.save_masks(folder / "reshaped", {"w": jnp.ones((3, 3), bool)})
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


def kept(folder, file="m"):
    masks = sj.load_masks(folder / file)
    return [row.kept for row in sj.summarize(masks, masks)]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ("user:named_w --prunable */w", [5, 4, 2]),
        ("user:named_w --prunable */w --without c/*", [5, 4, 10]),
        ("user:small --scope layer", [4, 2]),
        ("user:small --allocation balanced", [3, 3]),
        ("user:small --allocation a*=0.1", [2, 4]),
        ("user:small --allocation a/*=0.1 b/*=0.4", [2, 4]),
        ("user:three", None),
        ("user:small --schedule certified --max-ratio 0.3", None),
        ("user:odd", None),
    ],
)
def test_options_choose_what_the_library_has(folder, options, want, capsys):
    command = f"prune {options} --density 0.2 --rounds 2 --out m"
    assert run(folder, command) == 0
    counts = kept(folder)
    if want is None:
        assert sum(counts) == 6
    else:
        assert counts == want
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out


def test_leaves_without_flow_are_looked_for_among_those_that_are_chosen(folder, capsys):
    command = "prune user:named_w --prunable a/* --density 0.2 --rounds 2 --out m"
    for criterion in ("synflow", "magnitude"):
        assert run(folder, f"{command} --criterion {criterion}") == 0
        (warning,) = capsys.readouterr().err.splitlines()
        assert "through a/b: the network" in warning
        assert kept(folder)[2] == 10


def test_json_has_what_the_table_has(folder, capsys):
    assert run(folder, "prune user:small --density 0.2 --out m --rounds 5 --json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kept"] == 6 and shown["size"] == 30 and shown["rounds"] == 5
    assert shown["connected"] is True and len(shown["log10_flow"]) == 2
    assert [leaf["name"] for leaf in shown["leaves"]] == ["a/kernel", "b/kernel"]
    assert [leaf["kept"] for leaf in shown["leaves"]] == kept(folder)
    assert run(folder, "inspect m --json") == 0
    assert json.loads(capsys.readouterr().out)["leaves"] == shown["leaves"]
    command = "prune user:unknown --density 0.2 --out m --criterion magnitude --json"
    assert run(folder, command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["connected"] is None and shown["log10_flow"] == [None, None]


def test_compare_counts_what_both_files_keep(folder, capsys):
    masks = {"a": np.array([True, True, False, False]), "b": np.ones(3, bool)}
    others = {"a": np.array([False, True, True, False]), "b": np.ones(3, bool)}
    sj.save_masks(folder / "a", masks)
    sj.save_masks(folder / "b", others)
    assert run(folder, "compare a b --json") == 0
    shown = json.loads(capsys.readouterr().out)
    row = {"name": "a", "size": 4, "first": 2, "second": 2, "both": 1, "overlap": 1 / 3}
    assert shown == {"leaves": [row], "total": {**row, "name": "total"}}
    assert run(folder, "compare a b") == 0
    assert "0.333" in capsys.readouterr().out
    sj.save_masks(folder / "whole", sj.all_kept(masks))
    assert run(folder, "compare whole whole --json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["overlap"] == 1.0


def test_an_interrupted_command_is_one_line_and_exit_code_130(folder, capsys):
    assert run(folder, "prune user:stopped --density 0.2 --out m") == 130
    assert capsys.readouterr() == ("", "synflow: interrupted.\n")
    assert not (folder / "m").exists()


def test_warnings_of_the_library_are_a_line_of_the_command(folder, capsys):
    assert run(folder, "prune user:quantised --density 0.2 --out m --rounds 2") == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("synflow: warning: q/kernel (int8): only floating leaves")


def test_what_a_stream_cannot_print_is_escaped():
    assert errors.printable("k\xe9\x1b[0m\ud800", "ascii") == "k\\xe9\\x1b[0m\\ud800"
    assert errors.printable("k\xe9", "utf-8") == "k\xe9"


def test_help_lists_the_networks_and_where_targets_come_from(capsys):
    for command in (["--help"], ["prune", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(command)
        words = "".join(c for c in capsys.readouterr().out if c not in "│").split()
        assert set(NETWORKS) <= {word.strip(",.:") for word in words}
        assert "imported from the current folder" in " ".join(words)


def test_help_names_the_subcommands_and_the_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("prune", "inspect", "compare", "--version"))


def test_the_installed_command_prints_its_help():
    run = subprocess.run(
        [sys.executable, "-m", "synflow_jax.cli", "prune", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--density" in run.stdout and run.stderr == ""
