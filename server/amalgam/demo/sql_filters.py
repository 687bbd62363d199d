"""SQL questions that count or list rows."""

from typing import Final

from amalgam.demo.sql_template import SqlTemplate, row

FILTERS: Final[tuple[SqlTemplate, ...]] = (
    row(
        "count_all",
        "SELECT COUNT(*) FROM {t};",
        """How many {t} are there?
        Count all {t}.
        What is the number of {t}?
        How many rows of {t} do we have?
        Give me the number of all {t}.
        I need to know how many {t} we have.
        State the total number of {t}.""",
        "How many {t} exist?",
        """How many {t} do we have in all?
        Tell me the count of {t}.""",
    ),
    row(
        "count_equal",
        "SELECT COUNT(*) FROM {t} WHERE {c} = '{v}';",
        """How many {t} have {c} {v}?
        Count the {t} whose {c} is {v}.
        What is the number of {t} with {c} {v}?
        How many of the {t} are of {c} {v}?
        Give me the number of {t} where {c} equals {v}.
        I need to know how many {t} have the {c} {v}.
        Where {c} is {v}, how many {t} do we have?""",
        "How many {t} are there with {c} {v}?",
        """Tell me how many {t} have the {c} {v}.
        For {c} {v}, how many {t} are there?""",
    ),
    row(
        "count_above",
        "SELECT COUNT(*) FROM {t} WHERE {n} > {x};",
        """How many {t} have {n} above {x}?
        Count the {t} with more than {x} {n}.
        What is the number of {t} whose {n} is greater than {x}?
        How many of the {t} have {n} over {x}?
        Give me the number of {t} where {n} is larger than {x}.
        I need to know how many {t} have {n} above {x}.
        With {n} over {x}, how many {t} do we have?""",
        "How many {t} are there with {n} over {x}?",
        """Tell me how many {t} have {n} greater than {x}.
        For how many {t} is {n} above {x}?""",
    ),
    row(
        "list_equal",
        "SELECT {l} FROM {t} WHERE {c} = '{v}';",
        """List the {l} of {t} with {c} {v}.
        Show the {l} of all {t} whose {c} is {v}.
        What is the {l} of each of the {t} where {c} equals {v}?
        Which {l} belongs to {t} of {c} {v}?
        Give me the {l} of every row in {t} with {c} {v}.
        I need the {l} of those {t} where the {c} is {v}.
        Find all {t} of {c} {v} and state their {l}.""",
        "Print the {l} of {t} whose {c} equals {v}.",
        """Return the {l} of all {t} where {c} is {v}.
        I want the {l} of {t} that have {c} {v}.""",
    ),
    row(
        "list_unequal",
        "SELECT {l} FROM {t} WHERE {c} != '{v}';",
        """List the {l} of {t} whose {c} is not {v}.
        Show the {l} of all {t} except those with {c} {v}.
        Which {l} belongs to {t} of a {c} other than {v}?
        Give me the {l} of {t} where {c} differs from {v}.
        What is the {l} of the {t} that do not have {c} {v}?
        I need the {l} of those {t} where the {c} is anything but {v}.
        Find all {t} whose {c} is not {v} and state their {l}.""",
        "Print the {l} of {t} with any {c} but not {v}.",
        """Return the {l} of all {t} where {c} is not {v}.
        I want the {l} of {t} with a {c} other than {v}.""",
    ),
    row(
        "list_above",
        "SELECT {l} FROM {t} WHERE {n} > {x};",
        """List the {l} of {t} with {n} above {x}.
        Show the {l} of all {t} whose {n} is greater than {x}.
        Which {l} belongs to {t} with more than {x} {n}?
        Give me the {l} of {t} where {n} is over {x}.
        What is the {l} of the {t} with {n} larger than {x}?
        I need the {l} of those {t} where the {n} exceeds {x}.
        Find all {t} with {n} over {x} and state their {l}.""",
        "Print the {l} of {t} whose {n} is over {x}.",
        """Return the {l} of all {t} where {n} is above {x}.
        I want the {l} of {t} that have {n} greater than {x}.""",
    ),
    row(
        "list_below",
        "SELECT {l} FROM {t} WHERE {n} < {x};",
        """List the {l} of {t} with {n} below {x}.
        Show the {l} of all {t} whose {n} is less than {x}.
        Which {l} belongs to {t} with fewer than {x} {n}?
        Give me the {l} of {t} where {n} is under {x}.
        What is the {l} of the {t} with {n} smaller than {x}?
        I need the {l} of those {t} where the {n} is lower than {x}.
        Find all {t} with {n} under {x} and state their {l}.""",
        "Print the {l} of {t} whose {n} is under {x}.",
        """Return the {l} of all {t} where {n} is below {x}.
        I want the {l} of {t} that have {n} less than {x}.""",
    ),
    row(
        "list_between",
        "SELECT {l} FROM {t} WHERE {n} BETWEEN {x} AND {y};",
        """List the {l} of {t} with {n} between {x} and {y}.
        Show the {l} of all {t} whose {n} is from {x} to {y}.
        Which {l} belongs to {t} with {n} of at least {x} and at most {y}?
        Give me the {l} of {t} where {n} lies between {x} and {y}.
        What is the {l} of the {t} with {n} from {x} up to {y}?
        I need the {l} of those {t} where the {n} is between {x} and {y}.
        Find all {t} with {n} from {x} to {y} and state their {l}.""",
        "Print the {l} of {t} whose {n} ranges from {x} to {y}.",
        """Return the {l} of all {t} where {n} is between {x} and {y}.
        I want the {l} of {t} that have {n} from {x} to {y}.""",
    ),
    row(
        "list_and",
        "SELECT {l} FROM {t} WHERE {c} = '{v}' AND {n} > {x};",
        """List the {l} of {t} with {c} {v} and {n} above {x}.
        Show the {l} of all {t} whose {c} is {v} and whose {n} is greater than {x}.
        Which {l} belongs to {t} of {c} {v} with more than {x} {n}?
        Give me the {l} of {t} where {c} equals {v} and {n} is over {x}.
        What is the {l} of the {c} {v} {t} with {n} larger than {x}?
        I need the {l} of those {t} where the {c} is {v} and the {n} exceeds {x}.
        Find all {t} of {c} {v} with {n} over {x} and state their {l}.""",
        "Print the {l} of {t} whose {c} is {v} and whose {n} is over {x}.",
        """Return the {l} of all {t} where {c} is {v} and {n} is above {x}.
        I want the {l} of {t} that have {c} {v} and {n} greater than {x}.""",
    ),
    row(
        "list_or",
        "SELECT {l} FROM {t} WHERE {c} = '{v}' OR {c} = '{w}';",
        """List the {l} of {t} with {c} {v} or {w}.
        Show the {l} of all {t} whose {c} is {v} or {w}.
        Which {l} belongs to {t} of {c} {v} or of {c} {w}?
        Give me the {l} of {t} where {c} is either {v} or {w}.
        What is the {l} of the {t} with {c} {v} or {c} {w}?
        I need the {l} of those {t} where the {c} is {v} or {w}.
        Find all {t} of {c} {v} or {w} and state their {l}.""",
        "Print the {l} of {t} whose {c} equals {v} or {w}.",
        """Return the {l} of all {t} where {c} is {v} or {w}.
        I want the {l} of {t} that have either {c} {v} or {w}.""",
    ),
)
