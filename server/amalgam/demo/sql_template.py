"""What one SQL question asks: a skill, with its query and its wordings per split.

In wordings ``{t}`` is the table in words, ``{l}`` the naming column, ``{c}`` the category column, ``{v}`` and ``{w}``
two of its values, ``{n}`` and ``{m}`` the integer columns, ``{x}`` and ``{y}`` numbers with x < y, ``{k}`` a small
number, ``{u}`` the child table and ``{a}`` its integer column. Queries use the same letters for the names themselves,
and ``{f}`` for the child's key.
"""

from dataclasses import dataclass

from amalgam.demo.wordings import Wordings, wordings


@dataclass(frozen=True, slots=True)
class SqlTemplate:
    """A skill: its query, and its wordings per split."""

    name: str
    query: str
    wordings: Wordings

    @property
    def joins(self) -> bool:
        """Whether the query reads the child table."""
        return "{u}" in self.query


def row(name: str, query: str, train: str, dev: str, test: str) -> SqlTemplate:
    """A template whose wordings stand on one line each."""
    return SqlTemplate(name, query, wordings(train, dev, test))
