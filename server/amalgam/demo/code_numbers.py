"""Code questions about a list of integers."""

from typing import Final

from amalgam.demo.code_template import CodeTemplate, row

NUMBERS: Final[tuple[CodeTemplate, ...]] = (
    row(
        "above",
        "numbers",
        "[x for x in {p} if x > {k}]",
        """returns the numbers in {p} that are greater than {k}
        gives a list of all {p} above {k}
        keeps only the values of {p} larger than {k}
        filters {p} to the numbers over {k}
        takes {p} and returns those bigger than {k}""",
        "keeps the numbers of {p} over {k}",
        """returns a list of the {p} that are larger than {k}
        keeps all values in {p} greater than {k}""",
    ),
    row(
        "below",
        "numbers",
        "[x for x in {p} if x < {k}]",
        """returns the numbers in {p} that are less than {k}
        gives a list of all {p} below {k}
        keeps only the values of {p} smaller than {k}
        filters {p} to the numbers under {k}
        takes {p} and returns those lower than {k}""",
        "keeps the numbers of {p} under {k}",
        """returns a list of the {p} that are smaller than {k}
        keeps all values in {p} less than {k}""",
    ),
    row(
        "count_multiples",
        "numbers",
        "sum(1 for x in {p} if x % {k} == 0)",
        """returns how many numbers in {p} are divisible by {k}
        counts the {p} that are multiples of {k}
        gives the number of values in {p} divisible by {k}
        counts how many of the {p} can be divided by {k}
        takes {p} and returns how many are multiples of {k}""",
        "counts values of {p} divisible by {k}",
        """returns the number of {p} that are divisible by {k}
        counts how many values in {p} are multiples of {k}""",
    ),
    row(
        "sum_squares",
        "numbers",
        "sum(x * x for x in {p})",
        """returns the sum of the squares of {p}
        adds up the squares of all numbers in {p}
        gives the total of the squared {p}
        squares each of the {p} and sums the results
        takes {p} and returns the sum of their squares""",
        "totals the squares of {p}",
        """returns the total of the squares of all {p}
        sums up the squared values in {p}""",
    ),
    row(
        "scale_shift",
        "numbers",
        "[x * {k} + {j} for x in {p}]",
        """returns a list with each number in {p} multiplied by {k} plus {j}
        multiplies all {p} by {k} and adds {j} to each
        gives {p} with every value times {k} plus {j}
        maps each of the {p} to {k} times itself plus {j}
        takes {p}, multiplies each by {k} and then adds {j}""",
        "maps every number x of {p} to x times {k} plus {j}",
        """returns a list of all {p} multiplied by {k} with {j} added
        multiplies each value in {p} by {k} and then adds {j}""",
    ),
    row(
        "average",
        "numbers",
        "sum({p}) / len({p}) if {p} else 0",
        """returns the average of {p}, or 0 if it is empty
        gives the mean of {p}, or 0 for an empty list
        computes the average of the numbers in {p} and 0 if there are none
        takes {p} and returns their mean, 0 when empty
        averages {p}, giving 0 for no numbers""",
        "averages the {p}, or gives 0 if empty",
        """returns the mean of the numbers in {p}, or 0 if empty
        computes the average of all {p}, 0 for an empty list""",
    ),
    row(
        "spread",
        "numbers",
        "max({p}) - min({p})",
        """returns the difference between the largest and smallest of {p}
        gives the maximum of {p} minus the minimum
        computes the range of {p}, largest minus smallest
        takes {p} and returns how far the highest is from the lowest
        subtracts the smallest of {p} from the largest""",
        "gives the gap from the minimum to the maximum of {p}",
        """returns the difference of the maximum and the minimum of {p}
        computes the largest value in {p} minus the smallest""",
        empty=False,
    ),
    row(
        "clamp",
        "numbers",
        "[min(max(x, {k}), {j}) for x in {p}]",
        """returns {p} with each number limited to between {k} and {j}
        clamps all {p} to the range from {k} to {j}
        clips every value in {p} to at least {k} and at most {j}
        takes {p} and limits each to the range {k} to {j}
        gives a list of {p} clamped between {k} and {j}""",
        "clips the {p} to lie from {k} to {j}",
        """returns a list with every value in {p} clamped from {k} to {j}
        limits all {p} to the range between {k} and {j}""",
    ),
    row(
        "every_kth",
        "numbers",
        "{p}[::{k}]",
        """returns every {k}th item of {p}, starting with the first
        takes one item out of each {k} in {p}, from the first on
        gives the items of {p} in steps of {k}
        picks each {k}th element of {p}, the first included
        slices {p} with a step of {k}""",
        "selects items of {p} with step {k}",
        """returns the elements of {p} in steps of {k}
        picks every {k}th item in {p}, beginning with the first""",
    ),
    row(
        "largest",
        "numbers",
        "sorted({p}, reverse=True)[:{k}]",
        """returns the {k} largest of {p} in descending order
        gives the top {k} numbers of {p}, largest first
        takes {p} and returns the {k} highest, highest first
        sorts {p} from high to low and keeps the first {k}
        finds the {k} biggest values in {p}, from biggest to smallest""",
        "picks the {k} biggest of {p}, biggest first",
        """returns the {k} highest values in {p}, largest first
        finds the {k} largest numbers of {p} in descending order""",
    ),
    row(
        "running_total",
        "numbers",
        "total = 0\nresult = []\nfor x in {p}:\n    total += x\n    result.append(total)\nreturn result",
        """returns the running totals of {p}
        gives a list of cumulative sums of {p}
        computes the running sum at each position of {p}
        takes {p} and returns the total so far after each number
        builds the list of partial sums of {p}""",
        "lists the cumulative totals of {p}",
        """returns a list with the running sum of {p}
        computes the cumulative sums of the numbers in {p}""",
    ),
)
