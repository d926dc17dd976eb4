"""What run.sh, status.sh and stop.sh do on one host: one program that outlives its caller.

  python -m experiments.tpu.host start COMMAND...
  python -m experiments.tpu.host status
  python -m experiments.tpu.host stop

The program runs in a session of its own, so it goes on when the ssh connection ends. The
lock is held by every process of it, so it is free exactly when none of them is left.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

LOG = pathlib.Path("logs/run.log")
LOCK = pathlib.Path("logs/run.lock")  # holds the group of the processes, and the command

GRACE = 1.0  # seconds in which a start that fails is reported at once
PATIENCE = 10.0  # seconds that a program has to end when it is asked to


def start(command: list[str]) -> int:
    """Starts the command, unless something runs here.

    Returns:
      The exit status: 0 also if this very command runs already, as gcloud says a command
      again when its connection breaks.
    """
    if not command:
        return _say("start wants a command", 2)
    LOCK.parent.mkdir(exist_ok=True)
    wanted = shlex.join(command)
    with _lock() as (lock, is_free):
        if not is_free:
            running = _record()[1]
            if running == wanted:
                return _say(f"runs already: {running}")
            return _say(f"another program runs here, stop it first: {running}", 1)
        bin_dir = os.path.dirname(sys.executable)
        environ = os.environ | {
            "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "SYNFLOW_DISTRIBUTED": os.environ.get("SYNFLOW_DISTRIBUTED", "1"),
        }
        os.set_inheritable(lock, True)
        with open(LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.tpu.host", "watch", *command],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=False,
            )
        LOCK.write_text(f"{process.pid}\n{wanted}\n")
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return _say(f"started: {wanted}")
    # Not the status itself: after 255 gcloud would try again.
    return _say(f"ended at once: {wanted}\n{_last_lines()}", 1 if code else 0)


def watch(command: list[str]) -> int:
    """Runs the command and writes when it began, and how it ended, around what it says."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # `stop` asks the command as well
    _note(f"starts: {shlex.join(command)}")
    try:
        code = subprocess.call(command, close_fds=False)
    except OSError as error:
        _note(str(error))
        code = 127
    _note(f"ended with status {code}")
    return 1 if code else 0


def status() -> int:
    """Says what runs here, and the last lines of the log."""
    if not LOG.exists():
        return _say("nothing was started here")
    with _lock() as (_, is_free):
        pass
    running = "nothing runs" if is_free else f"runs: {_record()[1]}"
    return _say(f"{running}\n{_last_lines()}")


def stop() -> int:
    """Ends what runs here: asks, waits, and then forces."""
    for ask, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
        if _becomes_free(0):
            return _say("nothing runs")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_record()[0], ask)
        if _becomes_free(patience):
            return _say("stopped")
    return _say("it does not end", 1)


@contextlib.contextmanager
def _lock() -> Iterator[tuple[int, bool]]:
    """The lock, taken if it is free; a process that inherits it keeps it."""
    LOCK.parent.mkdir(exist_ok=True)
    with open(LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield file.fileno(), False
        else:
            yield file.fileno(), True


def _becomes_free(seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        with _lock() as (_, is_free):
            if is_free or time.monotonic() >= until:
                return is_free
        time.sleep(0.1)


def _record() -> tuple[int, str]:
    group, command = LOCK.read_text().split("\n", 1)
    return int(group), command.strip()


def _last_lines(count: int = 8) -> str:
    with open(LOG, "rb") as file:
        file.seek(max(0, LOG.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-count:])


def _note(text: str) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    print(f"# {now} {text}", flush=True)


def _say(text: str, status: int = 0) -> int:
    # In one write, as several hosts say it at once.
    sys.stdout.write(f"{platform.node()}: {text}\n")
    sys.stdout.flush()
    return status


def main(argv: list[str]) -> int:
    """Does what the first word says."""
    match argv:
        case ["start", *command]:
            return start(command)
        case ["watch", *command]:
            return watch(command)
        case ["status"]:
            return status()
        case ["stop"]:
            return stop()
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
