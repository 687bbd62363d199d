"""Code questions about a list of records."""

from typing import Final

from amalgam.demo.code_template import CodeTemplate, row

RECORDS: Final[tuple[CodeTemplate, ...]] = (
    row(
        "record_total",
        "records",
        "sum(r['{n}'] for r in {p})",
        """returns the total '{n}' of the records in {p}
        adds up the '{n}' of all records in {p}
        gives the sum of '{n}' over the dicts in {p}
        sums the '{n}' of each dict in {p}
        takes the dicts in {p} and totals their '{n}'""",
        "totals the '{n}' over {p}, a list of dicts",
        """returns the sum of the '{n}' of all records in {p}
        adds up '{n}' over the dicts in {p}""",
    ),
    row(
        "record_where",
        "records",
        "[r['{l}'] for r in {p} if r['{c}'] == '{v}']",
        """returns the '{l}' of the records in {p} whose '{c}' is '{v}'
        lists the '{l}' of each dict in {p} with '{c}' equal to '{v}'
        gives the '{l}' of all records in {p} where '{c}' is '{v}'
        collects '{l}' from the dicts in {p} that have '{c}' '{v}'
        takes the dicts in {p} with '{c}' '{v}' and returns their '{l}'""",
        "gathers the '{l}' of dicts in {p} having '{c}' '{v}'",
        """returns the '{l}' of every dict in {p} whose '{c}' equals '{v}'
        lists '{l}' for all records in {p} with '{c}' '{v}'""",
    ),
    row(
        "record_sorted",
        "records",
        "[r['{l}'] for r in sorted({p}, key=lambda r: r['{n}'])]",
        """returns the '{l}' of the records in {p}, sorted by '{n}'
        lists the '{l}' of each dict in {p} in order of '{n}'
        sorts the dicts in {p} by '{n}' and gives their '{l}'
        gives the '{l}' of all records in {p}, lowest '{n}' first
        takes the dicts in {p}, orders them by '{n}' and returns each '{l}'""",
        "lists each '{l}' in {p} by rising '{n}'",
        """returns the '{l}' of every dict in {p}, ordered by '{n}'
        sorts the records in {p} by '{n}' and returns their '{l}'""",
    ),
    row(
        "record_best",
        "records",
        "max({p}, key=lambda r: r['{n}'])['{l}']",
        """returns the '{l}' of the record in {p} with the highest '{n}'
        finds the dict in {p} with the largest '{n}' and gives its '{l}'
        gives the '{l}' of the record with the most '{n}' in {p}
        takes the dicts in {p} and returns the '{l}' of the one with maximum '{n}'
        picks the '{l}' of the dict in {p} whose '{n}' is greatest""",
        "gives the '{l}' having top '{n}' in {p}",
        """returns the '{l}' of the dict in {p} that has the largest '{n}'
        finds the record in {p} with the highest '{n}' and returns its '{l}'""",
        empty=False,
    ),
    row(
        "record_index",
        "records",
        "{{r['{l}']: r['{n}'] for r in {p}}}",
        """returns a dictionary from '{l}' to '{n}' of the records in {p}
        maps the '{l}' of each dict in {p} to its '{n}'
        builds a dict with '{l}' as keys and '{n}' as values from {p}
        gives a dictionary of '{n}' by '{l}' for the records in {p}
        takes the dicts in {p} and returns a dict of '{l}' to '{n}'""",
        "indexes '{n}' by '{l}' for the dicts of {p}",
        """returns a dict that maps '{l}' to '{n}' for all records in {p}
        builds a dictionary from the '{l}' of each dict in {p} to its '{n}'""",
    ),
    row(
        "record_groups",
        "records",
        "counts = {{}}\nfor r in {p}:\n    counts[r['{c}']] = counts.get(r['{c}'], 0) + 1\nreturn counts",
        """counts the records in {p} for each '{c}'
        returns a dictionary of how many dicts in {p} have each '{c}'
        gives the number of records in {p} per '{c}'
        counts how often each '{c}' occurs in the dicts in {p}
        takes the dicts in {p} and counts them by '{c}'""",
        "makes counts per '{c}' of the dicts in {p}",
        """returns the number of dicts in {p} for each '{c}'
        counts the records in {p} by their '{c}'""",
    ),
)
