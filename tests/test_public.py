"""The public list: documented, importable without side effects, as the contract says."""

import ast
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import synflow_jax as sj

PACKAGE = pathlib.Path(sj.__file__).parent
# The folders, and the files beside them, from the bottom: a module may import its own
# folder and those before it.
ORDER = (
    "trees xla precision masks transform topology selection mask_files interop models "
    "pruning paths criteria training analysis cli"
).split()
FOLDERS = [name for name in ORDER if (PACKAGE / name).is_dir()]
NAMESPACES = "criteria pruning training analysis interop models transform".split()


@pytest.mark.parametrize("name", [n for n in sj.__all__ if n != "flow_rules"])
def test_every_public_name_is_documented(name):
    doc = getattr(sj, name).__doc__
    assert doc and len(doc.split()) >= 4


@pytest.mark.parametrize("name", [n for n in sj.__all__ if callable(getattr(sj, n))])
def test_public_functions_show_an_example(name):
    if not isinstance(getattr(sj, name), type):
        assert ">>>" in getattr(sj, name).__doc__ or name in {"save_masks", "load_masks"}


def test_the_public_list_is_all_that_the_package_exports():
    exported = {
        name
        for name, value in vars(sj).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert exported == set(sj.__all__) and len(sj.__all__) == len(exported)


def exports(folder):
    """Names that a folder of the package exports, the package itself included."""
    tree = ast.parse((folder / "__init__.py").read_text())
    imported = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
    imported = [n for n in imported if n.module.startswith("synflow_jax")]
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return {a.asname or a.name for n in imported for a in n.names} | {
        n.name for n in defined
    }


@pytest.mark.parametrize("name", ["", *FOLDERS])
def test_no_exported_name_is_also_a_module_or_a_folder(name):
    folder = PACKAGE / name
    modules = {path.stem for path in folder.iterdir() if path.stem != "__init__"}
    assert not modules & exports(folder)


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_public_folder_says_what_it_is_and_exports_documented_names(name):
    module = importlib.import_module(f"synflow_jax.{name}")
    assert module.__doc__ and exports(PACKAGE / name)
    for exported in exports(PACKAGE / name) - {"flow_rules", "Rule", "NETWORKS"}:
        assert getattr(module, exported).__doc__, exported


def imports(path):
    """Modules of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("synflow_jax"):
            for alias in node.names:
                inside = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def test_imports_go_downwards():
    here = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert here - {"__init__", "__pycache__"} == set(ORDER)
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if place != "__init__":
            for module in imports(path):
                used = module.split(".")[1]
                assert ORDER.index(used) <= ORDER.index(place), (path, module)


def test_within_a_folder_imports_make_no_circle():
    for name in FOLDERS:
        modules = {p.stem: p for p in (PACKAGE / name).glob("*.py")}
        waiting = {
            stem: {
                parts[2] if len(parts := module.split(".")) > 2 else "__init__"
                for module in imports(path)
                if module.split(".")[1] == name
            }
            for stem, path in modules.items()
        }
        while ready := [stem for stem, needs in waiting.items() if not needs & {*waiting}]:
            for stem in ready:
                del waiting[stem]
        assert not waiting, f"a circle in {name}: {waiting}"


def test_no_file_imports_a_private_name_of_another():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("synflow_jax"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private, (path, private)


def test_no_file_is_long():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_importing_starts_no_backend_and_nothing_that_only_some_need():
    code = (
        "import sys, synflow_jax; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(); "
        "names = 'tensorflow tyro rich flax equinox scipy.sparse'.split(); "
        "found = [name for name in names if name in sys.modules]; "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
