"""What the command says on standard error, in one line."""

import sys


class CommandError(Exception):
    """An error that the user can fix: one line on standard error, exit code 2."""


def say(text: str) -> None:
    """Prints a line to standard error, whatever the characters in it."""
    line = printable(" ".join(text.split()), sys.stderr.encoding)
    print(f"synflow: {line}", file=sys.stderr)


def printable(text: str, encoding: str | None = None) -> str:
    """The text with escapes for what cannot be printed in an encoding (default: that of
    standard output).

    Example:
      >>> printable("a\\x1b/kernel")
      'a\\\\x1b/kernel'
    """
    codec = encoding or sys.stdout.encoding or "utf-8"
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
    return shown.encode(codec, "backslashreplace").decode(codec)
