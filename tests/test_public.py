"""The public list: documented, importable without side effects, as the contract says."""

import ast
import pathlib
import subprocess
import sys

import pytest

import synflow_jax as sj

PACKAGE = pathlib.Path(sj.__file__).parent
PUBLIC = sorted(
    alias.asname
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
)
# Imports go downwards only: a module may import those before it.
ORDER = (
    "trees schedules jaxprs counting scaled windows masks equations contractions structure "
    "arithmetic control rules tokens plain interpreter loops flow paths wires wiring "
    "junctions units bound selection budget scores saliency controls balance allocations "
    "rounds certified_rounds pruning rewinding analysis collapse optim interop models "
    "cli"
).split()


@pytest.mark.parametrize("name", [n for n in PUBLIC if n != "flow_rules"])
def test_every_public_name_is_documented(name):
    doc = getattr(sj, name).__doc__
    assert doc and len(doc.split()) >= 4


@pytest.mark.parametrize("name", [n for n in PUBLIC if callable(getattr(sj, n))])
def test_public_functions_show_an_example(name):
    if not isinstance(getattr(sj, name), type):
        assert ">>>" in getattr(sj, name).__doc__ or name in {"save_masks", "load_masks"}


def test_no_function_hides_a_module():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert not modules & {n for n in PUBLIC if n != "flow"}


def test_imports_go_downwards():
    files = {p.stem: p for p in PACKAGE.glob("*.py") if p.stem != "__init__"}
    assert set(files) | {"models"} == set(ORDER)
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("synflow_jax"):
                used = node.module.split(".")[1:2] or [a.name for a in node.names]
                for module in used:
                    assert ORDER.index(module) < ORDER.index(name), (name, module)


def test_importing_starts_no_backend_and_no_tensorflow():
    code = (
        "import sys, synflow_jax; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
