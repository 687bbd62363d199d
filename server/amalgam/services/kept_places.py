"""Places of the batch that are kept free for those who use less: what each of them had of late, up to its fair share.

Without it a busy tenant fills every place that another one leaves for a moment, and the other one's next request waits
until a request of the busy one ends. As such requests begin together they end together, so that it may wait for a whole
answer. What is kept is small and short: only places that were in use a moment ago, and never more than a fair share.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

RECENT_S: Final = 10.0
"""What somebody used counts for a factor of e less after so many seconds."""


@dataclass(slots=True)
class RecentMost:
    """The most places that somebody had at once, of late.

    Attributes:
        most: places at ``at_s``, a number that falls with time.
        at_s: when it was last noted, seconds of the queue's clock.
    """

    most: float = 0.0
    at_s: float = 0.0

    def note(self, running: int, now_s: float) -> None:
        """So many places are in use now."""
        self.most, self.at_s = max(float(running), self.at(now_s)), now_s

    def at(self, now_s: float) -> float:
        """What counts at this time."""
        return self.most * math.exp((self.at_s - now_s) / RECENT_S)


class Unused(NamedTuple):
    """What one of several who share the batch had of late and does not use now.

    Attributes:
        usage: what it has used by its weight; places are kept only from those who have used more.
        share: places that are its fair share.
        running: places that it has.
        recent: the most that it had of late.
    """

    usage: float
    share: float
    running: int
    recent: float

    @property
    def kept(self) -> int:
        """Places."""
        return max(0, min(math.floor(self.share), round(self.recent)) - self.running)


def kept_from(usage: float, unused: Iterable[Unused]) -> int:
    """How many free places somebody who has used so much must leave for others."""
    return sum(one.kept for one in unused if one.usage < usage)


class Sharer(Protocol):
    """Somebody who shares the batch: a tenant, or one key of several."""

    running: int
    recent: RecentMost

    @property
    def usage(self) -> float:
        """What it has used by its weight."""

    @property
    def weight(self) -> float:
        """Its share, in proportion to the others' weights."""


def unused_of(sharers: Sequence[Sharer], total: float, now_s: float) -> list[Unused]:
    """What those who share a batch of so many places had of late and do not use now; of an infinite one nothing."""
    if len(sharers) < 2 or math.isinf(total):
        return []
    weights = sum(one.weight for one in sharers)
    return [
        Unused(one.usage, total * one.weight / weights, one.running, one.recent.at(now_s))
        for one in sharers
        if one.recent.most > one.running
    ]
