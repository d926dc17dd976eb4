"""Folders to prepare data sets in, and a way to interrupt it."""

import tempfile

import pytest

from experiments.datasets import archives, load
from tests.experiments.datasets.made import one_colour


@pytest.fixture(scope="module", autouse=True)
def _folders_that_tfds_leaves(tmp_path_factory):
    """It makes one for every builder of data that is not prepared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("left")))
        yield


@pytest.fixture
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "SHARED", tmp_path / "shared")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    one_colour(root)
    return root


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


@pytest.fixture
def stopped_after(monkeypatch):
    """Makes the reading of examples stop; ``seen`` holds the places read."""
    seen = []
    opened = archives.opened

    def stop(count, how):
        limit = len(seen) + count

        def limited(examples):
            def example(i):
                if len(seen) == limit:
                    how()
                seen.append(i)
                return examples.example(i)

            return examples._replace(example=example)

        class Opened:
            def __init__(self, *args):
                self.splits = opened(*args)

            def __enter__(self):
                return {k: limited(v) for k, v in self.splits.__enter__().items()}

            def __exit__(self, *error):
                return self.splits.__exit__(*error)

        monkeypatch.setattr(archives, "opened", Opened)
        return seen

    return stop
