"""How the command line ends where something is wrong: one line, a code and a sentence, and no trace."""

import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from amalgam.cli.consoles import on_stderr
from amalgam.errors import AmalgamError
from amalgam.errors.requests import FieldRefused
from amalgam.errors.terminal import FileUnusable, InvalidUsage
from amalgam.errors.type_words import told

_WIDEST_HELP: Final = 100
"""It counts columns."""
_NOT_TEXT: Final = "has letters that are not UTF-8. Write it in letters that are, or set LC_ALL=C.UTF-8."
_HELP_SHOWN: Final = "NoArgsIsHelpError"
"""Typer raises it for a verb without its own verb, with the whole help as its message; it has no public name."""


def ended(code: str, text: str, status: int = 2) -> typer.Exit:
    """Write one line on standard error; raise what comes back to end the program."""
    line = " ".join(f"{code}: {text}".split())
    on_stderr().print(line, markup=False, style="red", soft_wrap=True)
    return typer.Exit(status)


def ended_with(error: Exception) -> Exception:
    """The same for an error of our tree, of a field, or of the system; any other comes back as it is."""
    if isinstance(error, AmalgamError):
        return ended(error.code, error.message)
    if isinstance(error, ValidationError):
        return ended_with(_field(error))
    if isinstance(error, UnicodeError):
        return ended_with(FieldRefused("arguments", _NOT_TEXT))
    if isinstance(error, OSError):
        # What is wrong is the system's own word.
        path = str(error.filename) if error.filename else None
        return ended_with(FileUnusable(path, error.strerror or type(error).__name__))
    return error


def _field(error: ValidationError) -> FieldRefused:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if str(part).isidentifier()) or "options"
    if first["type"] == "string_unicode":
        return FieldRefused(place, _NOT_TEXT)
    text = told(first)
    return FieldRefused(place, f"is refused: {text[:1].lower()}{text[1:]}. Give another value.")


_Formatter: Any = typer.Context.formatter_class


class _Help(_Formatter):  # type: ignore[misc]  # its module is the library's own affair
    """Help whose texts have two thirds of a line, however narrow it is."""

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, min(col_max, self.width // 3), col_spacing)


class _Context(typer.Context):
    formatter_class = _Help


class OneLineGroup(TyperGroup):
    """Verbs that end in one line; what is left is a fault of this program, and shows where it is."""

    context_class = _Context

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for verb in self.commands.values():
            verb.context_class = _Context

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit; with ``standalone_mode`` off, return, and raise what there is."""
        extra.setdefault("terminal_width", min(shutil.get_terminal_size().columns, _WIDEST_HELP))
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        _write_what_can_be_written()
        try:
            status = _told(run)
        except typer.Exit as error:
            status = error.exit_code
        except typer.Abort:
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def _write_what_can_be_written() -> None:
    """Write, where the terminal's letters are few, question marks for the others; an answer is no fault of who asks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _leave_the_pipe() -> None:
    """Whoever read the output has gone, as `head` does: nothing is to be said, and nothing more can be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _told(run: Callable[[], Any]) -> Any:
    """What ``run`` returns. Raises typer.Exit, typer.Abort, and what has no line."""
    try:
        returned = run()
        sys.stdout.flush()
        return returned
    except BrokenPipeError:
        _leave_the_pipe()
        raise typer.Exit(1) from None
    except TyperException as error:
        if type(error).__name__ == _HELP_SHOWN:
            on_stderr().print(error.format_message(), markup=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else None
        # It takes over some sentences of the library of types, with their beginning.
        message = error.format_message().replace("Value error, ", "").replace(": Input should ", ": must ")
        message = message.partition(", unable to parse")[0].removesuffix(".")
        raise ended_with(InvalidUsage(message, command)) from None
    except (AmalgamError, ValidationError, UnicodeError, OSError) as error:
        raise ended_with(error) from None
