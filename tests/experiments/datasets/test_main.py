"""The command that prepares data sets."""

import os
import signal

import pytest

from experiments.datasets import preparation
from experiments.datasets.__main__ import main
from experiments.datasets.load import load
from tests.experiments.datasets.made import checksums, cifar10, contents


@pytest.fixture
def any_archive(manual, monkeypatch):
    checked = preparation.prepare

    def unchecked(*args):
        return checked(*args, checksums=checksums(manual))

    monkeypatch.setattr(preparation, "prepare", unchecked)


def test_the_command_prepares(manual, tmp_path, any_archive, capsys):
    cifar10(manual)
    folders = ["--manual_dir", str(manual), "--data_dir", str(tmp_path / "tfds")]
    main(["prepare", "cifar10", *folders])
    assert "cifar10: 20 train and 7 test images in" in capsys.readouterr().out
    assert load("cifar10", tmp_path / "tfds").num_classes == 10


def test_the_command_looks_where_tensorflow_datasets_does(nothing_prepared, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["prepare", "cifar10"])
    folder = tmp_path / "tfds" / "downloads" / "manual"
    message = str(error.value.code)
    assert message.startswith(f"error: '{folder}' lacks cifar-10-binary.tar.gz; get ")
    assert "\n" not in message


def test_a_request_to_end_leaves_nothing(manual, tmp_path, any_archive, stopped_after):
    cifar10(manual)
    stopped_after(13, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    folders = ["--manual_dir", str(manual), "--data_dir", str(tmp_path / "tfds")]
    with pytest.raises(SystemExit, match="interrupted"):
        main(["prepare", "cifar10", *folders])
    assert contents(tmp_path / "tfds") == []
    assert signal.getsignal(signal.SIGTERM) is before
