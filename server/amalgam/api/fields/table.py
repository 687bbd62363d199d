"""What a field of a request may be: honoured, refused with a next step, or taken without effect.

Ignoring what changes the answer or the bill would be a lie, and turning a client away for a hint to another vendor's
cache helps nobody. So each field is one of three; one that no table has is taken without effect too, unless the server
is told to refuse it. What is taken without effect is named in the answer's header ``x-amalgam-ignored`` and counted.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from amalgam.api.fields.checks import Check, Shaped

Rule = Literal["honoured", "refused", "without effect"]
IGNORED_HEADER: Final = "x-amalgam-ignored"
MAX_NAMED: Final = 32
_NAME_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of one endpoint.

    Attributes:
        rule: what becomes of it.
        says: for the manual; of a refused field the next step, which its error ends with.
        check: bounds of an honoured field.
        shape: the type whose values pass it, for the OpenAPI document.
        harmless: values of a refused field that ask for nothing, beside null and what is empty or false.
    """

    rule: Rule
    says: str = ""
    check: Check | None = None
    shape: Any = Any
    harmless: tuple[Any, ...] = ()

    def asks_for_nothing(self, value: Any) -> bool:
        """Whether a refused field with this value may be left out without anybody missing it."""
        return not value or value in self.harmless


def honoured(check: Check, shape: Any = None, says: str = "") -> FieldSpec:
    """A field that does what its name says, within bounds; ``shape`` is needed where ``check`` has none of its own."""
    if isinstance(check, Shaped):
        return FieldSpec("honoured", says, check.check, check.shape)
    assert shape is not None
    return FieldSpec("honoured", says, check, shape)


def refused(next_step: str, *harmless: Any) -> FieldSpec:
    """A field that would change the answer and is not served here."""
    return FieldSpec("refused", next_step, harmless=harmless)


def without_effect(why: str) -> FieldSpec:
    """A field that has nothing to act on here."""
    return FieldSpec("without effect", why)


def shown_name(name: str) -> str:
    """A field's name as it may be repeated: short, printable and in ASCII."""
    short = name[:_NAME_LENGTH]
    return short if short.isascii() and short.isprintable() else short.encode("unicode_escape").decode()[:_NAME_LENGTH]


def header_value(names: list[str]) -> str:
    """The names for `IGNORED_HEADER`: the first ones, without what would end a name."""
    return ", ".join(shown_name(name).replace(",", "") for name in names[:MAX_NAMED])
