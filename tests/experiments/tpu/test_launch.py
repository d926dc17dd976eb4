"""The launcher: processes that join, and what they are told."""

import os
import platform
import socket
import subprocess
import sys
import time

import jax
import pytest

from experiments.tpu import devices, launch
from tests.experiments.tpu.places import ROOT

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
