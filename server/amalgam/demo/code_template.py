"""What one code question asks: a skill, with its body and its wordings per split.

In bodies and wordings ``{p}`` is the parameter: a list of integers, of words, of records, or one text, by the row's
``kind``. ``{k}`` and ``{j}`` are small integers with k < j, ``{q}`` a lower-case letter; of records, ``{l}`` names the
naming field, ``{c}`` the category, ``{n}`` an integer field and ``{v}`` a category's value.
"""

from dataclasses import dataclass
from typing import Literal

from amalgam.demo.wordings import Wordings, wordings

Kind = Literal["numbers", "words", "text", "records"]


@dataclass(frozen=True, slots=True)
class CodeTemplate:
    """A skill: what its argument is, the function's body, and its wordings per split.

    Attributes:
        name: The skill.
        kind: What the argument is.
        body: Lines below ``def``; a body of one line is what the function returns.
        wordings: What the function returns, in words.
        empty: Whether an empty argument is a fair case.
    """

    name: str
    kind: Kind
    body: str
    wordings: Wordings
    empty: bool


def row(name: str, kind: Kind, body: str, train: str, dev: str, test: str, *, empty: bool = True) -> CodeTemplate:
    """A template whose wordings stand on one line each."""
    return CodeTemplate(name, kind, body, wordings(train, dev, test), empty)
