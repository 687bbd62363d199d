"""What was used, by whom and of what: the rows of the ledger, and what is asked of them."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, Literal

MINUTE_S: Final = 60
Dimension = Literal["tenant", "key", "alias", "version", "model", "endpoint"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("tenant", "key", "alias", "version", "model", "endpoint")
"""Usage can be told apart by these. ``model`` is a version without its number, and all blends as one."""
BLENDS: Final = "blend"


@dataclass(frozen=True, slots=True)
class Spender:
    """Who used what.

    Attributes:
        tenant: whose key it was.
        key: id of the key; empty on a server without keys.
        alias: that was asked for; empty where none was.
        version: what answered: an exact version, a blend, or the base model's name.
        endpoint: of the request.
    """

    tenant: str
    key: str
    alias: str
    version: str
    endpoint: str


@dataclass(slots=True)
class Counts:
    """What was used. Prompt tokens count those that were found in the cache as well."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    blend_builds: int = 0

    def add(self, other: "Counts") -> None:
        """Add what ``other`` says."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.blend_builds += other.blend_builds


COUNTS: Final = tuple(field.name for field in fields(Counts))


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked of the ledger.

    Attributes:
        start: the first moment, at the begin of a minute.
        end: the first moment that is not asked for any more.
        by: what is told apart; everything else is added up.
        width_s: seconds of one bucket of time, beginning at ``start``; None: one for all.
        tenants, keys, versions: only these; empty: all.
    """

    start: datetime
    end: datetime
    by: tuple[Dimension, ...] = ()
    width_s: int | None = None
    tenants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One line of an answer.

    Attributes:
        bucket: which bucket of time, from 0 on.
        names: of each dimension that was asked for, in the order of the question.
        counts: of all rows that the line stands for.
    """

    bucket: int
    names: tuple[str, ...]
    counts: Counts


def model_of(version: str) -> str:
    """The name without a number: of a version its adapter's, `BLENDS` of a blend, the base model's own."""
    name, mark, number = version.rpartition("@")
    if not mark:
        return version
    return name if number.isdigit() and len(number) < _BLEND_DIGITS else BLENDS if name == BLENDS else version


_BLEND_DIGITS: Final = 12
"""The name of a blend has so many digits, which may all be decimal."""
