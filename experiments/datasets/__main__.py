"""The command that makes a data set from its standard archives, without TensorFlow.

  python -m experiments datasets prepare cifar10 --manual_dir FOLDER

reads cifar-10-binary.tar.gz in FOLDER. `experiments.datasets.archives` knows the archives
of cifar10, cifar100, fashion_mnist, imagenet2012, mnist and tiny_imagenet; where one is
missing, an error says how to get it.
"""

import contextlib
import dataclasses
import pathlib
import signal
import sys
from collections.abc import Iterator, Sequence

import tyro

from experiments.datasets import archives, preparation
from experiments.datasets.load import roots


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Writes a data set for tensorflow-datasets from its standard archives, without
    TensorFlow and without a network. Checks the archives first; an interrupted run leaves
    no partial data set, and that of a large one goes on where it was."""

    name: tyro.conf.Positional[archives.Name]
    """The data set."""
    manual_dir: pathlib.Path | None = None
    """Folder with its archives. Default: downloads/manual in --data_dir."""
    data_dir: pathlib.Path | None = None
    """Where the data set goes. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"prepare": Prepare},
        prog="python -m experiments datasets",
        args=list(sys.argv[1:] if argv is None else argv),
    )
    data_dir = roots(command.data_dir)[0]
    manual_dir = command.manual_dir or data_dir / "downloads" / "manual"
    try:
        with _terminated_tidily():
            preparation.prepare(command.name, manual_dir, data_dir)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


@contextlib.contextmanager
def _terminated_tidily() -> Iterator[None]:
    """Makes a request to end the process clean up like one from the keyboard."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
