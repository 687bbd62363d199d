"""Tables that can be read however narrow a terminal is, and whose cells are shown as they are."""

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

UNBOUND: Final = 1000
"""A table that no terminal shows has so many columns."""
LEAST_WIDTH: Final = 24
"""It counts columns. In fewer, headings and values side by side would leave no word whole."""


class PlainTable(Table):
    """A table of texts: brackets in a name are no markup."""

    def add_texts(self, *cells: str) -> None:
        """Add one row; what would steer the terminal is left out."""
        self.add_row(*(Text("".join(c for c in cell if c.isprintable() or c == "\n")) for cell in cells))


def whole(heading: str) -> Column:
    """A column of names or ids, of which nothing is cut off: they are there to be copied."""
    return Column(heading, overflow="fold")


def print_fitting(console: Console, table: PlainTable) -> None:
    """Print ``table``; where a word would not fit into its column, every row as lines of a heading and its value."""
    if not table.row_count:
        console.print("none")
        return
    needed = Measurement.get(console, console.options.update(max_width=UNBOUND), table).minimum
    if needed <= console.width:
        console.print(table)
        return
    for number, record in enumerate(_records(table)):
        if number:
            console.print()
        if console.width >= LEAST_WIDTH:
            console.print(record)
            continue
        for heading, cell in zip(*(column.cells for column in record.columns), strict=True):
            console.print(Text.assemble(str(heading), " ", str(cell)), overflow="fold")


def _records(table: PlainTable) -> Iterator[Table]:
    headings = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        record = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
        for heading, cell in zip(headings, row, strict=True):
            if str(cell):
                record.add_row(heading, cell)
        yield record
