"""The whole sequence of scripts, on hosts that are folders."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from tests.experiments.tpu.places import BASH, CREATE, ROOT

host = pytest.importorskip("experiments.tpu.host", reason="its lock needs Unix")

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

# gcloud that copies to folders, and runs in them, in place of two hosts.
GCLOUD_OF_FOLDERS = """\
#!{bash}
set -eu
verb=$4
shift 4
worker=0 command= words=()
for word; do
  case $word in
    --worker=*) worker=${{word#*=}} ;;
    --command=*) command=${{word#*=}} ;;
    --*) ;;
    *) words+=("$word") ;;
  esac
done
[[ $worker != all ]] || worker='0 1'
waiting=()
for index in $worker; do
  home={hosts}/$index
  case $verb in
    create) mkdir -p {hosts}/0 {hosts}/1 ;;
    ssh) (cd "$home" && HOME=$home bash -c "$command") & waiting+=($!) ;;
    scp) cp -r "${{words[0]/#*:/$home/}}" "${{words[1]/#*:/$home/}}" ;;
    describe) echo READY HEALTHY ;;
    delete) rm -r {hosts} ;;
  esac
done
for job in "${{waiting[@]}}"; do wait "$job"; done
"""

# python3 whose uv makes a .venv of the Python of these tests.
PYTHON3_OF_HOSTS = """\
#!{bash}
[[ $2 != uv || $3 != venv ]] || {{
  mkdir -p .venv/bin
  printf '%s\\n' '#!{bash}' \\
    '[[ $* != *devices* ]] || exec touch checked' \\
    'exec {python} "$@"' >.venv/bin/python
  chmod +x .venv/bin/python
}}
"""


@pytest.fixture
def hosts(tmp_path, checkout):
    """What the scripts need in PATH for two hosts that are folders."""
    if missing := [name for name in ("git", "tar", "gzip") if shutil.which(name) is None]:
        pytest.skip(f"needs {missing[0]}")
    folder, there = tmp_path / "real bin", tmp_path / "hosts"
    folder.mkdir()
    names = {"bash": BASH, "hosts": shlex.quote(str(there)), "python": sys.executable}
    for name, text in (("gcloud", GCLOUD_OF_FOLDERS), ("python3", PYTHON3_OF_HOSTS)):
        (folder / name).write_text(text.format(**names))
        (folder / name).chmod(0o755)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for words in (["init", "-q"], ["add", "experiments"], ["commit", "-qm", "all of it"]):
        subprocess.run([*git, *words], check=True)
    return f"{folder}{os.pathsep}{os.environ['PATH']}", there


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)


def test_the_whole_sequence_on_two_hosts(hosts, script):
    path, there = hosts

    def call(name, *options, status=0):
        done = script(name, "--name=my-tpu", "--zone=z", *options, path=path)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    call("create.sh", *CREATE)
    (script.here / "data" / "cifar10").mkdir(parents=True)
    call("setup.sh", "--data", "data")
    for home in (there / "0", there / "1"):
        assert (home / "synflow_jax" / "checked").exists()
        assert (home / "tensorflow_datasets" / "cifar10").is_dir()
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=home / "synflow_jax",
            capture_output=True,
            text=True,
        ).stdout
        assert re.fullmatch("[0-9a-f]+\n", described)  # a commit, and not changed

    # A program that writes its words and then waits to be let go, though not for ever.
    text = (
        'mkdir -p "$1"; printf "%s\\n" "$@" "$SYNFLOW_DISTRIBUTED" >>"$1/words"; '
        "for i in $(seq 300); do [ ! -e go ] || break; sleep 0.1; done; echo gone; exit 3"
    )
    program = ["--", "sh", "-c", text, "sh", "results/my run", "it's", "$HOME"]
    assert call("run.sh", *program).count("started: sh -c") == 2
    assert call("run.sh", *program).count("runs already: sh -c") == 2
    assert "stop it first" in call("run.sh", "--", "true", status=1)
    assert "READY HEALTHY" in (said := call("status.sh")) and said.count("runs: sh") == 2

    call("collect.sh", "--to", "my results")
    words = script.here / "my results" / "my run" / "words"
    assert words.read_text() == "results/my run\nit's\n$HOME\n1\n"  # started once

    # Host 0 ends by itself, host 1 is stopped.
    (there / "0" / "synflow_jax" / "go").touch()
    log = there / "0" / "synflow_jax" / "logs" / "run.log"
    wait_for(lambda: call("status.sh").count("nothing runs") == 1)
    assert "\ngone\n" in log.read_text() and "ended with status 3" in log.read_text()
    said = call("stop.sh")
    assert said.count("nothing runs") == said.count("stopped") == 1
    ended = (there / "1" / "synflow_jax" / "logs" / "run.log").read_text()
    assert "ended with status -15" in ended and "\ngone\n" not in ended

    # The same command starts it again; this one fails at once, which is said.
    (there / "1" / "synflow_jax" / "go").touch()
    assert call("run.sh", *program, status=1).count("ended at once") == 2
    call("setup.sh", "--results", "my results")
    assert (there / "1" / "synflow_jax" / "results" / "my run" / "words").exists()
    call("delete.sh", "--yes")
    assert not there.exists()


def test_what_ignores_being_asked_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert host.main(["status"]) == 0 and host.main(["start"]) == 2
    deaf = "trap '' TERM; touch started; for i in $(seq 300); do sleep 0.1; done"
    start = (
        "import sys; from experiments.tpu import host; host.GRACE = 0; sys.exit(host.main("
    )
    subprocess.run(
        [sys.executable, "-c", f"{start}sys.argv[1:]))", "start", "sh", "-c", deaf],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    wait_for((tmp_path / "started").exists)
    monkeypatch.setattr(host, "PATIENCE", 1.0)
    assert host.main(["stop"]) == 0
    assert capsys.readouterr().out.endswith("stopped\n")
    assert host.main(["status"]) == 0
    assert "nothing runs" in capsys.readouterr().out
    assert host.main(["dance"]) == 2
