"""What SQL questions ask: one row a skill, with its query and its wordings per split.

In wordings ``{t}`` is the table in words, ``{l}`` the naming column, ``{c}`` the category column, ``{v}`` and ``{w}``
two of its values, ``{n}`` and ``{m}`` the integer columns, ``{x}`` and ``{y}`` numbers with x < y, ``{k}`` a small
number, ``{u}`` the child table and ``{a}`` its integer column. Queries use the same letters for the names themselves,
and ``{f}`` for the child's key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from amalgam.demo.task_item import Split


@dataclass(frozen=True, slots=True)
class SqlTemplate:
    """A skill: its query, and its wordings per split; ``joins`` where it needs the child table."""

    name: str
    query: str
    wordings: Mapping[Split, tuple[str, ...]]

    @property
    def joins(self) -> bool:
        """Whether the query reads the child table."""
        return "{u}" in self.query


def _row(name: str, query: str, train: str, dev: str, test: str) -> SqlTemplate:
    """A template whose wordings stand on one line each."""
    pools = {"train": _lines(train), "dev": _lines(dev), "test": _lines(test)}
    return SqlTemplate(name, query, pools)  # type: ignore[arg-type]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


SQL_TEMPLATES: Final[tuple[SqlTemplate, ...]] = (
    _row(
        "count_all",
        "SELECT COUNT(*) FROM {t};",
        """How many {t} are there?
        Count all {t}.
        What is the number of {t}?
        How many rows of {t} do we have?
        Give me the number of all {t}.""",
        "How many {t} exist?",
        """How many {t} do we have in all?
        Tell me the count of {t}.""",
    ),
    _row(
        "count_equal",
        "SELECT COUNT(*) FROM {t} WHERE {c} = '{v}';",
        """How many {t} have {c} {v}?
        Count the {t} whose {c} is {v}.
        What is the number of {t} with {c} {v}?
        How many of the {t} are of {c} {v}?
        Give me the number of {t} where {c} equals {v}.""",
        "How many {t} are there with {c} {v}?",
        """Tell me how many {t} have the {c} {v}.
        For {c} {v}, how many {t} are there?""",
    ),
    _row(
        "count_above",
        "SELECT COUNT(*) FROM {t} WHERE {n} > {x};",
        """How many {t} have {n} above {x}?
        Count the {t} with more than {x} {n}.
        What is the number of {t} whose {n} is greater than {x}?
        How many of the {t} have {n} over {x}?
        Give me the number of {t} where {n} is larger than {x}.""",
        "How many {t} are there with {n} over {x}?",
        """Tell me how many {t} have {n} greater than {x}.
        For how many {t} is {n} above {x}?""",
    ),
    _row(
        "list_equal",
        "SELECT {l} FROM {t} WHERE {c} = '{v}';",
        """List the {l} of {t} with {c} {v}.
        Show the {l} of all {t} whose {c} is {v}.
        What is the {l} of each of the {t} where {c} equals {v}?
        Which {l} belongs to {t} of {c} {v}?
        Give me the {l} of every row in {t} with {c} {v}.""",
        "Print the {l} of {t} whose {c} equals {v}.",
        """Return the {l} of all {t} where {c} is {v}.
        I want the {l} of {t} that have {c} {v}.""",
    ),
    _row(
        "list_unequal",
        "SELECT {l} FROM {t} WHERE {c} != '{v}';",
        """List the {l} of {t} whose {c} is not {v}.
        Show the {l} of all {t} except those with {c} {v}.
        Which {l} belongs to {t} of a {c} other than {v}?
        Give me the {l} of {t} where {c} differs from {v}.
        What is the {l} of the {t} that do not have {c} {v}?""",
        "Print the {l} of {t} with any {c} but not {v}.",
        """Return the {l} of all {t} where {c} is not {v}.
        I want the {l} of {t} with a {c} other than {v}.""",
    ),
    _row(
        "list_above",
        "SELECT {l} FROM {t} WHERE {n} > {x};",
        """List the {l} of {t} with {n} above {x}.
        Show the {l} of all {t} whose {n} is greater than {x}.
        Which {l} belongs to {t} with more than {x} {n}?
        Give me the {l} of {t} where {n} is over {x}.
        What is the {l} of the {t} with {n} larger than {x}?""",
        "Print the {l} of {t} whose {n} is over {x}.",
        """Return the {l} of all {t} where {n} is above {x}.
        I want the {l} of {t} that have {n} greater than {x}.""",
    ),
    _row(
        "list_below",
        "SELECT {l} FROM {t} WHERE {n} < {x};",
        """List the {l} of {t} with {n} below {x}.
        Show the {l} of all {t} whose {n} is less than {x}.
        Which {l} belongs to {t} with fewer than {x} {n}?
        Give me the {l} of {t} where {n} is under {x}.
        What is the {l} of the {t} with {n} smaller than {x}?""",
        "Print the {l} of {t} whose {n} is under {x}.",
        """Return the {l} of all {t} where {n} is below {x}.
        I want the {l} of {t} that have {n} less than {x}.""",
    ),
    _row(
        "list_between",
        "SELECT {l} FROM {t} WHERE {n} BETWEEN {x} AND {y};",
        """List the {l} of {t} with {n} between {x} and {y}.
        Show the {l} of all {t} whose {n} is from {x} to {y}.
        Which {l} belongs to {t} with {n} of at least {x} and at most {y}?
        Give me the {l} of {t} where {n} lies between {x} and {y}.
        What is the {l} of the {t} with {n} from {x} up to {y}?""",
        "Print the {l} of {t} whose {n} ranges from {x} to {y}.",
        """Return the {l} of all {t} where {n} is between {x} and {y}.
        I want the {l} of {t} that have {n} from {x} to {y}.""",
    ),
    _row(
        "list_and",
        "SELECT {l} FROM {t} WHERE {c} = '{v}' AND {n} > {x};",
        """List the {l} of {t} with {c} {v} and {n} above {x}.
        Show the {l} of all {t} whose {c} is {v} and whose {n} is greater than {x}.
        Which {l} belongs to {t} of {c} {v} with more than {x} {n}?
        Give me the {l} of {t} where {c} equals {v} and {n} is over {x}.
        What is the {l} of the {c} {v} {t} with {n} larger than {x}?""",
        "Print the {l} of {t} whose {c} is {v} and whose {n} is over {x}.",
        """Return the {l} of all {t} where {c} is {v} and {n} is above {x}.
        I want the {l} of {t} that have {c} {v} and {n} greater than {x}.""",
    ),
    _row(
        "list_or",
        "SELECT {l} FROM {t} WHERE {c} = '{v}' OR {c} = '{w}';",
        """List the {l} of {t} with {c} {v} or {w}.
        Show the {l} of all {t} whose {c} is {v} or {w}.
        Which {l} belongs to {t} of {c} {v} or of {c} {w}?
        Give me the {l} of {t} where {c} is either {v} or {w}.
        What is the {l} of the {t} with {c} {v} or {c} {w}?""",
        "Print the {l} of {t} whose {c} equals {v} or {w}.",
        """Return the {l} of all {t} where {c} is {v} or {w}.
        I want the {l} of {t} that have either {c} {v} or {w}.""",
    ),
    _row(
        "sum_all",
        "SELECT SUM({n}) FROM {t};",
        """What is the total {n} of all {t}?
        Add up the {n} of all {t}.
        Give me the sum of {n} over all {t}.
        How much {n} do all {t} have together?
        Sum the {n} of the {t}.""",
        "What do the {n} of all {t} add up to?",
        """Tell me the total {n} of the {t}.
        What is the sum of the {n} of all {t}?""",
    ),
    _row(
        "sum_equal",
        "SELECT SUM({n}) FROM {t} WHERE {c} = '{v}';",
        """What is the total {n} of {t} with {c} {v}?
        Add up the {n} of all {t} whose {c} is {v}.
        Give me the sum of {n} over {t} of {c} {v}.
        How much {n} do the {t} with {c} {v} have together?
        Sum the {n} of the {t} where {c} equals {v}.""",
        "What do the {n} of {t} with {c} {v} add up to?",
        """Tell me the total {n} of the {t} that have {c} {v}.
        What is the sum of the {n} of {t} whose {c} is {v}?""",
    ),
    _row(
        "average_all",
        "SELECT AVG({n}) FROM {t};",
        """What is the average {n} of all {t}?
        Compute the mean {n} of the {t}.
        Give me the average of {n} over all {t}.
        What {n} do the {t} have on average?
        Find the mean of the {n} of all {t}.""",
        "On average, what {n} do {t} have?",
        """Tell me the average {n} of the {t}.
        What is the mean {n} over all {t}?""",
    ),
    _row(
        "average_equal",
        "SELECT AVG({n}) FROM {t} WHERE {c} = '{v}';",
        """What is the average {n} of {t} with {c} {v}?
        Compute the mean {n} of {t} whose {c} is {v}.
        Give me the average of {n} over {t} of {c} {v}.
        What {n} do {t} with {c} {v} have on average?
        Find the mean of the {n} of {t} where {c} equals {v}.""",
        "On average, what {n} do {t} of {c} {v} have?",
        """Tell me the average {n} of the {t} that have {c} {v}.
        What is the mean {n} over {t} whose {c} is {v}?""",
    ),
    _row(
        "maximum",
        "SELECT MAX({n}) FROM {t};",
        """What is the highest {n} of all {t}?
        Find the largest {n} among the {t}.
        Give me the maximum {n} of the {t}.
        What is the biggest {n} in {t}?
        Show the greatest {n} of any of the {t}.""",
        "What is the top {n} among all {t}?",
        """Tell me the maximum {n} among all {t}.
        What is the largest {n} of the {t}?""",
    ),
    _row(
        "minimum",
        "SELECT MIN({n}) FROM {t};",
        """What is the lowest {n} of all {t}?
        Find the smallest {n} among the {t}.
        Give me the minimum {n} of the {t}.
        What is the least {n} in {t}?
        Show the smallest {n} of any of the {t}.""",
        "What is the bottom {n} among all {t}?",
        """Tell me the minimum {n} among all {t}.
        What is the smallest {n} of the {t}?""",
    ),
    _row(
        "top_k",
        "SELECT {l} FROM {t} ORDER BY {n} DESC LIMIT {k};",
        """List the {l} of the {k} {t} with the highest {n}.
        Show the {l} of the top {k} {t} by {n}.
        Which {l} belongs to the {k} {t} with the most {n}?
        Give me the {l} of the {k} {t} with the largest {n}, largest first.
        What is the {l} of the {k} {t} with the greatest {n}?""",
        "Print the {l} of the {k} leading {t} by {n}.",
        """Return the {l} of the {k} {t} that have the highest {n}.
        I want the {l} of the {k} {t} with the largest {n}.""",
    ),
    _row(
        "bottom_k",
        "SELECT {l} FROM {t} ORDER BY {n} LIMIT {k};",
        """List the {l} of the {k} {t} with the lowest {n}.
        Show the {l} of the bottom {k} {t} by {n}.
        Which {l} belongs to the {k} {t} with the least {n}?
        Give me the {l} of the {k} {t} with the smallest {n}, smallest first.
        What is the {l} of the {k} {t} with the fewest {n}?""",
        "Print the {l} of the {k} last {t} by {n}.",
        """Return the {l} of the {k} {t} that have the lowest {n}.
        I want the {l} of the {k} {t} with the smallest {n}.""",
    ),
    _row(
        "sorted",
        "SELECT {l}, {n} FROM {t} ORDER BY {n} DESC;",
        """List {l} and {n} of all {t}, highest {n} first.
        Show the {l} and {n} of the {t} in descending order of {n}.
        Give me {l} and {n} of every row in {t}, sorted from the largest {n} to the smallest.
        Sort all {t} by {n} from high to low and show {l} and {n}.
        What are {l} and {n} of the {t}, ordered by {n} descending?""",
        "Print {l} and {n} of all {t}, by descending {n}.",
        """Return {l} and {n} of all {t}, sorted by {n}, highest first.
        I want {l} and {n} of the {t} in descending order of {n}.""",
    ),
    _row(
        "distinct",
        "SELECT DISTINCT {c} FROM {t};",
        """List every different {c} of the {t}.
        Which distinct {c} values do the {t} have?
        Show each {c} that occurs in {t} once.
        Give me the unique {c} values of all {t}.
        What different {c} values are there in {t}?""",
        "Print the distinct {c} entries of {t}.",
        """Return each different {c} of the {t}.
        I want the distinct {c} values found in {t}.""",
    ),
    _row(
        "group_count",
        "SELECT {c}, COUNT(*) FROM {t} GROUP BY {c};",
        """How many {t} are there for each {c}?
        Count the {t} per {c}.
        Show each {c} with its number of {t}.
        Give me the number of {t} by {c}.
        For every {c}, how many {t} are there?""",
        "Print the count of {t} per {c}.",
        """For each {c}, tell me the number of {t}.
        How many {t} does each {c} have?""",
    ),
    _row(
        "group_sum",
        "SELECT {c}, SUM({n}) FROM {t} GROUP BY {c};",
        """What is the total {n} of the {t} for each {c}?
        Add up the {n} of the {t} per {c}.
        Show each {c} with the sum of {n} of its {t}.
        Give me the total {n} of {t} by {c}.
        For every {c}, what is the sum of the {n} of its {t}?""",
        "Print the summed {n} of {t} per {c}.",
        """For each {c}, tell me the total {n} of the {t}.
        What is the sum of {n} over the {t} of each {c}?""",
    ),
    _row(
        "group_average",
        "SELECT {c}, AVG({n}) FROM {t} GROUP BY {c};",
        """What is the average {n} of the {t} for each {c}?
        Compute the mean {n} of the {t} per {c}.
        Show each {c} with the average {n} of its {t}.
        Give me the average {n} of {t} by {c}.
        For every {c}, what is the mean {n} of its {t}?""",
        "Print the averaged {n} of {t} per {c}.",
        """For each {c}, tell me the average {n} of the {t}.
        What is the mean {n} over the {t} of each {c}?""",
    ),
    _row(
        "having",
        "SELECT {c} FROM {t} GROUP BY {c} HAVING COUNT(*) > {k};",
        """Which {c} has more than {k} {t}?
        List every {c} with more than {k} {t}.
        Show the {c} values that occur in over {k} {t}.
        Give me each {c} that has more than {k} {t}.
        For which {c} are there over {k} {t}?""",
        "Print each {c} with over {k} {t}.",
        """Return every {c} that has more than {k} {t}.
        I want each {c} for which there are more than {k} {t}.""",
    ),
    _row(
        "join_sum",
        "SELECT SUM({u}.{a}) FROM {u} JOIN {t} ON {u}.{f} = {t}.id WHERE {t}.{c} = '{v}';",
        """What is the total {a} of the {u} of {t} with {c} {v}?
        Add up the {a} of all {u} that belong to {t} whose {c} is {v}.
        Give me the sum of {a} over the {u} of {t} of {c} {v}.
        How much {a} do the {u} of {t} with {c} {v} have together?
        Sum the {a} of the {u} of {t} where {c} equals {v}.""",
        "What do the {a} of the {u} of {t} with {c} {v} add up to?",
        """Tell me the total {a} of the {u} of {t} that have {c} {v}.
        What is the sum of the {a} of the {u} of {t} whose {c} is {v}?""",
    ),
    _row(
        "join_count",
        "SELECT COUNT(*) FROM {u} JOIN {t} ON {u}.{f} = {t}.id WHERE {t}.{c} = '{v}';",
        """How many {u} belong to {t} with {c} {v}?
        Count the {u} of {t} whose {c} is {v}.
        What is the number of {u} of {t} with {c} {v}?
        How many {u} do the {t} of {c} {v} have?
        Give me the number of {u} of {t} where {c} equals {v}.""",
        "How many {u} are there of {t} with {c} {v}?",
        """Tell me how many {u} the {t} with {c} {v} have.
        For {t} of {c} {v}, how many {u} are there?""",
    ),
)
