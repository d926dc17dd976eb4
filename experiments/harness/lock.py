"""One process at a time in a folder; a process that is killed leaves no lock behind."""

import contextlib
import os
import pathlib
import platform
from collections.abc import Iterator

NAME = ".lock"


@contextlib.contextmanager
def held(folder: pathlib.Path, command: str) -> Iterator[None]:
    """Holds the folder while the context lasts; it is free when the process has ended.

    Args:
      folder: made if it does not exist, and removed if it is empty in the end.
      command: what others are told that holds it.

    Raises:
      FileExistsError: if another process holds the folder; it says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _locked(path)
    if file is None:  # no locks on this system, or on this file system
        yield
        return
    try:
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}: {command}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # before another can have it
        file.close()
        with contextlib.suppress(OSError):  # unless it is as empty as it was made
            folder.rmdir()


def _locked(path: pathlib.Path):
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise FileExistsError(
                f"{os.fspath(path.parent)!r} is in use by {holder}. Wait for it, or name "
                "other folders with --runs and --out."
            ) from None
        except OSError:
            file.close()
            return None
        # Its last holder may have removed the file between the two lines above.
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
        file.close()
