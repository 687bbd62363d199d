"""Execution accuracy: what is right by meaning counts, what is right by accident does not."""

import time

import pytest

from amalgam_demo.task_item import TaskItem
from amalgam_demo.tasks import generate
from amalgam_demo.tasks_sql import score

SCHEMA = "CREATE TABLE boats (boat TEXT, port TEXT, crew INTEGER, age INTEGER);"


def boats(*rows: str, reference: str) -> TaskItem:
    script = "\n".join([SCHEMA, *(f"INSERT INTO boats VALUES ({row});" for row in rows)])
    return TaskItem("sql", "test", "any", "any", frozenset(), "any", reference, (script,))


FLEET = ("'a', 'Kiel', 3, 9", "'b', 'Bari', 7, 4", "'c', 'Kiel', 5, 1", "'d', 'Bari', 7, 2")


def test_another_spelling_of_the_same_question_is_right() -> None:
    item = boats(*FLEET, reference="SELECT boat FROM boats WHERE crew > 4 AND port = 'Bari';")
    assert score(item, 'select b.boat from boats AS b where b.port = "Bari" and not b.crew <= 4')


def test_rows_in_another_order_are_right_where_no_order_is_asked_for() -> None:
    item = boats(*FLEET, reference="SELECT boat FROM boats WHERE port = 'Kiel';")
    assert score(item, "SELECT boat FROM boats WHERE port = 'Kiel' ORDER BY boat DESC")


def test_the_right_rows_in_the_wrong_order_are_wrong_where_an_order_is_asked_for() -> None:
    item = boats(*FLEET, reference="SELECT boat FROM boats ORDER BY age DESC;")
    assert score(item, "SELECT boat FROM boats ORDER BY -age")
    assert not score(item, "SELECT boat FROM boats ORDER BY age")


@pytest.mark.parametrize("template", ["top_k", "bottom_k", "sorted"])
def test_no_database_happens_to_lie_in_the_order_that_is_asked_for(template: str) -> None:
    items = [item for item in generate("sql", "test", 400, seed=1) if item.template == template]
    assert len(items) > 10
    for item in items:
        head, _, tail = item.reference.partition(" ORDER BY ")
        limit = f" LIMIT{tail.partition(' LIMIT')[2]}" if " LIMIT" in tail else ""
        assert not score(item, head + limit), item.reference


@pytest.mark.parametrize(("operator", "nearly"), [(" > ", " >= "), (" < ", " <= "), (" = '", " != '")])
def test_the_databases_tell_neighbouring_operators_apart(operator: str, nearly: str) -> None:
    items = [item for item in generate("sql", "test", 300, seed=2) if operator in item.reference]
    plain = [item for item in items if "HAVING" not in item.reference and "JOIN" not in item.reference]
    assert len(plain) > 10
    caught = [item for item in plain if not score(item, item.reference.replace(operator, nearly, 1))]
    assert len(caught) >= 0.9 * len(plain)


def test_a_duplicate_row_more_is_wrong() -> None:
    item = boats(*FLEET, reference="SELECT DISTINCT port FROM boats;")
    assert not score(item, "SELECT port FROM boats;")


def test_a_column_more_is_wrong() -> None:
    item = boats(*FLEET, reference="SELECT boat FROM boats WHERE crew = 3;")
    assert not score(item, "SELECT boat, crew FROM boats WHERE crew = 3;")


def test_every_database_must_agree() -> None:
    reference = "SELECT SUM(crew) FROM boats;"
    once, twice = (boats(row, reference=reference).evidence[0] for row in ("'a', 'Kiel', 3, 9", "'a', 'Kiel', 4, 9"))
    item = TaskItem("sql", "test", "any", "any", frozenset(), "any", reference, (once, twice))
    assert not score(item, "SELECT 3;")
    assert score(item, "SELECT TOTAL(crew) FROM boats;")


@pytest.mark.parametrize(
    "answer",
    [
        "DELETE FROM boats;",
        "SELECT 22; DROP TABLE boats;",
        "ATTACH DATABASE '/etc/passwd' AS other;",
        "PRAGMA table_info(boats);",
        "SELECT load_extension('anything');",
        "I do not know.",
        "SELECT crew FROM ships;",
        "SELECT zeroblob(1000000000);",
    ],
)
def test_what_is_no_reading_query_is_wrong(answer: str) -> None:
    assert not score(boats(*FLEET, reference="SELECT SUM(crew) FROM boats;"), answer)


def test_writing_before_reading_changes_nothing() -> None:
    item = boats(*FLEET, reference="SELECT COUNT(*) FROM boats;")
    assert not score(item, "INSERT INTO boats SELECT * FROM boats RETURNING 4;")
    assert score(item, "SELECT 4;")


@pytest.mark.parametrize(
    "answer",
    [
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n;",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n;",
    ],
)
def test_a_query_without_end_is_ended(answer: str) -> None:
    began = time.monotonic()
    assert not score(boats(*FLEET, reference="SELECT 1;"), answer)
    assert time.monotonic() - began < 5
