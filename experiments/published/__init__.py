"""Numbers that the paper or its code reports, beside which ours are drawn."""

import json
import pathlib
from typing import Any


def load(name: str) -> dict[str, Any]:
    """The published numbers of an experiment; "source" in them says where they are from.

    Args:
      name: of the experiment's module.
    """
    return json.loads((pathlib.Path(__file__).parent / f"{name}.json").read_text())
