"""The overload benchmark counts what it says: whole phases, and the client's own cost on both sides."""

import asyncio

import pytest

from loadtests.canned import canned_responder
from loadtests.overload import REQUEST, Peers, Phase, Seen, rows_of


class Answers(Peers):
    """Peers whose requests end when they are told to, by the clock of the test."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.asked: list[asyncio.Event] = []

    async def ask(self, seen: Seen) -> None:
        self.asked.append(asyncio.Event())
        await self.asked[-1].wait()
        seen.answered_s.append(1.0)


async def test_a_phase_counts_what_begins_in_its_window_and_waits_for_all_of_it() -> None:
    now = [0.0]
    phase, peers = Phase(10, 60, clock=lambda: now[0]), Answers()
    tasks = []
    for at_s in (1.0, 11.0, 69.0, 71.0):
        now[0] = at_s
        tasks.append(asyncio.create_task(phase.ask(peers)))
        await asyncio.sleep(0)
    for number, event in enumerate(peers.asked[:2]):
        event.set()
        await tasks[number]
    assert not phase.is_over, "one that counts is not answered yet"
    for event in peers.asked[2:]:
        event.set()
    await asyncio.gather(*tasks)
    assert phase.is_over
    assert (len(phase.seen.answered_s), len(phase.settling.answered_s)) == (2, 2)
    assert phase.seen.rate == pytest.approx(2 / 60)


async def test_the_bare_responder_refuses_every_request_as_the_server_would() -> None:
    phase = Phase(0, 60)
    with canned_responder(len(REQUEST)) as url:
        peers = Peers(url)
        for _ in range(3):
            await phase.ask(peers)
        await asyncio.gather(*(phase.ask(peers) for _ in range(5)))
        peers.close()
    assert len(phase.seen.refused_ms) == 8
    assert not phase.seen.answered_s
    assert not phase.seen.others


def test_rows_are_pair_by_pair() -> None:
    calm = [Seen(answered_s=[1.0], window_s=2) for _ in range(2)]
    over = [Seen(answered_s=[s], refused_ms=[5.0] * 9, all_bytes=[10], front_bytes=[5], window_s=2) for s in (1.1, 1.3)]
    rows = {row.case: row for row in rows_of(calm, over, 5.0)}
    p99 = rows["an accepted request, p99"]
    assert p99.ratio == pytest.approx(1.2)
    assert p99.extra["pair by pair"] == "1.100 1.300"
    assert rows["a refusal, p99, beside its limit"].extra["share"] == "0.900"
    assert [row.ratio for case, row in rows.items() if case.startswith("memory")] == [1, 1]
