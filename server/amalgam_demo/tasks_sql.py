"""Task ``sql``: a question about one or two tables becomes a query; scored by what the query returns.

An answer is right when it returns what the reference returns on every database of the item: the same rows the same
number of times, in the same order where the reference orders. The databases hold every value and both sides of every
boundary of the question, in an order that no query asks for, so that a wrong query is rarely right by accident.
"""

import sqlite3
from collections import Counter
from random import Random
from typing import Final

from amalgam_demo.domains import draw_domain
from amalgam_demo.tables import Domain, SqlTemplate, sql_templates
from amalgam_demo.task_item import Split, TaskItem, bare_answer

DATABASES: Final = 2
"""An answer is tried on so many databases."""
PARENT_ROWS: Final = 14
CHILD_ROWS: Final = 24
MAX_STEPS: Final = 2_000_000
"""One query may take so many SQLite instructions; a reference takes a few hundred."""
MAX_ROWS: Final = 1_000
MAX_VALUE_BYTES: Final = 100_000
_STEPS_PER_CHECK: Final = 10_000
_READS: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION})

Row = tuple[object, ...]


def generate(split: Split, count: int, rng: Random) -> tuple[TaskItem, ...]:
    """``count`` items of ``split``; the templates take turns, everything else is drawn from ``rng``."""
    order = list(sql_templates())
    rng.shuffle(order)
    return tuple(_item(order[index % len(order)], split, rng) for index in range(count))


def score(item: TaskItem, answer: str) -> bool:
    """Whether ``answer`` is one query that returns what the reference returns, on every database of ``item``."""
    query = bare_answer(answer)
    if not query:
        return False
    return all(_agrees(script, item.reference, query) for script in item.evidence)


def _agrees(script: str, reference: str, query: str) -> bool:
    """Whether ``query`` and ``reference`` return the same on the database that ``script`` fills."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        _confine(connection)
        expected = _rows(connection, reference)
        found = _rows(connection, query)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        # A query that does not parse, asks for more than reading, or takes too long is a wrong answer.
        return False
    finally:
        connection.close()
    ordered = " ORDER BY " in reference
    return found == expected if ordered else Counter(found) == Counter(expected)


def _confine(connection: sqlite3.Connection) -> None:
    """Let ``connection`` read its own tables and nothing else, for a bounded time and size."""
    connection.execute("PRAGMA query_only = ON")
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)


def _rows(connection: sqlite3.Connection, query: str) -> list[Row]:
    """What ``query`` returns, numbers rounded to nine digits so that the order of a sum does not matter.

    Raises:
        sqlite3.Error: The query is wrong, forbidden or too slow.
        ValueError: It returns more than ``MAX_ROWS`` rows.
    """
    checks = iter(range(MAX_STEPS // _STEPS_PER_CHECK))
    connection.set_progress_handler(lambda: next(checks, None) is None, _STEPS_PER_CHECK)
    rows = connection.execute(query).fetchmany(MAX_ROWS + 1)
    if len(rows) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} rows")
    return [tuple(round(value, 9) if isinstance(value, float) else value for value in row) for row in rows]


def _item(template: SqlTemplate, split: Split, rng: Random) -> TaskItem:
    domain = draw_domain(split, rng)
    wording = rng.choice(template.wordings[split])
    value, other = rng.sample(domain.values, 2)
    column, second = rng.sample((domain.first, domain.second), 2)
    span = domain.high - domain.low
    low = rng.randint(domain.low + span // 4, domain.low + span // 2)
    high = rng.randint(low + 1, domain.high - span // 5)
    limit = rng.randint(2, 3 if template.name == "having" else 6)
    names = {
        "t": domain.table, "l": domain.label, "c": domain.category, "n": column, "m": second, "u": domain.child,
        "a": domain.amount, "f": domain.key, "v": value, "w": other, "x": low, "y": high, "k": limit,
    }  # fmt: skip
    words = {key: name.replace("_", " ") if isinstance(name, str) else name for key, name in names.items()}
    words.update(v=value, w=other)
    schema = _schema(domain, template.joins)
    return TaskItem(
        task="sql",
        split=split,
        template=template.name,
        wording=wording,
        entities=domain.entities,
        prompt=f"{schema}\nQuestion: {wording.format(**words)}\nAnswer with one SQL query only.",
        reference=template.query.format(**names),
        evidence=tuple(_fill(schema, domain, value, (low, high), rng) for _ in range(DATABASES)),
    )


def _schema(domain: Domain, with_child: bool) -> str:
    """The tables as the prompt shows them."""
    d = domain
    columns = f"{d.label} TEXT, {d.category} TEXT, {d.first} INTEGER, {d.second} INTEGER"
    if not with_child:
        return f"CREATE TABLE {d.table} ({columns});"
    parent = f"CREATE TABLE {d.table} (id INTEGER, {d.label} TEXT, {d.category} TEXT);"
    return f"{parent}\nCREATE TABLE {d.child} ({d.key} INTEGER, {d.amount} INTEGER);"


def _fill(schema: str, domain: Domain, value: str, bounds: tuple[int, int], rng: Random) -> str:
    """A script that makes the tables of ``schema`` and fills them, in an order that means nothing.

    Both ``bounds`` occur with the category ``value``, so that > is not >=. Every category occurs; the other rows draw
    theirs, so that the groups differ in size. No number occurs twice in a column, so that an order has no ties.
    """
    d = domain
    with_child = d.key in schema
    ids = rng.sample(range(10, 99), PARENT_ROWS)
    categories = [value, value, *d.values, *(rng.choice(d.values) for _ in range(PARENT_ROWS - 2 - len(d.values)))]
    firsts, seconds = (_numbers(d.low, d.high, bounds, rng) for _ in range(2))
    rows: list[tuple[int | str, ...]] = []
    for identity, category, first, second in zip(ids, categories, firsts, seconds, strict=True):
        name = f"{d.label[0].upper()}{rng.randrange(1000, 9999)}-{identity}"
        rows.append((identity, name, category) if with_child else (name, category, first, second))
    rng.shuffle(rows)
    script = [schema, *(_insert(d.table, row) for row in rows)]
    if with_child:
        script += [_insert(d.child, (rng.choice(ids), rng.randint(1, 500))) for _ in range(CHILD_ROWS)]
    return "\n".join(script)


def _insert(table: str, row: tuple[int | str, ...]) -> str:
    values = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in row)
    return f"INSERT INTO {table} VALUES ({values});"  # noqa: S608 -- our own pools, which hold no quotes


def _numbers(low: int, high: int, bounds: tuple[int, int], rng: Random) -> list[int]:
    """Distinct numbers in [low, high]: first the bounds, then others in random order."""
    drawn = [number for number in rng.sample(range(low, high + 1), PARENT_ROWS) if number not in bounds]
    return [*bounds, *drawn[: PARENT_ROWS - 2]]
