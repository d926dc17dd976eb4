"""Where the scripts are, and how a TPU is made, for the tests of them."""

import pathlib
import shutil

ROOT = pathlib.Path(__file__).parents[3]
FOLDER = ROOT / "experiments" / "tpu"
BASH = shutil.which("bash")
CREATE = ["--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base"]
