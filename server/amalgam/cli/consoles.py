"""Where the command line writes: as wide as the terminal is at that moment."""

from rich.console import Console


def on_stdout() -> Console:
    """What was asked for, on standard output."""
    return Console(highlight=False)


def on_stderr() -> Console:
    """What is said beside it, on standard error."""
    return Console(stderr=True, highlight=False)
