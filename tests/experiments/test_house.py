"""The folder experiments/: a list of experiments that know nothing of each other."""

import ast
import pathlib

import pytest

import experiments
from experiments import report

HERE = pathlib.Path(experiments.__file__).parent
# From the bottom: a module may import its own folder and what comes before it. The
# experiments are on one level, above the figures and below the demonstration.
BELOW = "published harness datasets training methods figures".split()
EXPERIMENTS = [*report.NAMES, "criteria_table"]
ABOVE = "tpu demo report __main__".split()
FILES = sorted(HERE.rglob("*.py"))


def level(place):
    """The place of a file or folder of experiments/ in the order."""
    if place in EXPERIMENTS:
        return len(BELOW)
    return [*BELOW, "experiments", *ABOVE].index(place)


def module_at(name):
    """Whether a dotted name is a module of the repository."""
    path = HERE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(tree):
    """What a file imports from the repository: (module, name in it or None, bound name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if module_at(alias.name):
                    yield alias.name, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom) and module_at(node.module):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                bound = alias.asname or alias.name
                is_module = module_at(whole)
                yield (
                    (whole, None, bound) if is_module else (node.module, alias.name, bound)
                )


def read(path):
    tree = ast.parse(path.read_text())
    return tree, list(imports(tree))


def test_the_top_is_the_list_of_the_experiments_and_what_they_share():
    there = {p.stem for p in HERE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert there - {"__init__", "__pycache__"} == {*BELOW, *EXPERIMENTS, *ABOVE}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_experiment_imports_another(name):
    _, found = read(HERE / f"{name}.py")
    others = {f"experiments.{other}" for other in EXPERIMENTS}
    assert not {module for module, _, _ in found} & others


def test_imports_go_downwards():
    for path in FILES:
        place = path.relative_to(HERE).with_suffix("").parts[0]
        if place == "__init__":
            continue
        for module, _, _ in read(path)[1]:
            top, *rest = module.split(".")
            assert top in ("experiments", "synflow_jax"), (path, module)
            if top == "experiments" and rest[0] != place:
                assert level(rest[0]) < level(place), (path, module)


def test_within_a_folder_imports_make_no_circle():
    for folder in (p for p in HERE.iterdir() if p.is_dir()):
        waiting = {
            f"experiments.{folder.name}.{path.stem}": {
                module for module, _, _ in read(path)[1]
            }
            for path in folder.glob("*.py")
        }
        while ready := [own for own, needs in waiting.items() if not needs & {*waiting}]:
            for own in ready:
                del waiting[own]
        assert not waiting, f"a circle in {folder.name}: {waiting}"


def test_no_file_uses_a_private_name_of_another():
    for path in FILES:
        tree, found = read(path)
        private = [name for _, name, _ in found if name and name.startswith("_")]
        private += [module for module, _, _ in found if "._" in module]
        modules = {bound for _, name, bound in found if name is None}
        private += [
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
        ]
        assert not private, (path, private)


def test_every_file_says_what_it_is():
    for path in FILES:
        if path.read_text():
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_file_is_long():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path
