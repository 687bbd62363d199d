"""Blends: adapters that a request described in its ``model`` field, and that no row knows.

Their names, and the words between the server and the process that builds them: one JSON object a line.
"""

import re
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

from amalgam.domain.recipe import Recipe

SHORT_DIGITS: Final = 12
"""Hex digits of a recipe's digest in a blend's name."""

_NAME: Final = re.compile(rf"blend@[0-9a-f]{{{SHORT_DIGITS},64}}")


def blend_name(digest: str, digits: int = SHORT_DIGITS) -> str:
    """``blend@`` and the first digits of the recipe's digest.

    No version has such a name, not even of an adapter called ``blend``: a version number has at most nine digits.
    """
    return f"blend@{digest[:digits]}"


def is_blend_name(text: str) -> bool:
    """Whether ``text`` is the name that a blend answers under."""
    return _NAME.fullmatch(text) is not None


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlendInput(_Word):
    """One pinned adapter of an order."""

    folder: str
    """Its files; nobody removes them while the order is open."""
    digest: str
    """SHA-256 of them, in hex."""
    base: str
    """Fingerprint of its base model."""


class BlendOrder(_Word):
    """What is to be built, and where."""

    id: int
    """Of this order; the answer repeats it."""
    recipe: Recipe
    """Completed and pinned."""
    inputs: Mapping[str, BlendInput]
    """By the recipe's spelling of the adapter."""
    folder: str
    """Made by the builder, and left as it is when it fails."""
    max_rank: int
    max_bytes: int
    """Of the weights; refused beforehand where they would be more."""


class BlendError(_Word):
    """Why an order was not built: what an error class says, without the class."""

    code: str
    status: int
    message: str
    param: str | None = None


class BlendReply(_Word):
    """The end of an order."""

    id: int
    size_bytes: int = 0
    """Of all files."""
    rank: int = 0
    seconds: Mapping[str, float] = {}
    """By step: read, merge, write."""
    error: BlendError | None = None
    """Where it is set, nothing was built."""
