"""What tenants, keys and limits add to a request in the front, one by one and in all, against the mark of 60 us.

A key of the environment, a request that nobody limits and one that nobody writes down are the other sides: what there
was before there were tenants. No model and no database is asked; every number is processor time, the median of batches.

    python loadtests/access_cost.py [--keys 10000] [--out access_cost]      # half a minute
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]
if "PYTHONPATH" not in os.environ:
    sys.path[:0] = [str(REPOSITORY / "server")]

from starlette.datastructures import Headers  # noqa: E402

from amalgam.api.auth import KeyRing  # noqa: E402
from amalgam.domain.clock import new_key_id, new_key_secret, utc_now  # noqa: E402
from amalgam.domain.scopes import EVERYTHING, Scopes  # noqa: E402
from amalgam.domain.tenant import AccessRows, Key, Role, Tenant, secret_digest  # noqa: E402
from amalgam.services.key_directory import KeyDirectory  # noqa: E402
from amalgam.settings import Settings  # noqa: E402
from loadtests.limited_request import LimitedRequest  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.request_checks import small_chat  # noqa: E402

BATCHES: Final = 25
CALLS: Final = 2000
MARK_US: Final = 60
"""Processor time that tenants, keys and limits together may add to a request."""


def sides_us(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Microseconds of processor time a call, by batch; the two take turns."""
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(BATCHES):
        for work, found in zip((ours, theirs), samples, strict=True):
            began = time.process_time()
            for _ in range(CALLS):
                work()
            found.append((time.process_time() - began) / CALLS * 1e6)
    return samples


class Rows:
    """In the place of the registry: tenants and keys that are there already."""

    def __init__(self, rows: AccessRows) -> None:
        self._rows = rows

    async def revision(self) -> int:
        """Their revision."""
        return self._rows.revision

    async def load(self) -> AccessRows:
        """All of them."""
        return self._rows


def directory_of(count: int, scopes: Scopes) -> tuple[KeyDirectory, str]:
    """A directory of so many keys, and one of them."""
    now, keys, token = utc_now(), [], ""
    for _ in range(count):
        secret = new_key_secret()
        digest = secret_digest(secret).hex()
        key = Key(id=new_key_id(), tenant="t", secret_digest=digest, role=Role.CLIENT, scopes=scopes, created_at=now)
        keys.append(key)
        token = f"{key.prefix}_{secret}"
    tenant = Tenant(id="t", name="", created_at=now, updated_at=now)
    rows: Any = Rows(AccessRows(1, (tenant,), tuple(keys)))
    directory = KeyDirectory(rows, rows, lambda: datetime.now(UTC))
    asyncio.run(directory.refresh())
    return directory, token


def scope_of(token: str) -> dict[str, Any]:
    """A request with that key."""
    headers = Headers({"host": "localhost", "authorization": f"Bearer {token}"}).raw
    return {"type": "http", "path": "/v1/chat/completions", "headers": headers, "client": ("127.0.0.1", 1)}


def counted_us(*, is_limited: bool) -> tuple[list[float], list[float]]:
    """As `sides_us`, of a request that is reserved for, settled and written down, and of one that is not."""
    request = LimitedRequest(small_chat(), is_limited=is_limited)

    async def calls(work: Callable[[], Awaitable[None]]) -> None:
        for _ in range(CALLS):
            await work()

    samples: tuple[list[float], list[float]] = ([], [])
    with asyncio.Runner() as runner:
        runner.run(calls(request.once))
        for _ in range(BATCHES):
            for work, found in zip((request.once, request.uncounted), samples, strict=True):
                began = time.process_time()
                runner.run(calls(work))
                found.append((time.process_time() - began) / CALLS * 1e6)
    return samples


def added_row(case: str, parts: Sequence[Row]) -> Row:
    """What all ``parts`` add, batch by batch, beside the mark; a part that is cheaper than before makes up for none."""
    differences = [[max(0.0, one - other) for one, other in zip(part.ours, part.theirs, strict=True)] for part in parts]
    added = [sum(batch) for batch in zip(*differences, strict=True)]
    within = "yes" if statistics.median(added) <= MARK_US else "NO"
    return Row(case, "us", added, [MARK_US], {"target": "≤ 1", "within the mark": within})


def measure(count: int) -> list[Row]:
    """The parts of what is added, and their sums without limits and under six of them."""
    who, *others, name = access_rows(count)
    free = Row("reserved and written down, no limits", "us", *counted_us(is_limited=False))
    limited = Row("reserved and written down, six limits", "us", *counted_us(is_limited=True))
    return [
        *(who, *others, name, free, limited),
        added_row("added in all, no limits; beside the mark", (who, name, free)),
        added_row("added in all, six limits; beside the mark", (who, name, limited)),
    ]


def access_rows(count: int) -> list[Row]:
    """Who asks, by a key of the registry and of the environment; a name by patterns, and with everything in scope."""
    narrow = Scopes(models=(*(f"team{number}.*" for number in range(16)), "acme.*", "base"))
    directory, token = directory_of(count, narrow)
    ring = KeyRing.of(Settings(admin_key="ak_root_x", api_keys="ak_me_one"))
    held, environment = scope_of(token), scope_of("ak_me_one")
    wrong = scope_of(f"ak_{'0' * 16}_{new_key_secret()}")
    assert ring.caller(held, directory).key_id == token.split("_")[1]

    def before() -> object:
        return ring.caller(environment)

    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "who asks, a key of the registry": (lambda: ring.caller(held, directory), before),
        "who asks, a key of the environment": (lambda: ring.caller(environment, directory), before),
        "who asks, a key that nobody made": (lambda: ring.caller(wrong, directory), before),
        "a version, 18 patterns": (lambda: narrow.asked("acme.sql@3"), lambda: EVERYTHING.asked("acme.sql@3")),
    }
    return [Row(case, "us", *sides_us(*sides)) for case, sides in cases.items()]


def main() -> None:
    """Measure, and write the report where a name is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    notes = {"keys": given.keys, "mark_us": MARK_US, "batch": f"{CALLS} calls; processor time"}
    title = "What tenants, keys and limits add to a request in the front"
    theirs = "a key of the environment; everything in scope; nobody counts; the mark"
    write_report(title, measure(given.keys), rounds=BATCHES, out=given.out, notes=notes, theirs=theirs)


if __name__ == "__main__":
    main()
