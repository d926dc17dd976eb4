"""Networks that are divided over eight devices: masks are those of one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.devices.eight import CHECKS

# One of each kind, and of layouts and axes those that have everything.
SHORT = [
    *("mlp-2-D-auto", "mlp-2-D-explicit", "decoder-2-D-explicit", "functions-explicit"),
    *("shard_map-explicit", "made-inside-auto", "made-inside-explicit", "convolutions"),
    *("data-grasp", "seeds", "keep-top", "budget"),
]
LONG = [name for name in CHECKS if name not in SHORT]


def run(names):
    """What failed, by name: all checks in one process."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.eight", *names],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def failed():
    return run(SHORT)


@pytest.fixture(scope="module")
def failed_of_long():
    return run(LONG)


@pytest.mark.parametrize("name", SHORT)
def test_on_eight_devices(name, failed):
    assert name not in failed, failed[name]


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_more_on_eight_devices(name, failed_of_long):
    assert name not in failed_of_long, failed_of_long[name]
