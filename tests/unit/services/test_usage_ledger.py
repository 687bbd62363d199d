"""The ledger in memory: nothing is lost while the database is away, and nothing is written twice."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from amalgam.domain.usage import Counts, Spender
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.usage_ledger import UsageLedger
from tests.support.memory import objects_within

SQL = Spender("acme", "key-1", "", "sql@3", "chat_completions")


class Rows:
    """What was written, by front end, minute and spender."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, Spender], Counts] = {}
        self.is_down = self.is_deaf = False
        self.writes = 0

    async def put(self, front: str, counted: Mapping[tuple[int, Spender], Counts]) -> None:
        if self.is_down:
            raise RegistryUnavailable("it is down")
        self.writes += 1
        for (minute, spender), counts in counted.items():
            self.kept[front, minute, spender] = Counts(counts.requests, counts.prompt_tokens)
        if self.is_deaf:
            raise RegistryUnavailable("the connection was lost")

    @property
    def requests(self) -> int:
        return sum(counts.requests for counts in self.kept.values())


class Ledger:
    """A ledger, its rows and its clock."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.rows = Rows()
        self.ledger = UsageLedger(self.rows, "a", lambda: self.moment, 400)  # type: ignore[arg-type]


@pytest.fixture
def kept() -> Ledger:
    return Ledger()


async def test_what_is_counted_is_written_once_however_often_it_is_flushed(kept: Ledger) -> None:
    for _ in range(5):
        kept.ledger.add(SQL, Counts(1, 10))
        await kept.ledger.flush()
        await kept.ledger.flush()
    assert kept.rows.requests == 5
    assert kept.rows.writes == 5


async def test_nothing_is_lost_while_the_database_is_away_or_loses_its_word(kept: Ledger) -> None:
    for down, deaf in ((True, False), (False, True), (True, False), (False, False)):
        kept.rows.is_down, kept.rows.is_deaf = down, deaf
        kept.ledger.add(SQL, Counts(1))
        if down or deaf:
            with pytest.raises(RegistryUnavailable):
                await kept.ledger.flush()
        else:
            await kept.ledger.flush()
        kept.moment += timedelta(minutes=1)
    assert kept.rows.requests == 4


@pytest.mark.parametrize("step_s", [-3600.0, -61.0, -1.0, 0.5, 61.0, 86_400.0])
async def test_a_clock_that_jumps_loses_and_doubles_nothing(kept: Ledger, step_s: float) -> None:
    for number in range(8):
        kept.ledger.add(SQL, Counts(1))
        await kept.ledger.flush()
        kept.moment += timedelta(seconds=step_s if number == 3 else 20.0)
    assert kept.rows.requests == 8


async def test_minutes_that_are_over_do_not_stay_in_memory(kept: Ledger) -> None:
    sizes = []
    for _ in range(100):
        kept.ledger.add(SQL, Counts(1))
        await kept.ledger.flush()
        sizes.append(objects_within(kept.ledger) - objects_within(kept.rows))
        kept.moment += timedelta(minutes=1)
    # The last minutes are kept, and not the ninety before.
    assert max(sizes[10:]) <= max(sizes[:10])
