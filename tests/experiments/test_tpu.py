"""The scripts for TPUs and SLURM: what they would run, what they run, and the launcher."""

import os
import pathlib
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import jax
import pytest

from experiments.tpu import devices, launch

host = pytest.importorskip("experiments.tpu.host", reason="its lock needs Unix")

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "tpu"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh") if path.name != "common.sh")
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

GCLOUD = ["gcloud", "compute", "tpus", "tpu-vm"]
WHERE = ["--name", "my tpu", "--zone", "a zone"]
COMMAND = ["prog", "it's", 'a "b"', "$HOME", "--out", "results/my run", ""]


# --- what would run -----------------------------------------------------------------------


def ssh(command, worker="all", project=()):
    flags = ["--zone=a zone", *project, f"--worker={worker}", f"--command={command}"]
    return [*GCLOUD, "ssh", "my tpu", *flags]


def sent(archive, folder, target):
    packed = f"build/tpu-my tpu/{archive}.tgz"
    return [
        ["tar", "-czf", packed, "-C", folder, "."],
        [*GCLOUD, "scp", packed, f"my tpu:{archive}.tgz", "--zone=a zone", "--worker=all"],
        ssh(f"mkdir -p {target} && tar -xzf {archive}.tgz -C {target}"),
    ]


STAGE = "build/tpu-my tpu"
CLONE = [
    ["git", "status", "--short"],
    ["rm", "-rf", STAGE],
    ["git", "clone", "--quiet", "--no-local", "--depth=1", ".", f"{STAGE}/synflow_jax"],
    *sent("synflow_jax", f"{STAGE}/synflow_jax", "synflow_jax"),
]
INSTALL = ssh(
    "cd synflow_jax "
    "&& PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv "
    "&& python3 -m uv venv --quiet --allow-existing --python 3.12 .venv "
    "&& python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,plots]'"
)
CHECK = (
    "cd synflow_jax && SYNFLOW_DISTRIBUTED=1 .venv/bin/python -m experiments.tpu.launch "
    "experiments.tpu.devices --platform tpu"
)
ON_HOST = "cd synflow_jax && .venv/bin/python -m experiments.tpu.host "
LAUNCH = ["python", "-m", "experiments.tpu.launch"]
MODULE = ["python", "-m", "experiments.accuracy", "--scale", "paper"]
CREATE = ["--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base"]
PACK = "tar -czf synflow_jax-results.tgz -C {} . || [ $? -eq 1 ]"
JOB_ID = "--output=logs/slurm-%j.log"


def collected(worker, folder, to):
    there, here = "my tpu:synflow_jax-results.tgz", f"{STAGE}/synflow_jax-results.tgz"
    return [
        ssh(PACK.format(folder), worker),
        ["mkdir", "-p", STAGE, to],
        [*GCLOUD, "scp", there, here, "--zone=a zone", f"--worker={worker}"],
        ["tar", "-xzf", here, "-C", to],
    ]


def submitted(*options, line, output=JOB_ID):
    flags = [*options, output, "--open-mode=append", "--requeue", f"--wrap={line}"]
    return [["mkdir", "-p", "logs"], ["sbatch", *flags]]


ONE_JOB = ["--job-name=synflow_jax", "--nodes=1", "--ntasks-per-node=1"]
EXPORT = 'export PATH="$PWD/.venv/bin:$PATH"'
SRUN = "exec srun --kill-on-bad-exit=1"

# Script, its options, and the commands; HERE stands for where the script is called.
CASES = {
    "create": (
        ["create.sh", *WHERE, *CREATE],
        [[*GCLOUD, "create", "my tpu", "--zone=a zone", *CREATE]],
    ),
    "create, all options": (
        [
            "create.sh",
            *WHERE,
            *CREATE,
            "--project",
            "a project",
            "--spot",
            "--",
            "--x",
            "y z",
        ],
        [
            [*GCLOUD, "create", "my tpu", "--zone=a zone", "--project=a project"]
            + [*CREATE, "--spot", "--x", "y z"]
        ],
    ),
    "create, preemptible": (
        ["create.sh", *WHERE, *CREATE, "--preemptible"],
        [[*GCLOUD, "create", "my tpu", "--zone=a zone", *CREATE, "--preemptible"]],
    ),
    "setup": (["setup.sh", *WHERE], [*CLONE, INSTALL, ssh(CHECK)]),
    "setup, all options": (
        ["setup.sh", *WHERE, "--data", "my data", "--results=/old ones", "--devices", "16"],
        [
            *CLONE,
            *sent("synflow_jax-data", "HERE/my data", "tensorflow_datasets"),
            *sent("synflow_jax-results", "/old ones", "synflow_jax/results"),
            INSTALL,
            ssh(f"{CHECK} --count 16"),
        ],
    ),
    "run, a module": (
        ["run.sh", *WHERE, "--project=p", "--", *MODULE],
        [
            ssh(
                f"{ON_HOST}start {shlex.join([*LAUNCH, *MODULE[2:]])}",
                project=["--project=p"],
            )
        ],
    ),
    "run, a launched module": (
        ["run.sh", *WHERE, "--", *LAUNCH, "experiments.accuracy"],
        [ssh(f"{ON_HOST}start {shlex.join(LAUNCH)} experiments.accuracy")],
    ),
    "run, any command": (
        ["run.sh", *WHERE, "--", *COMMAND],
        [ssh(f"{ON_HOST}start {shlex.join(COMMAND)}")],
    ),
    "status": (
        ["status.sh", *WHERE],
        [
            [
                *GCLOUD,
                "describe",
                "my tpu",
                "--zone=a zone",
                "--format=value(state,health)",
            ],
            ssh(f"{ON_HOST}status"),
        ],
    ),
    "stop": (["stop.sh", *WHERE], [ssh(f"{ON_HOST}stop")]),
    "collect": (
        ["collect.sh", *WHERE, "--to", "some where"],
        collected("0", "synflow_jax/results", "HERE/some where"),
    ),
    "collect, all options": (
        ["collect.sh", *WHERE, "--to=/some where", "--from", "my results", "--worker", "3"],
        collected("3", "'synflow_jax/my results'", "/some where"),
    ),
    "delete": (
        ["delete.sh", *WHERE, "--yes"],
        [[*GCLOUD, "delete", "my tpu", "--zone=a zone", "--quiet"]],
    ),
    "slurm, one job": (
        ["slurm.sh", "--", *COMMAND],
        submitted(
            *ONE_JOB, "--gpus-per-node=1", line=f"{EXPORT}; {SRUN} {shlex.join(COMMAND)}"
        ),
    ),
    "slurm, a job a seed": (
        ["slurm.sh", "--seeds", "0-4", "--gpus", "2", "--", *MODULE, "--seed", "{seed}"],
        submitted(
            *[*ONE_JOB, "--gpus-per-node=2", "--array=0-4"],
            output="--output=logs/slurm-%A_%a.log",
            line=f"{EXPORT}; {SRUN} {shlex.join([*LAUNCH, *MODULE[2:]])} --seed "
            "''\"$SLURM_ARRAY_TASK_ID\"''",
        ),
    ),
    "slurm, all options": (
        ["slurm.sh", "--nodes", "2", "--gpus", "4", "--cpus", "8", "--time", "8:00:00"]
        + ["--partition", "a b", "--account", "me", "--job", "my job", "--", *MODULE],
        submitted(
            *["--job-name=my job", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4"],
            *["--cpus-per-task=8", "--time=8:00:00", "--partition=a b", "--account=me"],
            line=f"{EXPORT} JAX_LOCAL_DEVICE_IDS=0,1,2,3; {SRUN} --cpus-per-task=8 "
            f"{shlex.join([*LAUNCH, *MODULE[2:]])}",
        ),
    ),
}


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


def commands(case, here):
    return [[word.replace("HERE", str(here)) for word in line] for line in CASES[case][1]]


def test_every_script_has_a_case():
    assert {options[0] for options, _ in CASES.values()} == set(SCRIPTS)


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_the_commands_and_runs_none(case, script, called):
    name, *options = CASES[case][0]
    done = script(name, "--dry-run", *options)
    assert done.returncode == 0 and done.stderr == ""
    expected = commands(case, script.here)
    assert done.stdout.splitlines() == [shlex.join(line) for line in expected]
    assert called() == []


@pytest.mark.parametrize("case", CASES)
def test_a_real_run_issues_what_the_dry_run_prints(case, script, called):
    name, *options = CASES[case][0]
    done = script(name, *options)
    assert done.returncode == 0, done.stderr
    assert called() == commands(case, script.here)
    # And says so, where it does not mix with what the commands print.
    printed = [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert [shlex.split(line) for line in printed] == called() and done.stdout == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_gcloud_or_sbatch_a_dry_run_works_and_a_run_says_so(name, script, tools):
    for program in ("gcloud", "sbatch"):
        (tools / program).unlink()
    options = next(rest for (first, *rest), _ in CASES.values() if first == name)
    assert script(name, "--dry-run", *options).returncode == 0
    done = script(name, *options)
    program = "sbatch" if name == "slurm.sh" else "gcloud"
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{name}: {program} is not installed: ")
    assert done.stderr.count("\n") == 1


def options_of(case):
    words = CASES[case][0]
    ours = words[: words.index("--")] if "--" in words else words
    return {word.split("=")[0] for word in ours if word.startswith("--")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_every_option(name, script, called):
    done = script(name, "--help")
    assert done.returncode == 0 and done.stderr == "" and called() == []
    assert done.stdout.startswith(f"{name} ")
    taken = set().union(*(options_of(case) for case in CASES if CASES[case][0][0] == name))
    listed = set(re.findall(r"^  (--[a-z-]+) ", done.stdout, flags=re.MULTILINE))
    assert taken | {"--dry-run"} <= listed
    # And every one is in a case of its script, those of all scripts in some.
    assert listed - taken <= {"--dry-run", "--project"}


MISTAKES = [
    (["create.sh"], "missing --name, --zone, --accelerator-type, --version"),
    (["create.sh", *WHERE, "--version=v"], "missing --accelerator-type"),
    (["create.sh", *WHERE, *CREATE, "--spot", "--preemptible"], "exclude each other"),
    (["setup.sh", "--name", "a"], "missing --zone"),
    (["run.sh", *WHERE], "missing the command"),
    (["run.sh", *WHERE, "--"], "missing the command"),
    (["run.sh", *WHERE, "python"], "no option 'python'"),
    (["status.sh", "--zone", "z"], "missing --name"),
    (["stop.sh", "--zone", "--name", "n"], "--zone wants a value"),
    (["stop.sh", "--name=", "--zone=z"], "--name wants a value"),
    (["stop.sh", *WHERE, "--yes"], "no option '--yes'"),
    (["collect.sh", *WHERE], "missing --to"),
    (["collect.sh", *WHERE, "--to"], "--to wants a value"),
    (["delete.sh", "--name=a/../b", "--zone=z", "--yes"], "is no name"),
    (["delete.sh", *WHERE, "--yes=no"], "no option '--yes=no'"),
    (["delete.sh", *WHERE, "--*"], "no option '--*'"),
    (["slurm.sh"], "missing the command"),
    (["slurm.sh", "--nodes", "two", "--", "prog"], "'two' is not a number"),
    (["slurm.sh", "--", "prog", "{seed}"], "wants --seeds"),
    (["slurm.sh", "--seeds", "0-4", "--", "prog"], "wants {seed}"),
]


@pytest.mark.parametrize("options, message", MISTAKES)
def test_a_mistake_is_told_in_one_line(options, message, script, called):
    done = script(*options)
    assert done.returncode == 2 and done.stdout == "" and called() == []
    assert done.stderr.startswith(f"{options[0]}: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_delete_asks(script, called):
    for answer in ("n\n", "\n", "", "nay, yes\n"):
        done = script("delete.sh", *WHERE, input=answer)
        assert done.returncode == 2 and "nothing is deleted" in done.stderr
        assert called() == []
    done = script("delete.sh", *WHERE, input="y\n")
    assert "Delete 'my tpu' in a zone" in done.stderr
    assert done.returncode == 0 and called() == commands("delete", script.here)


def test_a_command_that_fails_ends_the_script(script, tools, called):
    (tools / "tar").write_text(f"#!{BASH}\nexit 7\n")
    assert script("setup.sh", *WHERE).returncode == 7
    assert called() == CLONE[:3]


def test_slurm_wants_the_venv(script, checkout, called):
    (checkout / ".venv" / "bin" / "python").unlink()
    done = script("slurm.sh", "--", "prog")
    assert done.returncode == 2 and ".venv is missing" in done.stderr and called() == []


def test_a_job_gives_srun_each_word_and_the_seed_its_number(script, tools, called):
    words = [*COMMAND, "{seed}", "out/it's {seed}/{seed}"]
    (tools / "sbatch").write_text(
        f'#!{BASH}\nSLURM_ARRAY_TASK_ID=3 exec bash -c "${{!#//--wrap=/}}"\n'
    )
    done = script("slurm.sh", "--seeds", "0-4", "--nodes", "2", "--", *words)
    assert done.returncode == 0, done.stderr
    assert called()[-1] == ["srun", "--kill-on-bad-exit=1", *COMMAND, "3", "out/it's 3/3"]


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh"])
def test_bash_reads_every_script(name):
    subprocess.run([BASH, "-n", FOLDER / name], check=True)
    assert name == "common.sh" or os.access(FOLDER / name, os.X_OK)


def test_shellcheck_finds_nothing():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, *sorted(FOLDER.glob("*.sh"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_the_readme_are_accepted(script):
    text = (FOLDER / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert {line[0] for line in lines} <= {f"experiments/tpu/{name}" for name in SCRIPTS}
    for path, *options in lines:
        done = script(path.split("/")[-1], "--dry-run", *options)
        assert done.returncode == 0, done.stderr


# --- the whole sequence, on hosts that are folders ----------------------------------------

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


# --- the launcher -------------------------------------------------------------------------

PROBE = """\
import sys
assert __name__ == "__main__"
print(sys.argv[1:], "jax" in sys.modules)
print("to stderr", file=sys.stderr)
sys.exit(3 if sys.argv[1:] == ["3"] else None)
"""

PROBE_OF_TWO = """\
import sys, jax
print(jax.process_index(), jax.process_count(), jax.device_count(), len(jax.devices()))
sys.stderr.write(f"process {jax.process_index()} of {jax.process_count()}\\n")
"""


def launched(folder, *words, **environ):
    kept = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.tpu.launch", *words],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_process_runs_the_module_as_python_does(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    process = launched(tmp_path, "probe", "a b", "--c")
    assert process.communicate() == ("['a b', '--c'] False\n", "to stderr\n")
    assert process.returncode == 0
    process = launched(tmp_path, "probe", "3")
    process.communicate()
    assert process.returncode == 3


@pytest.mark.parametrize("module", ["nowhere", "nowhere.at.all", "experiments.nowhere"])
def test_a_module_that_is_not_there_is_said_before_joining(module, monkeypatch, capsys):
    monkeypatch.setattr(launch, "joins", lambda environ: pytest.fail("joined"))
    with pytest.raises(SystemExit, match="2"):
        launch.main([module])
    assert f"there is no module '{module}'" in capsys.readouterr().err


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    "environ, joined",
    [
        ({}, False),
        (STEP | {"SLURM_NTASKS": "2"}, True),
        (STEP | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # not started by srun
        ({"SYNFLOW_DISTRIBUTED": "1"}, True),
        (STEP | {"SLURM_NTASKS": "2", "SYNFLOW_DISTRIBUTED": "0"}, False),
    ],
)
def test_processes_join_where_there_are_several(environ, joined):
    assert launch.joins(environ) is joined


def free_job():
    """A number of a job whose port, which JAX takes from it, is free; and the port."""
    for job in range(os.getpid(), os.getpid() + 4096):
        port = job % 4096 + 65536 - 4096
        with socket.socket() as tried:
            try:
                tried.bind(("localhost", port))
            except OSError:
                continue
            return str(job), port


def two_of_a_step(folder, module):
    job, port = free_job()
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    step["JAX_COORDINATOR_BIND_ADDRESS"] = f"localhost:{port}"  # of this machine alone
    return [
        launched(folder, module, **step, SLURM_PROCID=index, SLURM_LOCALID=index)
        for index in "01"
    ]


def test_two_processes_of_a_step_join_and_the_first_one_prints(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE_OF_TWO)
    processes = two_of_a_step(tmp_path, "probe")
    (out, err), (other_out, other_err) = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], err + other_err
    assert out == "0 2 2 2\n" and other_out == ""
    assert "process 0 of 2" in err and "process 1 of 2" in other_err


def test_a_process_that_fails_does_not_wait_for_the_others(tmp_path):
    # Process 0, whose end the other notices at once.
    (tmp_path / "probe.py").write_text(
        "import jax, time\n"
        "if jax.process_index() == 0: raise SystemExit('it fails')\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    processes = two_of_a_step(tmp_path, "probe")
    (_, err), _ = [p.communicate(timeout=60) for p in processes]
    assert processes[0].returncode == 1 and err.endswith("it fails\n")
    assert processes[1].returncode != 0 and time.monotonic() - began < 40


def test_devices_are_counted_and_checked(capsys):
    count = str(jax.device_count())
    devices.main(["--platform", "cpu", "--count", count])
    assert f"process 0 of 1 on {platform.node()}: {count} devices" in (
        capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match="which is not tpu"):
        devices.main(["--platform", "tpu"])
    with pytest.raises(SystemExit, match="there should be 77"):
        devices.main(["--count", "77"])
