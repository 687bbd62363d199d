"""What the command line shows on a terminal of any width: whole words, and names as they are."""

import ast
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import amalgam.cli
from amalgam.__main__ import app
from amalgam.cli.tables import PlainTable, print_fitting, whole
from amalgam.merge.methods import METHODS
from tests.adapter_factory import write_lora

WIDTHS: Final = (40, 80)
JOB: Final = "job-0123456789abcdef0123456789"
NAME: Final = "a-team/an-adapter-with-a-rather-long-name"


def shown(width: int, *cells: str) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    table = PlainTable(whole("job"), "kind", whole("name"), "state", "changed")
    table.add_texts(*cells)
    table.add_texts(*cells)
    print_fitting(console, table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 240])
def test_a_table_cuts_no_word_and_is_no_wider_than_the_terminal(width: int) -> None:
    text = shown(width, JOB, "export", NAME, "published", "2026-11-29T08:00:00")
    assert all(len(line) <= width for line in text.splitlines()), text
    assert "…" not in text
    for word in ("export", "published", "kind", "state"):
        assert text.count(word) >= 2 - (word in ("kind", "state")), text
    if width >= 60:
        assert text.count(JOB) == text.count(NAME) == 2


@pytest.mark.parametrize("name", ["[bold]", "a[/red]b", "[link=x]", "\x1b[31mred"])
def test_a_name_with_brackets_is_shown_as_it_is(name: str) -> None:
    for width in (40, 200):
        text = shown(width, JOB, "export", name, "published", "now")
        assert name.replace("\x1b", "") in text, text
        assert "\x1b" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_methods_can_be_read(width: int) -> None:
    done = CliRunner(env={"COLUMNS": str(width), "TERM": "xterm"}).invoke(app, ["merge", "methods"])
    assert done.exit_code == 0, done.output
    assert all(len(line) <= width for line in done.stdout.splitlines())
    assert "…" not in done.stdout
    assert all(name in done.stdout for name in METHODS)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_can_be_read(width: int, tmp_path: Path) -> None:
    made = [write_lora(tmp_path / f"run-{i}", rank=1, seed=i, hidden=24) for i in range(4)]
    done = CliRunner(env={"COLUMNS": str(width), "TERM": "xterm"}).invoke(
        app, ["merge", "plan", " + ".join(map(str, made))]
    )
    assert done.exit_code == 0, done.output
    assert all(len(line) <= width for line in done.stdout.splitlines()), done.stdout
    assert all(f"run-{i}" in done.stdout for i in range(4))


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, (*path, name))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_help_cuts_a_word_or_is_wider_than_the_terminal(width: int) -> None:
    seen = 0
    for path, command in commands(typer.main.get_command(app)):
        done = CliRunner(env={"COLUMNS": str(width), "TERM": "xterm"}).invoke(app, [*path, "--help"])
        assert done.exit_code == 0, done.output
        # A name with its values is one word.
        assert all(len(line) <= width or len(line.split()) == 2 for line in done.stdout.splitlines()), done.stdout
        for parameter in command.params:
            seen += 1
            shown = (option for option in parameter.opts if option.startswith("--"))
            assert all(option in done.stdout for option in shown), (path, parameter.opts, done.stdout)
    assert seen > 100


def printed() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a console's ``print`` in the command line."""
    for path in Path(amalgam.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "print":
                yield f"{path.name}:{node.lineno}", node


def test_no_line_with_a_name_is_broken_or_read_as_markup() -> None:
    seen = 0
    for place, call in printed():
        if not call.args or not isinstance(call.args[0], ast.JoinedStr):
            continue
        seen += 1
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("soft_wrap") == "True", f"{place}: a terminal would break it, and so would a pipe"
        values = [part.value for part in call.args[0].values if isinstance(part, ast.FormattedValue)]
        foreign = [
            value for value in values if not ast.unparse(value).startswith(("escape(", "color", "took_s", "split"))
        ]
        plain = given.get("markup") == "False"
        assert plain or all(ast.unparse(value).startswith("finding.") for value in foreign), f"{place}: escape it"
    assert seen > 15
