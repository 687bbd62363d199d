"""One tenant floods the server: how long another one's requests take, against the same requests without the flood.

The guest asks at an even rate, a part of what the engine can answer. In every other phase the flooding tenant sends ten
times what the engine can answer beside it, by several keys and for several adapters, and does not care what is refused.
Phases of both kinds take turns in one run, so that their ratio is of one machine at one time.

    python loadtests/tenant_flood.py [--pairs 5] [--phase-s 60] [--settle-s 15] [--out tenant_flood]    # 13 minutes
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]
if "PYTHONPATH" not in os.environ:
    sys.path[:0] = [str(REPOSITORY / "server")]

from loadtests.fairness import percentile  # noqa: E402
from loadtests.overload import BATCH, FLAGS, Peers, Phase, Seen, cancel_all, paced  # noqa: E402
from loadtests.report import Row, write_report  # noqa: E402
from loadtests.servers import Server, start_amalgam  # noqa: E402

PORT: Final = 18593
TIMES: Final = 10
"""The flood, as a multiple of what the engine can answer."""
GUEST_SHARE: Final = 0.4
"""What the guest asks for, as a part of that: less than the half that is a tenant's of two."""
TOKENS: Final = 32
KEYS: Final = 4
"""Of the tenant that floods."""
MODELS: Final = ("smollm2", "sql", "json")
"""What it asks for, in turn."""
AT_ONCE: Final = 2 * BATCH
"""Requests at a time by which it is found out what the engine can answer."""
MARK: Final = 2.0


def request(key: str, model: str) -> bytes:
    """One of them, as it is sent."""
    asked = {"model": model, "prompt": "The quick brown fox", "max_tokens": TOKENS, "temperature": 0}
    body = json.dumps(asked | {"ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def created(server: Server, admin_key: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What the admin plane made."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {admin_key}"}
    asked = urllib.request.Request(f"{server.url}/admin/v1/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return dict(json.load(answer))


def key_of(server: Server, admin_key: str, tenant: str) -> str:
    """A new key of the tenant."""
    return str(created(server, admin_key, "keys", {"tenant": tenant})["key"])


async def capacity(phase: Phase, peers: Peers) -> float:
    """Answers a second where nobody is refused."""

    async def client() -> None:
        while True:
            await phase.ask(peers)

    clients = {asyncio.create_task(client()) for _ in range(AT_ONCE)}
    await paced(0.0, lambda: peers.ask(phase.elsewhere), phase)
    await cancel_all(clients)
    return phase.seen.rate


async def beside(flood: Peers | None, guest: Peers, given: argparse.Namespace, rate: float) -> tuple[Seen, Seen]:
    """A phase: what came of the guest's requests, and of those of the flood."""
    phase, other = (Phase(given.settle_s, given.phase_s) for _ in range(2))
    flooding = set()
    if flood is not None:
        flooding.add(asyncio.create_task(paced(TIMES * rate, lambda: other.ask(flood), _Endless(0, 0))))
    await paced(GUEST_SHARE * rate, lambda: phase.ask(guest), phase)
    await cancel_all(flooding)
    return phase.seen, other.seen


class _Endless(Phase):
    """Goes on until it is cancelled."""

    @property
    def is_over(self) -> bool:
        return False


async def measure(server: Server, admin_key: str, given: argparse.Namespace) -> list[Row]:
    """What the engine can answer, then phases in turn."""
    for tenant in ("guest", "flood"):
        created(server, admin_key, "tenants", {"id": tenant})
    guest = Peers(server.url, [request(key_of(server, admin_key, "guest"), "sql")])
    keys = [key_of(server, admin_key, "flood") for _ in range(KEYS)]
    flood = Peers(server.url, [request(key, model) for key in keys for model in MODELS])
    rate = await capacity(Phase(given.settle_s, given.phase_s), flood)
    print(
        f"{rate:.2f} answers a second at capacity; the guest asks for {GUEST_SHARE * rate:.2f}",
        file=sys.stderr,
        flush=True,
    )
    quiet, noisy, floods = [], [], []
    for pair in range(given.pairs):
        alone, _ = await beside(None, guest, given, rate)
        flooded, its = await beside(flood, guest, given, rate)
        quiet.append(alone)
        noisy.append(flooded)
        floods.append(its)
        p95 = [percentile(phase.answered_s, 0.95) for phase in (flooded, alone)]
        print(
            f"pair {pair + 1}: the guest's p95 {p95[0]:.2f} and {p95[1]:.2f} s, {p95[0] / p95[1]:.3f}; refused "
            f"{len(flooded.refused_ms)} and {len(alone.refused_ms)}; of the flood {len(its.refused_ms)}",
            file=sys.stderr,
            flush=True,
        )
    guest.close()
    flood.close()
    return rows_of(quiet, noisy, floods)


def rows_of(quiet: Sequence[Seen], noisy: Sequence[Seen], floods: Sequence[Seen]) -> list[Row]:
    """Of one run: a sample a phase, phases of both kinds in the order in which they took turns."""

    def guest(case: str, share: float, **extra: str) -> Row:
        ours, theirs = ([percentile(phase.answered_s, share) for phase in side] for side in (noisy, quiet))
        pairs = " ".join(f"{one / other:.3f}" for one, other in zip(ours, theirs, strict=True))
        return Row(case, "s", ours, theirs, {"pair by pair": pairs} | extra)

    p95 = guest("a request of the guest, p95", 0.95, target=f"≤ {MARK:g}")
    p95 = Row(p95.case, p95.unit, p95.ours, p95.theirs, {**p95.extra, "within the mark": _word(p95.ratio <= MARK)})
    refused = [sum(len(phase.refused_ms) for phase in side) for side in (noisy, quiet)]
    others = Counter(other for phase in (*noisy, *quiet) for other in phase.others)
    told = {"refused of the guest": f"{refused[0]} and {refused[1]}", "neither": str(dict(others) or "none")}
    shed = [one for phase in floods for one in phase.refused_ms]
    return [
        p95,
        guest("a request of the guest, median", 0.5),
        Row("answers of the guest", "1/s", [one.rate for one in noisy], [one.rate for one in quiet], told),
        Row(
            "answers of the flood, beside those of the guest",
            "1/s",
            [one.rate for one in floods],
            [one.rate for one in noisy],
            {"refused": str(len(shed)), "refusals, p99, ms": f"{percentile(shed, 0.99):.1f}" if shed else "none"},
        ),
    ]


def _word(is_so: bool) -> str:
    return "yes" if is_so else "NO"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--phase-s", type=float, default=60.0, help="for how long requests that begin are counted")
    parser.add_argument("--settle-s", type=float, default=15.0, help="before that, so that all is as it stays")
    parser.add_argument("--out", default="", help="name below loadtests/results")
    given = parser.parse_args()
    load_before, admin_key = os.getloadavg()[0], f"ak_root_{secrets.token_hex(16)}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = start_amalgam(folder / "store", FLAGS, sources=folder, port=PORT, AMALGAM_ADMIN_KEY=admin_key)
        try:
            rows = asyncio.run(measure(server, admin_key, given))
        finally:
            server.stop()
    write_report(
        "One tenant floods the server",
        rows,
        rounds=given.pairs,
        out=given.out,
        ours="beside the flood",
        theirs="without it",
        notes={
            "The guest": f"one key, the adapter sql, {GUEST_SHARE:g} of what the engine can answer, at an even rate",
            "The flood": f"{TIMES} times what the engine can answer, by {KEYS} keys, of {', '.join(MODELS)}",
            "Requests": f"prompts of some words, answers of {TOKENS} tokens; {BATCH} sequences in a batch",
            "Phases": f"in turn, each {given.settle_s:.0f} s to settle and {given.phase_s:.0f} s that count",
            "Times": "by the client's clock, on the same cores",
            "load average before": round(load_before, 2),
        },
    )


if __name__ == "__main__":
    main()
