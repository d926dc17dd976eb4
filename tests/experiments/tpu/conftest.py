"""The scripts in a folder of their own, and programs that only say how they were called."""

import shlex
import shutil
import subprocess

import pytest

from tests.experiments.tpu.places import BASH, FOLDER


@pytest.fixture
def checkout(tmp_path):
    """The scripts in a repository of their own, at a path with a space."""
    root = tmp_path / "a checkout"
    shutil.copytree(FOLDER, root / "experiments" / "tpu")
    (root / "experiments" / "__init__.py").touch()
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch(mode=0o755)
    return root


@pytest.fixture
def tools(tmp_path):
    """A PATH of programs that only write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    for name in ("gcloud", "sbatch", "srun", "git", "tar", "rm", "mkdir"):
        fake = folder / name
        fake.write_text(
            f"#!{BASH}\n"
            f"printf '%s\\0' {name} \"$@\" >>{shlex.quote(str(tmp_path / 'calls'))}\n"
            f"printf '\\n\\0' >>{shlex.quote(str(tmp_path / 'calls'))}\n"
        )
        fake.chmod(0o755)
    return folder


@pytest.fixture
def called(tmp_path):
    """The programs that were called, in order, each with its arguments."""

    def read():
        text = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

    return read


@pytest.fixture
def script(checkout, tools, tmp_path):
    """Calls a script from a folder elsewhere."""
    here = tmp_path / "here and there"
    here.mkdir()

    def call(name, *options, path=tools, **kwargs):
        return subprocess.run(
            [BASH, checkout / "experiments" / "tpu" / name, *options],
            env={"PATH": str(path), "HOME": str(tmp_path)},
            cwd=here,
            capture_output=True,
            text=True,
            stdin=None if "input" in kwargs else subprocess.DEVNULL,
            **kwargs,
        )

    call.here = here
    return call
