"""Patterns for text that a model wrote: RE2's, which never backtrack.

Python's own matcher backtracks, and a pattern such as ``(a+)+$`` keeps it, and the interpreter with it, busy for longer
than a server lives. RE2 reads a text once: time grows with pattern times text, whatever they are (Cox, "Regular
Expression Matching in the Wild", 2010). It knows no references back and no looks around.
"""

from typing import Final

import re2

from amalgam.errors.evaluations import InvalidPattern

MAX_PATTERN: Final = 256
"""A pattern has at most so many characters."""
MAX_TEXT: Final = 8192
"""So many characters of a text are searched."""
_MAX_BYTES: Final = 1 << 20
"""A pattern may become a machine of at most this size; counted repeats are written out in it."""


class Pattern:
    """A pattern, ready to be searched for.

    Raises:
        InvalidPattern: it cannot be read, or its counted repeats make it too large.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise InvalidPattern(f"it has more than {MAX_PATTERN} characters")
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MAX_BYTES
        try:
            self._found = re2.compile(pattern.encode(), options)
        except UnicodeEncodeError:
            raise InvalidPattern("it is not valid Unicode") from None
        except re2.error as error:
            raise InvalidPattern(_reason(error)) from None

    def is_in(self, text: str) -> bool:
        """Whether the pattern is found anywhere in the first ``MAX_TEXT`` characters of ``text``."""
        return self._found.search(text[:MAX_TEXT].encode(errors="replace")) is not None


def _reason(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
