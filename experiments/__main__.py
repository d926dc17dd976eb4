"""One of the experiments, by its name.

python -m experiments             # lists them
python -m experiments NAME --help
"""

import ast
import importlib
import pathlib
import sys
from typing import NamedTuple

from experiments.harness import command

HERE = pathlib.Path(__file__).parent


class Command(NamedTuple):
    """What can be run by its name: its module, and the first sentence on it."""

    module: str
    about: str


def commands() -> dict[str, Command]:
    """What can be run by its name; found without importing anything."""
    files = {path.stem: path for path in sorted(HERE.glob("*.py"))}
    files |= {path.parent.name: path for path in sorted(HERE.glob("*/__main__.py"))}
    found = {}
    for name, path in files.items():
        text = path.read_text("utf-8")
        if name != HERE.name and not name.startswith("__") and '"__main__"' in text:
            about = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
            module = f"experiments.{name}" + (".__main__" if path.stem != name else "")
            found[name] = Command(module, about.splitlines()[0])
    return found


def main(argv: list[str]) -> None:
    """Runs what the first argument names with the others."""
    known = commands()
    if argv and argv[0] in known:
        place = known[argv[0]]
        module = importlib.import_module(place.module)
        if hasattr(module, "EXPERIMENT"):
            command.main(module.EXPERIMENT, argv[1:])
        else:
            module.main(argv[1:])
        return
    width = max(map(len, known))
    listed = "\n".join(f"  {name:{width}}  {own.about}" for name, own in known.items())
    if argv and argv[0] not in ("-h", "--help"):
        raise SystemExit(f"error: there is no experiment {argv[0]!r}; there are\n{listed}")
    print(f"python -m experiments NAME [options], with NAME one of\n{listed}")


if __name__ == "__main__":
    main(sys.argv[1:])
