"""The tables that questions are made from, read from the TOML files beside this module and checked against their types.

Each file says at its top what its fields mean. A table is read when it is first asked for, and once.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from amalgam_demo.task_item import Split

Kind = Literal["numbers", "words", "text", "records"]
Shape = Mapping[str, "str | Shape | list[Shape]"]
Pool = Annotated[tuple[str, ...], Field(min_length=1)]
Pools = Mapping[Split, Pool]
"""Each split has one pool; no two splits share an entry."""

_STRICT = ConfigDict(extra="forbid")
_Table = TypeVar("_Table")


@dataclass(frozen=True, slots=True, config=_STRICT)
class Template:
    """A skill: its name, and the sentences that ask for it, by split.

    Attributes:
        name: The skill.
        train: Sentences of training. dev: Of tuning. test: Of the held-out questions.
    """

    name: str
    train: Pool
    dev: Pool
    test: Pool

    @property
    def wordings(self) -> Pools:
        """The sentences by split."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


@dataclass(frozen=True, slots=True, config=_STRICT)
class SqlTemplate(Template):
    """A skill of the task ``sql``."""

    query: str

    @property
    def joins(self) -> bool:
        """Whether the query reads the child table."""
        return "{u}" in self.query


@dataclass(frozen=True, slots=True, config=_STRICT)
class CodeTemplate(Template):
    """A skill of the task ``code``.

    Attributes:
        kind: What the argument is.
        body: Lines below ``def``; a body of one line is what the function returns.
        empty: Whether an empty argument is a fair case.
    """

    kind: Kind
    body: str
    empty: bool = True


@dataclass(frozen=True, slots=True, config=_STRICT)
class JsonTemplate(Template):
    """A kind of text of the task ``json``, with the shape of its JSON."""

    shape: dict[str, Any]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Domain:
    """A table with a naming column, one column of categories and two of integers, and a child table that refers to it.

    Attributes:
        table: Plural name. label: Column that names a row. category: Column of few values.
        values: At least four values of the category.
        first, second: Integer columns. low, high: Range of both, inclusive.
        child: Child table. key: Its column with the parent's ``id``. amount: Its integer column.
    """

    table: str
    label: str
    category: str
    values: Annotated[tuple[str, ...], Field(min_length=4)]
    first: str
    second: str
    low: int
    high: int
    child: str
    key: str
    amount: str

    @property
    def entities(self) -> frozenset[str]:
        """Every name and value; ``id`` and the SQL keywords are grammar."""
        names = (self.table, self.label, self.category, self.first, self.second, self.child, self.key, self.amount)
        return frozenset(names + self.values)


@dataclass(frozen=True, slots=True, config=_STRICT)
class Words:
    """Single words by what they can name; in values an underline stands for the blank of two words."""

    tables: Pool
    labels: Pool
    categories: Pool
    numbers: Pool
    values: Pool


@dataclass(frozen=True, slots=True, config=_STRICT)
class JsonPools:
    """Pools of the values, and of the key names by concept."""

    values: dict[str, Pools]
    keys: dict[str, Pools]


@cache
def sql_templates() -> tuple[SqlTemplate, ...]:
    """All skills of the task ``sql``."""
    return _read("sql.toml", TypeAdapter(tuple[SqlTemplate, ...]), "template")


@cache
def code_templates() -> tuple[CodeTemplate, ...]:
    """All skills of the task ``code``."""
    return _read("code.toml", TypeAdapter(tuple[CodeTemplate, ...]), "template")


@cache
def json_templates() -> tuple[JsonTemplate, ...]:
    """All kinds of text of the task ``json``."""
    return _read("json.toml", TypeAdapter(tuple[JsonTemplate, ...]), "template")


@cache
def json_pools() -> JsonPools:
    """What the task ``json`` draws its values and key names from."""
    return _read("pools.toml", TypeAdapter(JsonPools))


@cache
def domains() -> Mapping[Split, tuple[Domain, ...]]:
    """The worlds of each split."""
    return _read("domains.toml", TypeAdapter(dict[Split, tuple[Domain, ...]]))


@cache
def words() -> Words:
    """What training's mixed worlds are made of."""
    return _read("words.toml", TypeAdapter(Words))


def _read(name: str, of: TypeAdapter[_Table], key: str | None = None) -> _Table:
    content = tomllib.loads((files("amalgam_demo") / "data" / name).read_text(encoding="utf-8"))
    return of.validate_python(content if key is None else content[key])
