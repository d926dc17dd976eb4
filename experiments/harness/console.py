"""What a run says while it works: bars on a terminal, plain lines anywhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

CONSOLE = Console(highlight=False)


def say(text: str) -> None:
    """Prints one line that stays, unbroken whatever the width."""
    CONSOLE.print(text, soft_wrap=True)


@contextlib.contextmanager
def progress(
    text: str, total: int | None = None, *, first: str = "compiling"
) -> Iterator[Callable[..., None]]:
    """Shows a bar with a spinner while its block runs, on a terminal only.

    The bar vanishes at the end, so that a terminal and a log file are left with the same
    lines: those of `say`.

    Args:
      text: what is going on.
      total: number of steps; None for a spinner without a bar.
      first: what happens before the first step is done, shown after ``text`` until then.

    Yields:
      ``advance(n)``: call it when ``n`` more steps are done; ``advance(n, text)`` also
      says what is going on now.
    """
    counted = [BarColumn(bar_width=24), MofNCompleteColumn()] if total else []
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *counted,
        TimeElapsedColumn(),
        console=CONSOLE,
        transient=True,
        disable=not CONSOLE.is_interactive,
    )
    with bar:
        task = bar.add_task(f"{text} ({first})" if first else text, total=total)

        def advance(n: int, now: str = text) -> None:
            bar.update(task, description=now, advance=n)

        yield advance
