"""Names of blends: adapters that a request described in its ``model`` field, and that are in memory only."""

import re
from typing import Final

SHORT_DIGITS: Final = 12
"""A blend's name has so many hex digits of its recipe's digest."""

_NAME: Final = re.compile(rf"blend@[0-9a-f]{{{SHORT_DIGITS},64}}")


def blend_name(digest: str, digits: int = SHORT_DIGITS) -> str:
    """``blend@`` and the first digits of the recipe's digest.

    No version has such a name, not even of an adapter called ``blend``: a version number has at most nine digits.
    """
    return f"blend@{digest[:digits]}"


def digest_prefix(name: str) -> str:
    """What the digest of the blend of that name begins with."""
    return name.partition("@")[2]


def is_blend_name(text: str) -> bool:
    """Whether ``text`` is the name that a blend answers under."""
    return _NAME.fullmatch(text) is not None
