"""What is published: requirements, versions, the list of names, and what checks them."""

import ast
import importlib.metadata
import itertools
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import synflow_jax as sj
from synflow_jax import cli

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYTHONS = ("3.11", "3.12", "3.13")
SHELLCHECK = pathlib.Path(sys.executable).with_name("shellcheck")


def requirements(lines):
    """Requirements by name; several of one name differ in their markers."""
    lines = [line.split("#")[0].strip() for line in lines]
    found = {}
    for line in filter(None, lines):
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        found.setdefault(name, []).append(requirement)
    return found


def listed(name):
    return requirements((ROOT / name).read_text().splitlines())


def pins(name, python):
    """The version of each package that a file of constraints has for a Python."""
    return {
        package: Version(str(one.specifier).removeprefix("=="))
        for package, several in listed(name).items()
        for one in several
        if one.marker is None or one.marker.evaluate({"python_version": python})
    }


WHEEL = requirements(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]
# What the tests are run with; the other extras are hardware's, PyTorch and the linters.
TESTED = WHEEL | listed("requirements.txt")
for extra in ("equinox", "plots", "data", "experiments", "test"):
    TESTED |= requirements(line for line in EXTRAS[extra] if "[" not in line)


def imported(folder):
    """Modules outside the standard library that a folder's files import anywhere."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]


def test_the_wheel_requires_what_the_library_imports():
    used = set(imported("synflow_jax")) - set(sys.stdlib_module_names)
    # jaxlib is what jax runs on; equinox is imported by its adapter, for who has a model.
    assert used - {"synflow_jax", "equinox"} | {"jaxlib"} == set(WHEEL)


def test_the_extra_has_what_the_experiments_import():
    used = set(imported("experiments")) - set(sys.stdlib_module_names)
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}
    names["markdown_it"] = "markdown-it-py"
    used = {names.get(n, re.sub("_", "-", n).lower()) for n in used}
    # grain brings absl, whose flags its workers read.
    used -= {"experiments", "synflow-jax", "absl"} | set(WHEEL)
    assert used <= set(requirements(EXTRAS["experiments"])), used


def test_one_package_has_the_same_bounds_wherever_it_is_listed():
    lists = [WHEEL, listed("requirements.txt")]
    lists += [
        requirements(line for line in lines if "jax[" not in line)
        for lines in EXTRAS.values()
    ]
    for one, other in itertools.combinations(lists, 2):
        for name in one.keys() & other.keys():
            assert one[name][0].specifier == other[name][0].specifier, name


def test_requirements_are_the_wheels_and_more():
    whole = listed("requirements.txt")
    assert {*WHEEL, "tensorflow-datasets", "chex"} <= set(whole)
    assert set(whole) - set(WHEEL) <= set(requirements(EXTRAS["experiments"]))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["lowest", "newest"])
def test_constraints_pin_what_the_tests_are_run_with(name, python):
    pinned = pins(f"constraints/{name}.txt", python)
    pinned.pop("pyparsing", None)  # the file says why it is there
    assert set(pinned) == set(TESTED)
    for package, version in pinned.items():
        assert version in TESTED[package][0].specifier, package


def test_the_lowest_constraints_are_the_lower_bounds():
    pinned = pins("constraints/lowest.txt", "3.11")
    for package, version in ((p, v) for p, v in pinned.items() if p in TESTED):
        (bound,) = (s for s in TESTED[package][0].specifier if s.operator == ">=")
        assert version == Version(bound.version), package


def test_the_version_is_said_once():
    metadata = importlib.metadata.metadata("synflow_jax")
    assert "version" not in PROJECT and metadata["Version"] == sj.__version__
    assert f"\n## [{sj.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sj.__version__


def test_the_command_says_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"synflow_jax {sj.__version__}\n"


def test_the_package_ships_its_types():
    assert (pathlib.Path(sj.__file__).parent / "py.typed").is_file()


def test_the_list_of_names_is_complete():
    """docs/api.md has the headings and the names of `__all__`, in its order."""
    source = (ROOT / "synflow_jax/__init__.py").read_text().split("__all__ = [")[1]
    wanted = re.findall(r"^    (?:# (.*)|\"(\w+)\",)$", source, re.MULTILINE)
    page = (ROOT / "docs/api.md").read_text()
    found = re.findall(r"^(?:## (.*)|\| `(\w+)` \| .+ \|)$", page, re.MULTILINE)
    assert found == wanted
    assert [name for _, name in found if name] == sj.__all__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_shell_blocks_of_workflows_pass_shellcheck(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    scripts = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert scripts
    for script in scripts:
        assert "${{" not in script  # expressions come in through env
        command = [SHELLCHECK, "--shell=bash", "-"]
        subprocess.run(command, input=script, text=True, check=True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read_and_pin_their_actions(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job and job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.search(r"@(v\d+|[0-9a-f]{40})$", step.get("uses", "@v1"))


def test_workflows_test_every_python_with_both_sets():
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    matrix = tests["jobs"]["tests"]["strategy"]["matrix"]
    assert tuple(matrix["python"]) == PYTHONS and matrix["versions"] == ["lowest", "newest"]
    for python in PYTHONS:
        assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_scripts_pass_shellcheck():
    scripts = [ROOT / ".ci/run", ROOT / ".ci/find_python"]
    subprocess.run([SHELLCHECK, *scripts], check=True)


def test_a_python_is_found_by_running_it():
    here = f"3.{sys.version_info.minor}"
    find = [ROOT / ".ci/find_python"]
    found = subprocess.run([*find, here, here], capture_output=True, text=True, check=True)
    shown = subprocess.run(
        [found.stdout.strip(), "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith(f"Python {here}.")
    none = subprocess.run([*find, "3.90", "3.99"], capture_output=True, text=True)
    assert none.returncode == 1 and "no Python from 3.90 to 3.99" in none.stderr


@pytest.mark.parametrize("target", ["test-newest", "test-lowest"])
@pytest.mark.parametrize("options", [[], ["TESTS=tests/one"], ["PYTHON=/a/python"]])
def test_make_targets_of_other_versions(target, options):
    command = ["make", "--dry-run", "--always-make", target, *options]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    name = target.removeprefix("test-")
    assert f"-c constraints/{name}.txt" in shown.stdout
    assert ("tests/one" in shown.stdout) == (options == ["TESTS=tests/one"])
    assert ("python=/a/python " in shown.stdout) == (options == ["PYTHON=/a/python"])
