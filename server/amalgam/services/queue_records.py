"""What the queue in front of the engine knows: of places, of what is asked, of tenants, keys, turns and lines."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from amalgam.services.kept_places import RecentMost
from amalgam.telemetry.context import TokenCount

EXPECTED_TOKENS: Final = 64
"""A running sequence counts as so many until it has more, so that those who begin at once take turns too."""

Who = tuple[str, str]
"""It is a tenant, and a key of it."""


@dataclass(frozen=True, slots=True)
class Places:
    """How many sequences may run in the engine.

    Attributes:
        total: of all keys; a request begins, with all its sequences, while fewer run.
        per_key: of one key. The difference is kept for others, so that they find a place at once.
        waiting_per_adapter: so many requests may wait for one adapter.
    """

    total: float = float("inf")
    per_key: float = float("inf")
    waiting_per_adapter: float = float("inf")

    @classmethod
    def of(cls, batch: int, *, keys: int, waiting_per_adapter: float = float("inf")) -> "Places":
        """A full batch; where there are several keys, one of them may have seven eighths of it."""
        return cls(batch, batch if keys < 2 else max(1, batch - max(1, batch // 8)), waiting_per_adapter)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request asks of the batch.

    Attributes:
        client: whose request it is.
        adapter: id of the version whose slot is needed, or `BASE`.
        name: the version's, for errors.
        sequences: how many run at once for it.
        tokens: that the engine has worked on for it so far.
    """

    client: Who
    adapter: int
    name: str
    sequences: int = 1
    tokens: TokenCount = field(default_factory=TokenCount)

    @property
    def expected(self) -> float:
        """What it counts as while it runs."""
        return float(max(EXPECTED_TOKENS * self.sequences, self.tokens.total))


@dataclass(slots=True)
class AdapterLine:
    """What is asked of one adapter at one moment.

    Attributes:
        name: the version's; empty: the base model's.
        running: requests in the batch.
        waiting: requests that wait for a place in it.
        longest_wait_s: of these, so far.
    """

    name: str
    running: int = 0
    waiting: int = 0
    longest_wait_s: float = 0.0


@dataclass(slots=True)
class Turn:
    """An adapter has one while a request of it runs."""

    began_s: float
    credit: int
    """It may still begin so many requests; below zero where nobody else wanted the slot."""
    running: int = 0


@dataclass(slots=True)
class Waiter:
    """A request that waits."""

    claim: Claim
    place: "asyncio.Future[None]"
    since_s: float


@dataclass(slots=True)
class Line:
    """Requests of one key for one adapter that wait, and since when the first of them has been passed over."""

    since_s: float
    waiting: deque[Waiter] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class TenantState:
    """A tenant with a request that waits or runs."""

    weight: float
    spent: float
    """It counts the tokens of what has ended, by weight, from where the least user stood when this one came."""
    claims: dict[int, Claim] = field(default_factory=dict)
    """They are those that run."""
    running: int = 0
    """It counts sequences."""
    requests: int = 0
    """It counts those that wait and those that run."""
    recent: RecentMost = field(default_factory=RecentMost)
    """It says how many places were in use of late."""

    @property
    def usage(self) -> float:
        """Tokens by weight, those of running requests included."""
        return self.spent + sum(claim.expected for claim in self.claims.values()) / self.weight


@dataclass(slots=True)
class KeyState:
    """A key with a request that waits or runs."""

    tenant: TenantState
    used_s: float
    """It counts seconds in a place, of what has ended, from what the others had used when this key came."""
    running: int = 0
    """It counts sequences."""
    requests: int = 0
    """It counts those that wait and those that run."""
    recent: RecentMost = field(default_factory=RecentMost)
    """It says how many places were in use of late."""

    @property
    def usage(self) -> float:
        """Seconds in a place; a key's running requests count by `running`."""
        return self.used_s

    @property
    def weight(self) -> float:
        """Keys of one tenant are equal."""
        return 1.0
