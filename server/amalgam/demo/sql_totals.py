"""SQL questions that add up, order, group or join."""

from typing import Final

from amalgam.demo.sql_template import SqlTemplate, row

TOTALS: Final[tuple[SqlTemplate, ...]] = (
    row(
        "sum_all",
        "SELECT SUM({n}) FROM {t};",
        """What is the total {n} of all {t}?
        Add up the {n} of all {t}.
        Give me the sum of {n} over all {t}.
        How much {n} do all {t} have together?
        Sum the {n} of the {t}.
        I need the total of all {n} in {t}.
        State the total {n} of all the {t}.""",
        "What do the {n} of all {t} add up to?",
        """Tell me the total {n} of the {t}.
        What is the sum of the {n} of all {t}?""",
    ),
    row(
        "sum_equal",
        "SELECT SUM({n}) FROM {t} WHERE {c} = '{v}';",
        """What is the total {n} of {t} with {c} {v}?
        Add up the {n} of all {t} whose {c} is {v}.
        Give me the sum of {n} over {t} of {c} {v}.
        How much {n} do the {t} with {c} {v} have together?
        Sum the {n} of the {t} where {c} equals {v}.
        I need the total of all {n} in {t} with {c} {v}.
        Where {c} is {v}, what is the total {n} of the {t}?""",
        "What do the {n} of {t} with {c} {v} add up to?",
        """Tell me the total {n} of the {t} that have {c} {v}.
        What is the sum of the {n} of {t} whose {c} is {v}?""",
    ),
    row(
        "average_all",
        "SELECT AVG({n}) FROM {t};",
        """What is the average {n} of all {t}?
        Compute the mean {n} of the {t}.
        Give me the average of {n} over all {t}.
        What {n} do the {t} have on average?
        Find the mean of the {n} of all {t}.
        I need the average of all {n} in {t}.
        State the average {n} of all the {t}.""",
        "On average, what {n} do {t} have?",
        """Tell me the average {n} of the {t}.
        What is the mean {n} over all {t}?""",
    ),
    row(
        "average_equal",
        "SELECT AVG({n}) FROM {t} WHERE {c} = '{v}';",
        """What is the average {n} of {t} with {c} {v}?
        Compute the mean {n} of {t} whose {c} is {v}.
        Give me the average of {n} over {t} of {c} {v}.
        What {n} do {t} with {c} {v} have on average?
        Find the mean of the {n} of {t} where {c} equals {v}.
        I need the average of all {n} in {t} with {c} {v}.
        Where {c} is {v}, what is the average {n} of the {t}?""",
        "On average, what {n} do {t} of {c} {v} have?",
        """Tell me the average {n} of the {t} that have {c} {v}.
        What is the mean {n} over {t} whose {c} is {v}?""",
    ),
    row(
        "maximum",
        "SELECT MAX({n}) FROM {t};",
        """What is the highest {n} of all {t}?
        Find the largest {n} among the {t}.
        Give me the maximum {n} of the {t}.
        What is the biggest {n} in {t}?
        Show the greatest {n} of any of the {t}.
        I need the maximum of all {n} in {t}.
        State the highest {n} of all the {t}.""",
        "What is the top {n} among all {t}?",
        """Tell me the maximum {n} among all {t}.
        What is the largest {n} of the {t}?""",
    ),
    row(
        "minimum",
        "SELECT MIN({n}) FROM {t};",
        """What is the lowest {n} of all {t}?
        Find the smallest {n} among the {t}.
        Give me the minimum {n} of the {t}.
        What is the least {n} in {t}?
        Show the smallest {n} of any of the {t}.
        I need the minimum of all {n} in {t}.
        State the lowest {n} of all the {t}.""",
        "What is the bottom {n} among all {t}?",
        """Tell me the minimum {n} among all {t}.
        What is the smallest {n} of the {t}?""",
    ),
    row(
        "top_k",
        "SELECT {l} FROM {t} ORDER BY {n} DESC LIMIT {k};",
        """List the {l} of the {k} {t} with the highest {n}.
        Show the {l} of the top {k} {t} by {n}.
        Which {l} belongs to the {k} {t} with the most {n}?
        Give me the {l} of the {k} {t} with the largest {n}, largest first.
        What is the {l} of the {k} {t} with the greatest {n}?
        I need the {l} of the {k} {t} having the most {n}.
        Find the {k} {t} with the largest {n} and state their {l}.""",
        "Print the {l} of the {k} leading {t} by {n}.",
        """Return the {l} of the {k} {t} that have the highest {n}.
        I want the {l} of the {k} {t} with the largest {n}.""",
    ),
    row(
        "bottom_k",
        "SELECT {l} FROM {t} ORDER BY {n} LIMIT {k};",
        """List the {l} of the {k} {t} with the lowest {n}.
        Show the {l} of the bottom {k} {t} by {n}.
        Which {l} belongs to the {k} {t} with the least {n}?
        Give me the {l} of the {k} {t} with the smallest {n}, smallest first.
        What is the {l} of the {k} {t} with the fewest {n}?
        I need the {l} of the {k} {t} having the least {n}.
        Find the {k} {t} with the smallest {n} and state their {l}.""",
        "Print the {l} of the {k} last {t} by {n}.",
        """Return the {l} of the {k} {t} that have the lowest {n}.
        I want the {l} of the {k} {t} with the smallest {n}.""",
    ),
    row(
        "sorted",
        "SELECT {l}, {n} FROM {t} ORDER BY {n} DESC;",
        """List {l} and {n} of all {t}, highest {n} first.
        Show the {l} and {n} of the {t} in descending order of {n}.
        Give me {l} and {n} of every row in {t}, sorted from the largest {n} to the smallest.
        Sort all {t} by {n} from high to low and show {l} and {n}.
        What are {l} and {n} of the {t}, ordered by {n} descending?
        I need {l} and {n} of all {t}, from the highest {n} down.
        Order all {t} by falling {n} and state {l} and {n}.""",
        "Print {l} and {n} of all {t}, by descending {n}.",
        """Return {l} and {n} of all {t}, sorted by {n}, highest first.
        I want {l} and {n} of the {t} in descending order of {n}.""",
    ),
    row(
        "distinct",
        "SELECT DISTINCT {c} FROM {t};",
        """List every different {c} of the {t}.
        Which distinct {c} values do the {t} have?
        Show each {c} that occurs in {t} once.
        Give me the unique {c} values of all {t}.
        What different {c} values are there in {t}?
        I need each {c} that the {t} have, without repeats.
        State all different {c} values of the {t}.""",
        "Print the distinct {c} entries of {t}.",
        """Return each different {c} of the {t}.
        I want the distinct {c} values found in {t}.""",
    ),
    row(
        "group_count",
        "SELECT {c}, COUNT(*) FROM {t} GROUP BY {c};",
        """How many {t} are there for each {c}?
        Count the {t} per {c}.
        Show each {c} with its number of {t}.
        Give me the number of {t} by {c}.
        For every {c}, how many {t} are there?
        I need to know for each {c} how many {t} it has.
        Group the {t} by {c} and count them.
        Per {c}, state the number of {t}.""",
        "Print the count of {t} per {c}.",
        """For each {c}, tell me the number of {t}.
        How many {t} does each {c} have?""",
    ),
    row(
        "group_sum",
        "SELECT {c}, SUM({n}) FROM {t} GROUP BY {c};",
        """What is the total {n} of the {t} for each {c}?
        Add up the {n} of the {t} per {c}.
        Show each {c} with the sum of {n} of its {t}.
        Give me the total {n} of {t} by {c}.
        For every {c}, what is the sum of the {n} of its {t}?
        I need to know for each {c} the total {n} of the {t}.
        Group the {t} by {c} and add up their {n}.
        Per {c}, state the total {n} of the {t}.""",
        "Print the summed {n} of {t} per {c}.",
        """For each {c}, tell me the total {n} of the {t}.
        What is the sum of {n} over the {t} of each {c}?""",
    ),
    row(
        "group_average",
        "SELECT {c}, AVG({n}) FROM {t} GROUP BY {c};",
        """What is the average {n} of the {t} for each {c}?
        Compute the mean {n} of the {t} per {c}.
        Show each {c} with the average {n} of its {t}.
        Give me the average {n} of {t} by {c}.
        For every {c}, what is the mean {n} of its {t}?
        I need to know for each {c} the average {n} of the {t}.
        Group the {t} by {c} and average their {n}.
        Per {c}, state the mean {n} of the {t}.""",
        "Print the averaged {n} of {t} per {c}.",
        """For each {c}, tell me the average {n} of the {t}.
        What is the mean {n} over the {t} of each {c}?""",
    ),
    row(
        "having",
        "SELECT {c} FROM {t} GROUP BY {c} HAVING COUNT(*) > {k};",
        """Which {c} has more than {k} {t}?
        List every {c} with more than {k} {t}.
        Show the {c} values that occur in over {k} {t}.
        Give me each {c} that has more than {k} {t}.
        For which {c} are there over {k} {t}?
        I need every {c} with more than {k} {t} in it.
        Find each {c} that more than {k} {t} have.""",
        "Print each {c} with over {k} {t}.",
        """Return every {c} that has more than {k} {t}.
        I want each {c} for which there are more than {k} {t}.""",
    ),
    row(
        "join_sum",
        "SELECT SUM({u}.{a}) FROM {u} JOIN {t} ON {u}.{f} = {t}.id WHERE {t}.{c} = '{v}';",
        """What is the total {a} of the {u} of {t} with {c} {v}?
        Add up the {a} of all {u} that belong to {t} whose {c} is {v}.
        Give me the sum of {a} over the {u} of {t} of {c} {v}.
        How much {a} do the {u} of {t} with {c} {v} have together?
        Sum the {a} of the {u} of {t} where {c} equals {v}.
        I need the total of all {a} in {u} of {t} with {c} {v}.
        For the {t} where {c} is {v}, what is the total {a} of their {u}?""",
        "What do the {a} of the {u} of {t} with {c} {v} add up to?",
        """Tell me the total {a} of the {u} of {t} that have {c} {v}.
        What is the sum of the {a} of the {u} of {t} whose {c} is {v}?""",
    ),
    row(
        "join_count",
        "SELECT COUNT(*) FROM {u} JOIN {t} ON {u}.{f} = {t}.id WHERE {t}.{c} = '{v}';",
        """How many {u} belong to {t} with {c} {v}?
        Count the {u} of {t} whose {c} is {v}.
        What is the number of {u} of {t} with {c} {v}?
        How many {u} do the {t} of {c} {v} have?
        Give me the number of {u} of {t} where {c} equals {v}.
        I need to know how many {u} the {t} with {c} {v} have.
        For the {t} where {c} is {v}, how many {u} do they have?""",
        "How many {u} are there of {t} with {c} {v}?",
        """Tell me how many {u} the {t} with {c} {v} have.
        For {t} of {c} {v}, how many {u} are there?""",
    ),
)
