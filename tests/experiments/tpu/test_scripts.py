"""The scripts for TPUs and SLURM: what they would run, and what they run."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.experiments.tpu.places import BASH, CREATE, FOLDER

SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh") if path.name != "common.sh")

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

GCLOUD = ["gcloud", "compute", "tpus", "tpu-vm"]
WHERE = ["--name", "my tpu", "--zone", "a zone"]
COMMAND = ["prog", "it's", 'a "b"', "$HOME", "--out", "results/my run", ""]


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
    "&& python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,experiments]'"
)
CHECK = (
    "cd synflow_jax && SYNFLOW_DISTRIBUTED=1 .venv/bin/python -m experiments.tpu.launch "
    "experiments.tpu.devices --platform tpu"
)
ON_HOST = "cd synflow_jax && .venv/bin/python -m experiments.tpu.host "
LAUNCH = ["python", "-m", "experiments.tpu.launch"]
MODULE = ["python", "-m", "experiments.accuracy", "--scale", "paper"]
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
