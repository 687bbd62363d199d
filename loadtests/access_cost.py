"""What tenants and keys add to a request in the front: finding the key, and judging the name that is asked for.

A key of the environment is the other side, which is found as before there were tenants. No model runs; every number is
processor time, the median of batches.

    python loadtests/access_cost.py [--keys 10000] [--out access_cost]      # half a minute
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
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
from amalgam.services.key_directory import KeyDirectory, _Known  # noqa: E402
from amalgam.settings import Settings  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402

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


def directory_of(count: int, scopes: Scopes) -> tuple[KeyDirectory, str]:
    """A directory of so many keys, and one of them."""
    now, keys, token = utc_now(), [], ""
    for _ in range(count):
        secret = new_key_secret()
        digest = secret_digest(secret).hex()
        key = Key(id=new_key_id(), tenant="t", secret_digest=digest, role=Role.CLIENT, scopes=scopes, created_at=now)
        keys.append(key)
        token = f"{key.prefix}_{secret}"
    unused: Any = None
    directory = KeyDirectory(unused, unused, lambda: datetime.now(UTC))
    tenant = Tenant(id="t", name="", created_at=now, updated_at=now)
    directory._known = _Known.of(AccessRows(1, (tenant,), tuple(keys)))
    return directory, token


def scope_of(token: str) -> dict[str, Any]:
    """A request with that key."""
    headers = Headers({"host": "localhost", "authorization": f"Bearer {token}"}).raw
    return {"type": "http", "path": "/v1/chat/completions", "headers": headers, "client": ("127.0.0.1", 1)}


def measure(count: int) -> list[Row]:
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
    title = "What tenants and keys add to a request in the front"
    theirs = "a key of the environment alone; everything in scope"
    write_report(title, measure(given.keys), rounds=BATCHES, out=given.out, notes=notes, theirs=theirs)


if __name__ == "__main__":
    main()
